"""Prints a running sweep as plain lines: each start, evaluation and end of a trial, and counts."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.terminal.format import duration_text, loss_text
from orchestrator.terminal.tables import seeded_name
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record
from sweeps.results.ranking import base_value, best, config_ranks

EVERY_S = 30.0  # between lines on the whole sweep


class PlainLines:
    """Prints what changed since the last update.

    Trials that ended before the first update, in an earlier attempt, are counted, not listed.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._print = say
        self._clock = clock
        self._seen: dict[str, tuple[State, int]] | None = None  # state and attempt by trial key
        self._evaluated: dict[str, int] = {}  # trial key -> its last report that was told
        self._base_said = False
        self._last = clock()

    def update(self, history: History, total: int | None, left: Callable[[], float | None]) -> None:
        first = self._seen is None
        now = {key: (record.state, record.attempt) for key, record in history.trials.items()}
        seen = self._seen or {}
        changed = [history.trials[key] for key in now if now[key] != seen.get(key)]
        self._seen = now
        if first and history.ended:
            self._say(f"going on: {history.ended} of {total or '?'} trials have ended before")
            changed = [record for record in changed if not record.state.is_finished()]
        if first:
            self._evaluated = {
                key: record.latest.index
                for key, record in history.trials.items()
                if record.latest is not None
            }
        self._say_base(history)
        self._say_changes(history, changed)
        if self._clock() - self._last >= EVERY_S:
            self._last = self._clock()
            self._say(_standing(history, total, left()))

    def _say(self, text: str) -> None:
        self._print(f"{time.strftime('%H:%M:%S', time.localtime(self._clock()))}  {text}")

    def _say_base(self, history: History) -> None:
        base = base_value(history)
        if base is not None and not self._base_said:
            self._base_said = True
            self._say(f"base model: {history.metric} {loss_text(base)}")

    def _say_changes(self, history: History, changed: list[Record]) -> None:
        completed = any(record.state is State.COMPLETED for record in changed)
        ranks = config_ranks(history) if completed else {}
        begun = {record.key for record in changed if record.state is State.RUNNING}
        for record in changed:
            if record.key in begun:
                self._say(_change(history, record, None, 0))
        for record in history.trials.values():
            told = self._evaluated.get(record.key, 0)
            if record.latest is None or record.latest.index <= told:
                continue
            self._evaluated[record.key] = record.latest.index
            for index in sorted(index for index in record.reports if index > told):
                self._say(_evaluation(history, record, index))
        for record in changed:
            line = _change(history, record, ranks.get(record.config), len(ranks))
            if line and record.key not in begun:
                self._say(line)


def _evaluation(history: History, record: Record, index: int) -> str:
    report, count = record.reports[index], history.spec.get("sweep", {}).get("evaluations")
    value = f"{history.metric} {loss_text(report.metrics[history.metric])}"
    of = f" of {count}" if count else ""
    return f"trial {record.number} evaluation {index}{of}, step {report.step}: {value}"


def _change(history: History, record: Record, rank: int | None, ranks: int) -> str:
    trial = f"trial {record.number}"
    value = f"{history.metric} {loss_text(history.value(record))}"
    if record.state is State.RUNNING:
        again = f" (attempt {record.attempt})" if record.attempt > 1 else ""
        return f"{trial} started{again}: {seeded_name(history, record)}"
    if record.state is State.WAITING:
        return f"{trial} waits, and will go on: {record.reason}" if record.reason else ""
    if record.state is State.COMPLETED:
        seconds = duration_text(record.totals.get("seconds"))
        place = f"rank {rank} of {ranks}" if rank else "not ranked (warm)"
        return f"{trial} completed: {value}, {place}, {seconds}"
    if record.state is State.PRUNED:
        return f"{trial} pruned at report {record.pruned_at}: {value}"
    return f"{trial} {record.state}: {record.reason or record.kind}"


def _standing(history: History, total: int | None, left: float | None) -> str:
    running = history.count(State.RUNNING)
    parts = [f"{history.ended} of {total or '?'} trials ended", f"{running} running"]
    parts += [
        f"{history.count(state)} {state}"
        for state in (State.PRUNED, State.STOPPED, State.DIVERGED, State.FAILED)
        if history.count(state)
    ]
    winner = best(history)
    if winner is not None:
        value = winner.report.metrics[history.metric]
        parts.append(f"best {loss_text(value)} (trial {winner.record.number})")
    if left is not None:
        parts.append(f"about {duration_text(left)} left")
    return ", ".join(parts)
