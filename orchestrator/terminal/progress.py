"""Computes how far the running trials are, and how long the sweep will take."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.core.trial import OUTSIDE, State
from sweeps.ledger.history import History, Record
from sweeps.search.optuna_export import has_found
from sweeps.space.parser import space_of
from sweeps.storage.run_folder import RunFolder

_NO_REPEATS = (State.PRUNED, State.STOPPED, State.DIVERGED, State.FAILED)
_LAST_BYTES = 4096  # of metrics.jsonl: enough for its last row many times over


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The last row of a running trial's metrics.

    Attributes:
        step: optimizer steps done, of `steps`; `steps` is 0 if unknown yet.
        loss: training loss at that step, nats per labelled token.
        seconds: of training so far, interruptions left out.
    """

    step: int = 0
    steps: int = 0
    examples: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / self.steps) if self.steps else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the speed so far; None before the first step."""
        if not self.seconds or not self.fraction:
            return None
        return self.seconds * (1 / self.fraction - 1)


def read_progress(folder: RunFolder, history: History) -> dict[str, Progress]:
    """The progress of every running trial, from the last rows of their metrics.jsonl, by key."""
    budget = budget_examples(history)
    return {
        record.key: _progress(last_row(folder.metrics(record.key)), record, budget)
        for record in history.trials.values()
        if record.state is State.RUNNING
    }


def last_row(path: Path) -> dict[str, Any]:
    """The last complete row of a JSON-lines file; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}


def budget_examples(history: History) -> int | None:
    """Training examples that each trial sees: as configured, else as the reports imply."""
    sweep = history.spec.get("sweep", {})
    configured = (sweep.get("budget") or {}).get("examples")
    if configured:
        return int(configured)
    evaluations = sweep.get("evaluations") or 0
    for record in history.trials.values():
        if record.latest is not None and evaluations:
            return round(record.latest.examples * evaluations / record.latest.index)
    return None


def planned_configs(spec: Mapping[str, Any]) -> int | None:
    """How many configs a sweep tries; None if that is open, or not known yet."""
    return space_of(spec).planned(spec.get("sweep", {}).get("trials")) if spec else None


def planned_trials(history: History, configs: int | None) -> int | None:
    """How many trials there will be, repeats counted, given the number of configs.

    It falls as the sweep goes on: a config that was pruned or failed gets no more repeats.
    """
    if configs is None:
        return None
    known = history.by_config()
    asked = history.config_count  # by the search; users may have added others
    inside = sum(config < OUTSIDE for config in history.added)
    if inside and (size := space_of(history.spec).size()) is not None:
        configs = min(configs, size - inside)
    if history.trials and not history.unfinished() and has_found(history):
        configs = asked
    tried = sum(
        len(records)
        if any(r.state in _NO_REPEATS for r in records)
        else max(history.seeds(config), len(records))
        for config, records in known.items()
    )
    sweep = history.spec.get("sweep", {})
    repeats, finalists = int(sweep.get("repeats") or 1), sweep.get("finalists")
    if finalists is None:
        return tried + max(0, configs - asked) * repeats
    are_chosen = history.chosen == (asked, finalists)
    finals = 0 if are_chosen else min(configs, finalists) * (repeats - 1)
    return tried + max(0, configs - asked) + finals


def is_over(history: History) -> bool:
    """Whether every trial has ended and none is to follow, as far as the ledger says."""
    if history.unfinished() or not history.trials:
        return False
    total = planned_trials(history, planned_configs(history.spec))
    return history.is_closed or total is None or history.ended >= total


def time_left_s(
    history: History, progress: Mapping[str, Progress], total: int | None, now: float
) -> float | None:
    """Seconds until the sweep ends: the trials' mean time, shared by as many as run at once.

    Pruned and diverged trials count in the mean, since what is still to come will hold some too.
    None until a trial has made a step.
    """
    if total is None:
        return None
    running = [r for r in history.trials.values() if r.state is State.RUNNING]
    ended = [r for r in history.trials.values() if r.state.is_finished()]
    known = [s for r in ended if r.state is not State.FAILED and (s := _seconds(r))]
    own = [_own_left(progress.get(record.key)) for record in running]
    whole = [left[1] for left in own if left is not None]
    if not known and not whole:
        return None
    mean = statistics.fmean(known or whole)
    lefts = [mean / 2 if left is None else left[0] for left in own]
    waiting = max(0, total - len(ended) - len(running))
    left = max([*lefts, 0.0, (sum(lefts) + waiting * mean) / max(1, len(running))])
    return min(left, _budget_left(history, now))


def _own_left(progress: Progress | None) -> tuple[float, float] | None:
    """(seconds left, seconds in all) of a running trial, at its own speed."""
    if progress is None or progress.seconds_left is None or progress.seconds is None:
        return None
    return progress.seconds_left, progress.seconds_left + progress.seconds


def _seconds(record: Record) -> float | None:
    if "seconds" in record.totals:
        return record.totals["seconds"]
    if record.started is None or record.ended is None:
        return None
    return record.ended - record.started


def _budget_left(history: History, now: float) -> float:
    sweep, began = history.spec.get("sweep", {}), history.driver.time or history.began
    budget, hours = sweep.get("time_budget_s"), sweep.get("device_hours")
    left = float("inf") if budget is None or began is None else budget - (now - began)
    if hours is not None:
        busy = len({r.worker for r in history.unfinished() if r.state is State.RUNNING})
        left = min(left, (hours - history.device_hours(now)) * 3600 / max(1, busy))
    return max(0.0, left)


def _progress(row: Mapping[str, Any], record: Record, budget: int | None) -> Progress:
    step, examples = int(row.get("step", 0)), int(row.get("examples", 0))
    if not row and record.latest is not None:
        step, examples = record.latest.step, record.latest.examples
    return Progress(
        step=step,
        steps=max(step, round(step * budget / examples)) if budget and examples else 0,
        examples=examples,
        loss=row.get("loss"),
        tokens_per_second=row.get("tokens_per_second"),
        seconds=row.get("seconds"),
    )
