"""Opens a sweep's ledger and replays it into the history and into Optuna's study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.config.spec import SearchSpec, Spec
from sweeps.config.trial_config import config_of
from sweeps.coordinator.suggestions import Suggestions
from sweeps.core.errors import LedgerDamagedError
from sweeps.core.trial import Report
from sweeps.ledger.history import History
from sweeps.ledger.ledger import Event, Ledger, check

# What a line of the ledger that was not written by us can raise.
# ArithmeticError: an integer that no float holds.
_UNLIKELY = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError)


def replay_ledger(
    path: Path, spec: Spec, history: History, suggestions: Suggestions
) -> tuple[Ledger, dict[str, Mapping[str, Any]]]:
    """Replay the ledger into `history` and `suggestions`, both new, and open it for writing.

    Returns:
        The ledger, and the configs of the trials that have not ended, by key.

    Raises:
        LedgerDamagedError: the ledger cannot be read, or is not of this sweep.
    """

    def fold(number: int, event: Event) -> None:
        try:
            _fold(event, spec.sweep, history, suggestions)
        except _UNLIKELY as error:
            raise LedgerDamagedError(
                f"{path}, line {number} does not follow from the lines before "
                f"it ({error!r}). Restore the file from a copy, or choose another run_dir=..."
            ) from error

    ledger = Ledger(path, fold)
    try:
        suggestions.settle()
        return ledger, {
            record.key: config_of(spec, record.values, record.repeat)
            for record in history.unfinished()
        }
    except _UNLIKELY as error:
        ledger.close()
        raise LedgerDamagedError(
            f"{path}: its trials are not of this space ({error!r}). Restore the "
            "file from a copy, or choose another run_dir=..."
        ) from error


def _fold(event: Event, spec: SearchSpec, history: History, suggestions: Suggestions) -> None:
    """Fold an event in, and do again what it did to Optuna."""
    check(event)
    kind = event["event"]
    if kind == "sweep":
        _check_sweep(event, spec)
    if kind == "report" and event["index"] > 0:
        record = history.trials[event["trial"]]
        suggestions.replay_report(record, Report.from_json(event), event.get("noted"))
    history.apply(event)
    if kind == "ask":
        suggestions.replay_ask(event)
    if kind == "end":
        suggestions.tell_result(history.trials[event["trial"]].config)


def _check_sweep(event: Event, spec: SearchSpec) -> None:
    """Raise ValueError if what decides how all other lines are read differs from the sweep's."""
    there = event["spec"]["sweep"]
    for name in ("metric", "direction", "repeats"):
        if there[name] != getattr(spec, name):
            raise ValueError(f"spec.sweep.{name} = {there[name]!r:.40}")
