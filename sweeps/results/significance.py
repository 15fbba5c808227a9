"""Tests whether the best config is better than the others, or only luckier.

Two kinds of chance decide who is first: which rows are evaluated on, and which seed a trial has.
`compare` knows both, as far as they were measured: the first from the losses of each row
(`row_losses`), the second from the repeats of configs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results import row_losses
from sweeps.results.intervals import (
    FEWEST_PROMPTS,
    Interval,
    Part,
    by_prompt,
    few_rows,
    interval,
    ratio,
)
from sweeps.results.ranking import completed_values, config_ranks
from sweeps.results.row_losses import Array
from sweeps.storage.run_folder import RunFolder

_SHOWN = 8  # trials that are named in a line


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
    """First against second by repeats alone; None with fewer than two ranked configs."""
    ranks = config_ranks(history)
    if len(ranks) < 2:
        return None
    values = completed_values(history)
    first, second = sorted(ranks, key=ranks.__getitem__)[:2]
    gap = statistics.fmean(values[second]) - statistics.fmean(values[first])
    spread = _spread_of_seeds(values)
    noise = None
    if spread is not None:
        # Fisher's least significant difference.
        part = _seeds(spread, values[first], values[second])
        noise = interval(0.0, [part]).half
    return Margin(
        runner_up=_number(history, second),
        gap=gap if history.direction == "minimize" else -gap,
        noise=noise,
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The eval_loss of each ranked config against that of the first.

    Attributes:
        order: the configs, best first.
        numbers: of each config's first trial.
        behind: by config, its eval_loss less the first's, positive if the first is better; without
            the first, and without those whose rows' losses are not known.
        rows, prompts: evaluation rows, and how many different prompts they have.
        knows_seeds: whether the intervals contain the spread over seeds.
    """

    order: Sequence[int]
    numbers: Mapping[int, int]
    behind: Mapping[int, Interval]
    rows: int
    prompts: int
    knows_seeds: bool

    def lines(self) -> list[str]:
        """First against second, who else cannot be told from the first, what intervals cover."""
        second = self.behind.get(self.order[1])
        if second is None:
            return []
        trial = self.numbers[self.order[1]]
        ahead = f"The best is {abs(second.estimate):.4f} nats "
        ahead += f"{'ahead of' if second.estimate >= 0 else 'behind'} the next (trial {trial}), "
        ahead += f"95% interval {second.low:.4f} to {second.high:.4f}: "
        ahead += "more than chance." if second.excludes_zero else "not distinguishable."
        return [ahead, *self._alike(), self._covered(), *few_rows(self.rows, self.prompts)]

    def _alike(self) -> list[str]:
        """The others that cannot be told from the first."""
        others = [each for each in self.order[2:] if each in self.behind]
        alike = [each for each in others if not self.behind[each].excludes_zero]
        if not alike:
            return []
        shown = ", ".join(str(self.numbers[config]) for config in alike[:_SHOWN])
        more = f" and {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else ""
        return [f"Not distinguishable from the best either: trial {shown}{more}."]

    def _covered(self) -> str:
        rows = f"rows like these {self.rows:,}"
        if self.knows_seeds:
            return f"Intervals cover other {rows} and other seeds."
        return (
            f"Intervals cover other {rows}, and not other seeds: each config was trained with one, "
            "and another may turn the order round. sweep.repeats=3 sweep.finalists=3, added to the "
            "same command, gives further seeds to the best three."
        )


def compare(history: History, folder: RunFolder) -> Comparison | None:
    """Compare every ranked config with the first, by the losses of each evaluation row.

    The seeds' part of an interval is pooled over all configs with repeats, since two or three say
    little about their own spread. The rows' part is that of the mean over a config's repeats, so
    the noise of single rows in single seeds counts in both: intervals are rather too wide.

    None if the trials are not ranked by eval_loss, if nothing can be compared, if the rows' losses
    were not kept (older versions), or if there are too few prompts for an interval.
    """
    ranks = config_ranks(history)
    prompts = row_losses.prompts(folder) if len(ranks) > 1 else None
    if prompts is None or history.metric != "eval_loss":
        return None
    order = sorted(ranks, key=ranks.__getitem__)
    first = _mean_rows(history, folder, order[0], prompts)
    count = len(np.unique(prompts))
    if first is None or count < FEWEST_PROMPTS:
        return None
    values = completed_values(history)
    spread = _spread_of_seeds(values)
    tokens = by_prompt(first[1], prompts)
    behind = {}
    for config in order[1:]:
        other = _mean_rows(history, folder, config, prompts)
        if other is None or not np.array_equal(other[1], first[1]):
            continue
        estimate, part = ratio(by_prompt(other[0] - first[0], prompts), tokens)
        parts = [part]
        if spread is not None:
            parts.append(_seeds(spread, values[order[0]], values[config]))
        behind[config] = interval(estimate, parts)
    return Comparison(
        order=order,
        numbers={config: _number(history, config) for config in order},
        behind=behind,
        rows=len(prompts),
        prompts=count,
        knows_seeds=spread is not None,
    )


def _mean_rows(
    history: History, folder: RunFolder, config: int, prompts: Array
) -> tuple[Array, Array] | None:
    """Sums of token losses, the mean over a config's completed repeats, and tokens; both [rows]."""
    repeats = [each for each in history.repeats(config) if each.state is State.COMPLETED]
    found = [row_losses.of_trial(folder, history, record) for record in repeats]
    known = [rows for rows in found if rows is not None and len(rows.sums) == len(prompts)]
    if len(known) < len(found) or not known:
        return None
    return np.mean([rows.sums for rows in known], axis=0), known[0].tokens


def _spread_of_seeds(values: Mapping[int, Sequence[float]]) -> Part | None:
    """The variance of a value over seeds, pooled over every config; None without repeats."""
    repeated = [group for group in values.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if not freedom:
        return None
    variance = sum(statistics.variance(group) * (len(group) - 1) for group in repeated) / freedom
    return Part(variance=variance, freedom=freedom)


def _seeds(spread: Part, first: Sequence[float], second: Sequence[float]) -> Part:
    """What the seeds add to the variance of the difference of two configs' means."""
    share = 1 / len(first) + 1 / len(second)
    return Part(variance=spread.variance * share, freedom=spread.freedom)


def _number(history: History, config: int) -> int:
    return min(record.number for record in history.repeats(config))
