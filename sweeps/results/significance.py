"""Is the winner better than its neighbour, or only luckier? What the repeats say about it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sweeps.ledger.history import History
from sweeps.results.ranking import completed_values, config_ranks

# Two-sided 95% points of Student's t for 1, 2, ... degrees of freedom; further on it falls to 1.96
# and the last one here is kept, which errs on the side of calling a gap noise.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far the config ranked first is ahead of the second.

    Attributes:
        runner_up: number of the second config's first trial.
        gap: difference of their mean values; positive where the first is better.
        noise: the gap that two equal configs would stay below 95 times in 100, from the spread of
            all repeats; None where no config has two completed repeats.
    """

    runner_up: int
    gap: float
    noise: float | None

    @property
    def is_clear(self) -> bool:
        return self.noise is not None and self.gap > self.noise


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
    variance = sum(statistics.variance(group) * (len(group) - 1) for group in repeated) / freedom
    critical = _T95[min(freedom, len(_T95)) - 1]
    return critical * math.sqrt(variance * (1 / len(first) + 1 / len(second)))
