"""Which trial won, and the table that says so.

Completed trials alone are ranked: an early-stopped trial's good early value was measured on less
data, and a failed one's on an unknown state. With repeats a config is ranked by the mean over its
completed repeats, and one that lacks repeats (pruned, diverged, failed or still to come) stands
below every config that has more of them, since the mean of few is more often good by luck.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sweeps.core.trial import Report, State
from sweeps.ledger.history import History, Record
from sweeps.space.parser import space_of
from sweeps.space.space import set_by

_SECTIONS = (
    State.COMPLETED,
    State.RUNNING,
    State.WAITING,
    State.PRUNED,
    State.DIVERGED,
    State.FAILED,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial as a line of trials.csv; the fields are its columns, in order (see `columns`).

    Attributes:
        rank: of its config, 1 is best; None unless completed.
        value: of the metric ranked by, the best over the trial's reports; of an unfinished or
            pruned trial the best so far; None where it diverged or failed.
        best_step: optimizer steps done when that was measured.
        error: one line; empty where nothing went wrong. A trial that ran out of memory and went on
            with half the micro-batch says so here, whatever became of it.
        values: the searched config keys and what they were set to.
    """

    rank: int | None
    number: int
    key: str
    status: State
    value: float | None
    best_step: int | None
    steps: int | None
    examples: int | None
    tokens: int | None
    seconds: float | None
    tokens_per_second: float | None
    peak_memory_mb: float | None
    optimizer_state_mb: float | None
    seed: int
    error: str
    values: Mapping[str, Any]


_FIELDS = tuple(column.name for column in fields(Row) if column.name != "values")


def columns(metric: str) -> dict[str, str]:
    """Column of trials.csv -> field of `Row`; the value ranked has the name of its metric."""
    return {metric if name == "value" else name: name for name in _FIELDS}


@dataclass(frozen=True, kw_only=True)
class Best:
    """The checkpoint of the sweep.

    Attributes:
        record: the best trial of the config ranked first.
        report: its best report; the checkpoint at `report.step` is the one to keep.
        mean: of the config over its completed repeats; with one repeat, the trial's value.
        spread: standard deviation over those repeats; None for one.
    """

    record: Record
    report: Report
    mean: float
    spread: float | None


def ranked(history: History) -> list[Row]:
    """Every trial: completed ones by rank, then running, waiting, pruned, diverged and failed.

    The repeats of a config stand side by side and share its rank. Pruned trials: further first,
    then better. Ties go to the lower trial number.
    """
    ranks = config_ranks(history)
    values = {key: history.value(record) for key, record in history.trials.items()}
    sign = history.sign

    def place(record: Record) -> tuple[float, ...]:
        section = _SECTIONS.index(record.state)
        if record.state is State.COMPLETED:
            return (section, ranks.get(record.config, len(ranks) + 1), record.number)
        value = values[record.key]
        if record.state is State.PRUNED and value is not None:
            return (section, -max(record.reports), sign * value, record.number)
        return (section, 0, 0, record.number)

    return [_row(history, record, ranks) for record in sorted(history.trials.values(), key=place)]


def completed_values(history: History) -> dict[int, list[float]]:
    """The ranked values of each config's completed repeats; configs without one are left out."""
    values: dict[int, list[float]] = {}
    for record in history.trials.values():
        if record.state is State.COMPLETED and (value := history.value(record)) is not None:
            values.setdefault(record.config, []).append(value)
    return values


def config_ranks(history: History) -> dict[int, int]:
    """The rank of each config that has a completed repeat: 1, 2, 3, ... without gaps."""
    values = completed_values(history)
    sign = history.sign

    def place(config: int) -> tuple[float, ...]:
        first = min(record.number for record in history.repeats(config))
        return (-len(values[config]), sign * statistics.fmean(values[config]), first)

    return {config: rank for rank, config in enumerate(sorted(values, key=place), start=1)}


def spread(history: History, config: int) -> float | None:
    """Standard deviation over a config's completed repeats; None with fewer than two."""
    values = completed_values(history).get(config, [])
    return statistics.stdev(values) if len(values) > 1 else None


def best(history: History) -> Best | None:
    """The best checkpoint of the config that ranks first; None where no trial has completed."""
    ranks = config_ranks(history)
    if not ranks:
        return None
    config = min(ranks, key=ranks.__getitem__)
    sign = history.sign
    candidates = [
        (sign * report.metrics[history.metric], record.number, record, report)
        for record in history.repeats(config)
        if record.state is State.COMPLETED
        and (report := record.best(history.metric, history.direction)) is not None
    ]
    _, _, record, report = min(candidates, key=lambda candidate: candidate[:2])
    mean = history.config_mean(config)
    assert mean is not None
    return Best(record=record, report=report, mean=mean, spread=spread(history, config))


def _row(history: History, record: Record, ranks: Mapping[int, int]) -> Row:
    unusable = record.state in (State.DIVERGED, State.FAILED)
    peak = None if unusable else record.best(history.metric, history.direction)
    return Row(
        rank=ranks.get(record.config) if record.state is State.COMPLETED else None,
        number=record.number,
        key=record.key,
        status=record.state,
        value=None if peak is None else peak.metrics[history.metric],
        best_step=None if peak is None else peak.step,
        steps=_count(record, "step", "steps"),
        examples=_count(record, "examples", "examples"),
        tokens=_count(record, "tokens", "tokens"),
        seconds=_measure(record, "seconds"),
        tokens_per_second=_measure(record, "tokens_per_second"),
        peak_memory_mb=_measure(record, "peak_memory_mb"),
        optimizer_state_mb=_measure(record, "optimizer_state_mb"),
        seed=record.seed,
        error=_error(record),
        values=record.values,
    )


def _count(record: Record, field: str, total: str) -> int | None:
    if total in record.totals:
        return int(record.totals[total])
    return None if record.latest is None else int(getattr(record.latest, field))


def _measure(record: Record, name: str) -> float | None:
    if name in record.totals:
        return record.totals[name]
    return None if record.latest is None else record.latest.metrics.get(name)


def _error(record: Record) -> str:
    """The reason on one line, after the kind of failure where the status does not say it.

    Of a trial that went well too, where it trained with another micro-batch than its config says.
    """
    if record.state in (State.COMPLETED, State.PRUNED):
        return record.memory_note
    reason = " ".join(record.reason.split())
    if record.kind in ("", record.state) or not record.state.is_finished():
        return reason or record.kind
    return f"{record.kind}: {reason}" if reason else record.kind


def dimension_keys(history: History) -> dict[str, tuple[str, ...]]:
    """What was searched: the name of each dimension and the config keys that it sets together."""
    space = space_of(history.spec)
    found = {dimension.name: set_by(dimension) for dimension in space.dimensions}
    known = {key for keys in found.values() for key in keys}
    for record in history.trials.values():
        for key in record.values:
            if key not in known:
                known.add(key)
                found[key] = (key,)
    return found


def searched_keys(history: History) -> tuple[str, ...]:
    """Every searched config key, in the order of the space."""
    return tuple(dict.fromkeys(key for keys in dimension_keys(history).values() for key in keys))
