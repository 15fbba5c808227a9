"""The last job of a sweep but leaving: measuring what trials cost alone, by one worker.

By then no trial runs, so no other worker of ours computes on the machine. One worker measures for
all, also on a cluster of unlike devices: the figures of a table are then of one device, which the
ledger names.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.cost import Parts
from sweeps.core.errors import LedgerWriteError
from sweeps.ledger.history import Record
from sweeps.results.cost import Costs

_MOST_S = 60.0  # of one start that go into measuring, or
_SHARE = 0.02  # of the device-hours that the trials took, if that is more
_TRIES = 2  # workers that may die of one measurement


@dataclass(kw_only=True)
class CostJob:
    """Which trial is measured next, and who does it.

    Attributes:
        holder: the worker that measures now; empty if none does.
    """

    coordinator: Coordinator
    holder: str = ""
    _key: str = ""
    _since: float = 0.0
    _spent_s: float = 0.0
    _deaths: int = 0
    _is_broken: bool = False  # nothing can be written any more

    def next(self) -> Record | None:
        """The trial to measure next; None if nothing is missing, or enough time went into it."""
        if self._is_broken:
            return None
        history = self.coordinator.history
        if self._spent_s > max(_MOST_S, _SHARE * 3600 * history.device_hours()):
            return None
        return Costs(history).next_to_measure()

    def give(self, worker: str, record: Record) -> None:
        """Note that this worker measures this trial."""
        if record.key != self._key:
            self._deaths = 0
        self.holder, self._key, self._since = worker, record.key, time.monotonic()

    def done(self, worker: str, key: str, device: str, parts: Parts | None, reason: str) -> None:
        """Take a result, unless the worker was thought dead."""
        if self.holder != worker:
            return
        self.holder = ""
        self._spent_s += time.monotonic() - self._since
        self._write(key, device, parts, reason)

    def worker_left(self, worker: str) -> None:
        """Give the measurement to the next worker, if this one had it."""
        if self.holder == worker:
            self.holder = ""

    def worker_died(self, worker: str, reason: str) -> None:
        """Like `worker_left`; a trial of which workers die is not measured any more."""
        if self.holder != worker:
            return
        self.holder = ""
        self._deaths += 1
        if self._deaths >= _TRIES:
            self._write(self._key, "", None, f"{self._deaths} workers died of it: {reason}")

    def _write(self, key: str, device: str, parts: Parts | None, reason: str) -> None:
        try:
            self.coordinator.cost_measured(key, device, parts, reason)
        except LedgerWriteError:
            self._is_broken = True  # the next start measures
