"""Opens a sweep's ledger and replays it into the history and into Optuna's study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.config.spec import Spec
from sweeps.config.trial_config import config_of
from sweeps.coordinator.suggestions import Suggestions
from sweeps.core.errors import LedgerDamagedError, Problem
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History
from sweeps.ledger.ledger import UNLIKELY, Ledger
from sweeps.space.parser import parse_space
from sweeps.space.space import Space


def replay_ledger(
    path: Path, spec: Spec, space: Space, history: History, suggestions: Suggestions
) -> tuple[Ledger, dict[str, Mapping[str, Any]]]:
    """Replay the ledger into `history` and `suggestions`, both new, and open it for writing.

    Returns:
        The ledger, and the configs of the trials that have not ended, by key.

    Raises:
        LedgerDamagedError: the ledger cannot be read, or is not of this sweep.
    """
    ledger = Ledger(path, _Replay(spec, space, history, suggestions).fold)
    try:
        suggestions.settle()
        return ledger, {
            record.key: config_of(spec, record.values, record.repeat, record.warm)
            for record in history.unfinished()
        }
    except UNLIKELY as error:
        ledger.close()
        raise LedgerDamagedError(
            f"{path}: its trials are not of this space ({error!r}). Restore the "
            "file from a copy, or choose another run_dir=..."
        ) from error


class _Replay:
    """Folds events in one by one, and does again what each did to Optuna."""

    def __init__(
        self, spec: Spec, space: Space, history: History, suggestions: Suggestions
    ) -> None:
        self._spec = spec.sweep
        self._space = space
        self._history = history
        self._suggestions = suggestions
        self._written: Any = None  # the space of the events before, as it is written

    def fold(self, event: Event) -> None:
        history, suggestions = self._history, self._suggestions
        if isinstance(event, events.Sweep):
            self._check_sweep(event)
        if isinstance(event, events.Sweep | events.Attempt) and event.spec:
            self._search_in_space_of(event.spec["sweep"])
        if isinstance(event, events.Report) and event.index > 0:
            suggestions.replay_report(history.trials[event.trial], event.report, event.noted)
        history.apply(event)
        if isinstance(event, events.Ask | events.Duplicate):
            suggestions.replay_ask(event)
        if isinstance(event, events.Request):
            suggestions.replay_request(event)
        if isinstance(event, events.Known):
            suggestions.add_known(event)
        if isinstance(event, events.Learnt):
            suggestions.learn(event)
        if isinstance(event, events.Attempt):
            suggestions.seeds_may_change()
        if isinstance(event, events.End):
            suggestions.tell_result(history.trials[event.trial].config)

    def _search_in_space_of(self, sweep: Mapping[str, Any]) -> None:
        """Take the space of a start, in which its suggestions were made; most have the same."""
        written = sweep.get("space"), sweep.get("when")
        if not isinstance(written[0], Mapping) or written == self._written:
            return
        self._written = written
        problems: list[Problem] = []
        space = parse_space(written[0], written[1] or {}, problems)
        if not problems:  # an older version may have taken what is none now
            self._suggestions.replay_space(replace(space, fixed=self._space.fixed))

    def _check_sweep(self, event: events.Sweep) -> None:
        """Raise ValueError if what decides how all other lines are read differs from ours."""
        there = event.spec["sweep"]
        for name in ("metric", "direction", "repeats"):
            now = getattr(self._spec, name)
            has_grown = name == "repeats" and isinstance(there[name], int) and there[name] <= now
            if there[name] != now and not has_grown:
                raise ValueError(f"spec.sweep.{name} = {there[name]!r:.40}")
