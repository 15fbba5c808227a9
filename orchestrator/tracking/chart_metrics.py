"""Computes the numbers and words that trackers show of a sweep, under the names of W&B's charts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from orchestrator.tracking.allow_list import clean
from sweeps.core.ending import Cause
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record
from sweeps.results.cost import Costs
from sweeps.results.ranking import best, gain, searched_keys
from sweeps.results.significance import Comparison
from sweeps.results.trials_csv import columns, ranked
from sweeps.storage.run_folder import REPORT, RunFolder

_PLAIN = frozenset(
    "examples tokens seconds tokens_per_second peak_memory_mb optimizer_state_mb".split(),
)
# They are shown under another name: the step as the x-axis, the loss as the training rows' own.
_TWICE = frozenset(("step", "steps", "train_loss"))
_SHARED = ("tokens_per_second", "peak_memory_mb")


def chart_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics under the names of Trainer's own W&B charts: train/loss, eval/loss; numbers only.

    A NaN stays one: it is what a diverged run looks like.
    """
    values: dict[str, float] = {}
    for name, value in _numbers(metrics).items():
        if name in _TWICE:
            continue
        if name in _PLAIN or "/" in name:
            values[name] = value
        elif name.startswith("eval_"):
            values[f"eval/{name.removeprefix('eval_')}"] = value
        else:
            values[f"train/{name}"] = value
    return values


def train_rows(folder: RunFolder) -> int:
    """Rows of the training data, which an epoch has; 0 if the prepared data is not there."""
    try:
        found = json.loads((folder.data / REPORT).read_text(encoding="utf-8"))
        return int(found["report"]["train_rows"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def epoch(metrics: Mapping[str, Any], rows: int) -> dict[str, float]:
    """How often a trial has seen the data, beside its `examples`."""
    return {"epoch": metrics["examples"] / rows} if rows and "examples" in metrics else {}


def status(record: Record) -> str:
    """The state of a trial that ended, or was interrupted."""
    return str(record.state) if record.state.is_finished() else "interrupted"


def without_shared(record: Record, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics without those that say nothing of a trial which shares its passes or device."""
    hidden = () if record.is_alone else _SHARED
    return {name: value for name, value in metrics.items() if name not in hidden}


def cost(history: History, record: Record) -> dict[str, float]:
    """What training the trial's config alone costs, as far as it is known."""
    return _numbers(vars(Costs(history).of(record)))


def best_name(metric: str) -> str:
    """The name of the best value of a metric so far."""
    return f"best_{metric}"


def chart_name(metric: str) -> str:
    """The name of a metric's chart; the training rows' own for the training loss."""
    return next(iter(chart_values({"loss" if metric == "train_loss" else metric: 0.0})))


def outcome(history: History, record: Record) -> dict[str, Any]:
    """How a trial ended. Its reason in words stays here, as it may hold local paths."""
    top = record.best(history.metric, history.direction)
    values: dict[str, Any] = {"status": status(record), "attempt": record.attempt}
    if top is not None:
        values |= {best_name(history.metric): top.metrics[history.metric], "best_step": top.step}
    if record.kind:
        values["failure"] = record.kind
    totals = {name: value for name, value in record.totals.items() if name not in _TWICE}
    return values | without_shared(record, _numbers(totals)) | cost(history, record)


def progress(history: History) -> dict[str, Any]:
    """The sweep so far: how many trials ended, and the best value among the completed ones."""
    values: dict[str, Any] = {"trials_ended": history.ended}
    top = best(history)
    if top is not None:
        values[best_name(history.metric)] = top.report.metrics[history.metric]
    return values


def counts(history: History) -> dict[str, int]:
    """Trials by state; states without any are left out."""
    found = {str(state): history.count(state) for state in State}
    return {state: count for state, count in found.items() if count}


def standstill(history: History) -> str:
    """Say `ended`, or `stopped` if trials wait that no person left waiting; else nothing."""
    if not history.unfinished():
        return "ended"
    cause = _cause(history)
    return "stopped" if cause is not None and not cause.is_by_hand else ""


def _cause(history: History) -> Cause | None:
    """Why the last start stopped before its end; None if it did not, or a newer version knows."""
    name = history.interrupt.cause if history.interrupt is not None else None
    return Cause.__members__.get(name or "")


def ending(history: History, name_of: Callable[[Record], str]) -> str:
    """How a sweep ended or stopped: the best config, its gain, the trials, and how long it took.

    Args:
        name_of: a trial's name as it may be shown.
    """
    top, metric = best(history), history.metric
    if top is None:
        text = "No trial has completed."
    else:
        value = top.report.metrics[metric]
        text = f"Best: trial {top.record.number} ({name_of(top.record)}), {metric} {value:.4g}"
        if (better := gain(history, value)) is not None:
            word = "better" if better >= 0 else "worse"
            text += f", {abs(better):.4g} {word} than the base model"
        text += "."
    states = ", ".join(f"{count} {state}" for state, count in counts(history).items())
    trials = len(history.trials)
    text += f" {trials} trial{'s' if trials != 1 else ''} ({states})"
    if history.began is not None and history.latest is not None:
        text += f" in {timedelta(seconds=round(history.latest - history.began))}"
    cause = _cause(history)
    if not history.unfinished() or cause is None:
        return f"{text}."
    # What fills the words of other causes may be a path of this machine.
    why = cause.value if "{" not in cause.value else "it could not go on"
    return f"{text}. Stopped, since {why}; the same command goes on."


def ranking_table(
    history: History, comparison: Comparison | None = None
) -> tuple[list[str | int], list[list[object]]]:
    """trials.csv as columns and rows, without its error texts."""
    shown = {head: name for head, name in columns(history.metric).items() if name != "error"}
    keys = searched_keys(history)
    rows = [
        [_cell(clean(head, getattr(row, name))) for head, name in shown.items()]
        + [_cell(clean(key, row.values.get(key))) for key in keys]
        for row in ranked(history, comparison)
    ]
    return [*shown, *keys], rows


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _cell(value: object) -> object:
    """Numbers and words as they are, everything else as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, int | float | str):
        return value
    return json.dumps(value, default=str)
