"""Ranks configs and finds the best checkpoint.

Completed trials alone are ranked: an early-stopped trial's good early value was measured on less
data, and a failed one's on an unknown state; one that began with another's weights has learnt from
more. With repeats a config is ranked by the mean over its
completed repeats, and one that lacks repeats (pruned, diverged, failed or still to come) stands
below every config that has more of them, since the mean of few is more often good by luck.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sweeps.core.trial import Report, State
from sweeps.ledger.history import History, Record
from sweeps.space.parser import space_of
from sweeps.space.space import set_by


@dataclass(frozen=True, kw_only=True)
class Best:
    """The checkpoint of the sweep.

    Attributes:
        record: the best trial of the config ranked first, of those whose checkpoint is kept.
        report: its best report; the checkpoint at `report.step` is the one to keep.
        mean: of the config over its completed repeats; with one repeat, the trial's value.
        spread: standard deviation over those repeats; None for one.
    """

    record: Record
    report: Report
    mean: float
    spread: float | None


def completed_values(history: History) -> dict[int, list[float]]:
    """The ranked values of each config's completed repeats; configs without one are left out."""
    values: dict[int, list[float]] = {}
    for record in history.trials.values():
        if record.state is not State.COMPLETED or record.warm is not None:
            continue
        if (value := history.value(record)) is not None:
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
    """The best checkpoint of the config that ranks first; None if no trial has completed."""
    ranks = config_ranks(history)
    if not ranks:
        return None
    config = min(ranks, key=ranks.__getitem__)
    sign = history.sign
    candidates = [
        (
            report.step not in record.checkpoints,  # removed before its config got further seeds
            sign * report.metrics[history.metric],
            record.number,
            record,
            report,
        )
        for record in history.repeats(config)
        if record.state is State.COMPLETED
        and (report := record.best(history.metric, history.direction)) is not None
    ]
    *_, record, report = min(candidates, key=lambda candidate: candidate[:3])
    mean = history.config_mean(config)
    assert mean is not None
    return Best(record=record, report=report, mean=mean, spread=spread(history, config))


def gain(history: History, value: float | None) -> float | None:
    """How much better than the base model, in the metric's own unit; negative if worse."""
    base = base_value(history)
    if base is None or value is None:
        return None
    return base - value if history.direction == "minimize" else value - base


def base_value(history: History) -> float | None:
    """The metric before any training; None if it was not measured."""
    return None if history.base is None else history.base.metrics.get(history.metric)


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
