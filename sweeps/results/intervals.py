"""Says how far a loss, or the difference of two, may be off by chance: its 95% interval.

A loss is a ratio of sums over evaluation rows, of token losses y and of tokens n; so is the
difference of two losses on the same rows, with y the difference of a row's token losses. Rows that
share a prompt are alike, so they are drawn together: they are one cluster g.

    estimate = sum of y_g / N               N: the sum of n_g
    e_g      = y_g - estimate n_g
    variance = sum of (e_g / (N - n_g))^2
    half     = t quantile(97.5%, freedom) x sqrt(variance)
    freedom  = N^2 / (sum of n_g^2) - 1

The variance is the jackknife's that leaves out a cluster at a time: without g the estimate moves by
-e_g / (N - n_g). For ratios and regressions with clusters it is known as CR3 (Bell and McCaffrey,
Survey Methodology 28, 2002; MacKinnon, Nielsen and Webb, Journal of Applied Econometrics 38, 2023).
N^2 / sum of n_g^2 is the effective number of clusters that are not equally large (Kish, Survey
Sampling, 1965; Carter, Schnepel and Steigerwald, Review of Economics and Statistics 99, 2017).
`benchmarks.coverage` simulates how often these intervals hold what they estimate, and those of the
linearised variance, which was tried first and holds it less often with few or unlike rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FEWEST_PROMPTS = 10  # below that many clusters nothing was simulated, and no interval is given
FEW_PROMPTS = 100  # from here on the coverage is within 93% to 97% in all cases simulated
_QUANTILE = 0.975  # two-sided 95%


@dataclass(frozen=True, kw_only=True)
class Part:
    """A source of chance: the variance that it adds, and the degrees of freedom of that."""

    variance: float
    freedom: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its two-sided 95% interval, estimate +- half."""

    estimate: float
    half: float

    @property
    def low(self) -> float:
        return self.estimate - self.half

    @property
    def high(self) -> float:
        return self.estimate + self.half

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def by_prompt(values: Array, prompts: Array) -> Array:
    """Add up [rows] over the rows that share a prompt, [prompts]."""
    _, numbers = np.unique(prompts, return_inverse=True)
    return np.bincount(numbers, weights=values)


def ratio(sums: Array, tokens: Array) -> tuple[float, Part]:
    """Estimate `sums` over `tokens`, both [prompts], and the part that the draw of prompts has.

    The variance is infinite with a single prompt.
    """
    total = tokens.sum()
    estimate = float(sums.sum() / total)
    freedom = float(total**2 / (tokens**2).sum()) - 1
    if len(tokens) < 2:
        return estimate, Part(variance=math.inf, freedom=0.0)
    moved = (sums - estimate * tokens) / (total - tokens)
    return estimate, Part(variance=float((moved**2).sum()), freedom=freedom)


def interval(estimate: float, parts: Sequence[Part]) -> Interval:
    """The interval of an estimate that chance moves by several independent parts.

    Their degrees of freedom are put together as by Satterthwaite (Biometrics Bulletin 2, 1946).
    """
    variance = sum(part.variance for part in parts)
    if not variance:
        return Interval(estimate=estimate, half=0.0)
    if not math.isfinite(variance):
        return Interval(estimate=estimate, half=math.inf)
    from scipy import special  # takes a tenth of a second, which only a comparison is worth

    known = [part for part in parts if part.variance]
    freedom = variance**2 / sum(part.variance**2 / part.freedom for part in known)
    half = float(special.stdtrit(freedom, _QUANTILE)) * math.sqrt(variance)
    return Interval(estimate=estimate, half=half)


def of_loss(sums: Array, tokens: Array, prompts: Array) -> Interval:
    """The interval of one loss, from [rows] sums of token losses and tokens."""
    estimate, part = ratio(by_prompt(sums, prompts), by_prompt(tokens, prompts))
    return interval(estimate, [part])


def few_rows(rows: int, prompts: int) -> list[str]:
    """A line if there are too few evaluation rows to tell trials apart that are close."""
    if prompts >= FEW_PROMPTS:
        return []
    shared = f" with {prompts:,} different prompts" if prompts < rows else ""
    so = "intervals are wide, and close trials cannot be told apart"
    if prompts < FEWEST_PROMPTS:
        so = "no interval is given, and close trials cannot be told apart"
    return [
        f"Only {rows:,} rows to evaluate on{shared}: {so}. More rows help: a higher "
        "data.eval_fraction, or data.eval_path"
    ]


def shared_text(shared: int, rows: int) -> str:
    """Say that evaluation rows share a prompt with training rows, and how to keep them apart."""
    return (
        f"{shared:,} of {rows:,} evaluation rows have a prompt that is also trained on: eval_loss "
        "measures memory as well. data.shared_prompts=move trains on them, "
        "data.shared_prompts=drop leaves them out"
    )
