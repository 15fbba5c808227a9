"""Tests whether the best config is better than the second, or only luckier, by their repeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.ledger.history import History
from sweeps.results.ranking import completed_values, config_ranks


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far the config ranked first is ahead of the second.

    Attributes:
        runner_up: number of the second config's first trial.
        gap: difference of their mean values; positive if the first is better.
        noise: the gap that two equal configs stay below 95 times in 100, from the spread of all
            repeats; None if no config has two completed repeats.
    """

    runner_up: int
    gap: float
    noise: float | None


def margin(history: History) -> Margin | None:
    """First against second; None with fewer than two ranked configs."""
    ranks = config_ranks(history)
    if len(ranks) < 2:
        return None
    values = completed_values(history)
    first, second = sorted(ranks, key=ranks.__getitem__)[:2]
    gap = statistics.fmean(values[second]) - statistics.fmean(values[first])
    return Margin(
        runner_up=min(record.number for record in history.repeats(second)),
        gap=gap if history.direction == "minimize" else -gap,
        noise=_least_significant_gap(values, values[first], values[second]),
    )


def _least_significant_gap(
    values: Mapping[int, Sequence[float]], first: Sequence[float], second: Sequence[float]
) -> float | None:
    """Fisher's least significant difference, with the variance pooled over every config.

    Pooled, since two or three repeats of one config say little about its own variance.
    """
    repeated = [group for group in values.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if not freedom:
        return None
    from scipy import stats  # takes a tenth of a second, which only repeats are worth

    variance = sum(statistics.variance(group) * (len(group) - 1) for group in repeated) / freedom
    critical = stats.t.ppf(0.975, freedom)  # two-sided 95%
    return float(critical) * math.sqrt(variance * (1 / len(first) + 1 / len(second)))
