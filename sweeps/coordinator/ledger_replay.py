"""The ledger, what it adds up to, and what Optuna knows of it: three views that are kept as one."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

from sweeps.config.spec import Spec
from sweeps.config.trial_config import config_of
from sweeps.coordinator.suggestions import Asking
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import LedgerDamagedError, LedgerWriteError
from sweeps.core.trial import Report
from sweeps.ledger.history import History
from sweeps.ledger.ledger import Event, Ledger, check
from sweeps.space.space import Space
from sweeps.storage.run_folder import RunFolder

# What a line of the ledger that was not written by us can bring about.
# ArithmeticError: an integer that no float holds.
_UNLIKELY = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError)


class Books:
    """What a sweep has come to, read from its ledger when it is made.

    Attributes:
        configs: of the trials that have not ended.
        broken: why nothing can be written any more; None while it can.

    Raises (on making one):
        LedgerDamagedError: the ledger cannot be read, or is not of this sweep.
    """

    def __init__(self, spec: Spec, space: Space, folder: RunFolder) -> None:
        self._folder = folder
        self._spec = spec.sweep
        self.history = History()
        self.asking = Asking(spec, space, self.history, self.write)
        self.configs: dict[str, Mapping[str, Any]] = {}
        self.broken: Stop | None = None
        # Nothing here is garbage, and looking for some would take a third of the time.
        gc.disable()
        try:
            self._ledger = Ledger(folder.ledger, self._replay)
        finally:
            gc.enable()
        self._settle(spec)

    def write(self, event: str, **fields: Any) -> None:
        """Append to the ledger, then fold it in.

        Raises:
            LedgerWriteError: it cannot be written; from then on nothing is.
        """
        if self.broken is not None:
            raise LedgerWriteError(str(self.broken))
        try:
            line = self._ledger.append(event, **fields)
        except OSError as error:
            details = str(self._folder.ledger), str(error.strerror)
            self.broken = Stop(cause=Cause.LEDGER_UNWRITABLE, details=details)
            raise LedgerWriteError(str(self.broken)) from error
        self.history.apply(line)

    def close(self) -> None:
        self._ledger.close()

    def _replay(self, number: int, event: Event) -> None:
        """Fold an event in, and do again what it did to Optuna."""
        try:
            check(event)
            kind = event["event"]
            if kind == "sweep":
                self._check_sweep(event)
            if kind == "report" and event["index"] > 0:
                record = self.history.trials[event["trial"]]
                self.asking.replay_report(record, Report.from_json(event), event.get("noted"))
            self.history.apply(event)
            if kind == "ask":
                self.asking.replay_ask(event)
            if kind == "end":
                self.asking.tell_result(self.history.trials[event["trial"]].config)
        except _UNLIKELY as error:
            raise LedgerDamagedError(
                f"{self._folder.ledger}, line {number} does not follow from the lines before "
                f"it ({error!r}). Restore the file from a copy, or choose another run_dir=..."
            ) from error

    def _check_sweep(self, event: Event) -> None:
        """What decides how every other line is read must be this sweep's."""
        there, ours = event["spec"]["sweep"], self._spec
        for name in ("metric", "direction", "repeats"):
            if there[name] != getattr(ours, name):
                raise ValueError(f"spec.sweep.{name} = {there[name]!r:.40}")

    def _settle(self, spec: Spec) -> None:
        try:
            self.asking.settle()
            for record in self.history.unfinished():
                self.configs[record.key] = config_of(spec, record.values, record.repeat)
        except _UNLIKELY as error:
            self._ledger.close()
            raise LedgerDamagedError(
                f"{self._folder.ledger}: its trials are not of this space ({error!r}). Restore the "
                "file from a copy, or choose another run_dir=..."
            ) from error
