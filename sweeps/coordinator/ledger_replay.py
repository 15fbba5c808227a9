"""Opens a sweep's ledger and replays it into the history and into Optuna's study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.config.spec import SearchSpec, Spec
from sweeps.config.trial_config import config_of
from sweeps.coordinator.suggestions import Suggestions
from sweeps.core.errors import LedgerDamagedError
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History
from sweeps.ledger.ledger import UNLIKELY, Ledger


def replay_ledger(
    path: Path, spec: Spec, history: History, suggestions: Suggestions
) -> tuple[Ledger, dict[str, Mapping[str, Any]]]:
    """Replay the ledger into `history` and `suggestions`, both new, and open it for writing.

    Returns:
        The ledger, and the configs of the trials that have not ended, by key.

    Raises:
        LedgerDamagedError: the ledger cannot be read, or is not of this sweep.
    """
    ledger = Ledger(path, lambda event: _fold(event, spec.sweep, history, suggestions))
    try:
        suggestions.settle()
        return ledger, {
            record.key: config_of(spec, record.values, record.repeat)
            for record in history.unfinished()
        }
    except UNLIKELY as error:
        ledger.close()
        raise LedgerDamagedError(
            f"{path}: its trials are not of this space ({error!r}). Restore the "
            "file from a copy, or choose another run_dir=..."
        ) from error


def _fold(event: Event, spec: SearchSpec, history: History, suggestions: Suggestions) -> None:
    """Fold an event in, and do again what it did to Optuna."""
    if isinstance(event, events.Sweep):
        _check_sweep(event, spec)
    if isinstance(event, events.Report) and event.index > 0:
        suggestions.replay_report(history.trials[event.trial], event.report, event.noted)
    history.apply(event)
    if isinstance(event, events.Ask | events.Duplicate):
        suggestions.replay_ask(event)
    if isinstance(event, events.End):
        suggestions.tell_result(history.trials[event.trial].config)


def _check_sweep(event: events.Sweep, spec: SearchSpec) -> None:
    """Raise ValueError if what decides how all other lines are read differs from the sweep's."""
    there = event.spec["sweep"]
    for name in ("metric", "direction", "repeats"):
        if there[name] != getattr(spec, name):
            raise ValueError(f"spec.sweep.{name} = {there[name]!r:.40}")
