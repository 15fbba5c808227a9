"""Simulates how often the 95% intervals of `sweeps.results.intervals` hold what they estimate.

    python -m benchmarks.coverage

One thread, about a minute. Two configs are fixed beforehand, and their losses on evaluation rows
drawn again and again, 4,000 times for each line. As in real sweeps (300 rows of sweep=lr_grid on
the embedded model) rows are of unlike length, the two losses of a row agree, and their difference
is skewed, has heavier tails than a normal one and falls with the row's length: skew 1.4 and excess
kurtosis 3 here, 0.7 and 2 there. Rows that share a prompt share 40% of the variance. `lengths` is
the standard deviation of log tokens: 0.3 as for docstrings, 1.0 as for chats. `linearised` is the
interval by the linearised variance, with as many degrees of freedom as prompts less one.

The last lines draw seeds, too: three of each config, whose losses differ by as much as the two do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from sweeps.results.intervals import Part, interval, ratio

Array = np.ndarray[Any, Any]

REPEATS = 4000
ROWS = (10, 20, 50, 100, 300, 1000)
_TRUTH = 4_000_000  # rows from which the true difference is taken
_TOKENS = 40  # median of a row
_GAP, _SLOPE, _NOISE = 0.05, -0.03, 0.09  # nats a token: of the difference, at a row's length
_SHARED = 0.4  # of the noise's variance, among rows of one prompt


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A kind of data: how unlike the lengths are, and rows with the same prompt, on average."""

    lengths: float
    rows_per_prompt: float


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of the intervals that held the truth."""

    jackknife: float
    linearised: float
    prompts: float  # on average


SETTINGS = tuple(
    Setting(lengths=lengths, rows_per_prompt=shared)
    for lengths, shared in ((0.3, 1.0), (0.7, 1.5), (1.0, 1.0), (1.0, 3.0))
)


def drawn(random: np.random.Generator, setting: Setting, rows: int) -> tuple[Array, Array, Array]:
    """Draw evaluation rows: difference of token losses, tokens, number of the prompt; [rows]."""
    starts = random.random(rows) < 1 / setting.rows_per_prompt
    starts[0] = True
    prompts = np.cumsum(starts) - 1
    tokens = np.maximum(1, np.rint(_TOKENS * np.exp(random.normal(0, setting.lengths, rows))))
    own, shared = _skewed(random, rows), _skewed(random, rows)[prompts]
    noise = np.sqrt(1 - _SHARED) * own * (_TOKENS / tokens) ** 0.25 + np.sqrt(_SHARED) * shared
    each = _GAP + _SLOPE * np.log(tokens / _TOKENS) + _NOISE * noise
    return each * tokens, tokens, prompts


def _skewed(random: np.random.Generator, count: int) -> Array:
    """Gamma, with mean 0 and variance 1."""
    return (random.gamma(2.0, 1.0, count) - 2.0) / np.sqrt(2.0)


def coverage(setting: Setting, rows: int, *, repeats: int, seed: int = 0) -> Coverage:
    """Draw `repeats` times `rows` rows, and count the intervals that hold the true difference."""
    random = np.random.default_rng([seed, rows])
    truth = _truth(setting)
    held, counts = [], []
    for _ in range(repeats):
        losses, tokens, prompts = drawn(random, setting, rows)
        sums, sizes = np.bincount(prompts, losses), np.bincount(prompts, tokens)
        estimate, part = ratio(sums, sizes)
        half = interval(estimate, [part]).half
        plain = _linearised(sums, sizes, estimate)
        held.append((abs(estimate - truth) <= half, abs(estimate - truth) <= plain))
        counts.append(len(sums))
    ours, other = np.mean(held, axis=0)
    return Coverage(jackknife=float(ours), linearised=float(other), prompts=float(np.mean(counts)))


def with_seeds(setting: Setting, rows: int, *, repeats: int, spread: float = _GAP) -> float:
    """The same with three seeds of each config, whose losses have this standard deviation."""
    random = np.random.default_rng([1, rows])
    truth = _truth(setting)
    held = []
    for _ in range(repeats):
        losses, tokens, prompts = drawn(random, setting, rows)
        seeds = random.normal(0, spread, (2, 3))
        estimate, part = ratio(np.bincount(prompts, losses), np.bincount(prompts, tokens))
        estimate += float(seeds[1].mean() - seeds[0].mean())
        variance = float(seeds.var(axis=1, ddof=1).mean())
        parts = [part, Part(variance=variance * 2 / 3, freedom=4)]
        held.append(abs(estimate - truth) <= interval(estimate, parts).half)
    return float(np.mean(held))


@cache
def _truth(setting: Setting) -> float:
    losses, tokens, _ = drawn(np.random.default_rng(2), setting, _TRUTH)
    return float(losses.sum() / tokens.sum())


def _linearised(sums: Array, sizes: Array, estimate: float) -> float:
    count = len(sums)
    if count < 2:
        return float("inf")
    variance = ((sums - estimate * sizes) ** 2).sum() / sizes.sum() ** 2 * count / (count - 1)
    return float(stats.t.ppf(0.975, count - 1) * np.sqrt(variance))


def lines(repeats: int = REPEATS) -> Iterator[str]:
    """The table, a line at a time."""
    yield "lengths  rows/prompt  rows  prompts  coverage  linearised"
    for setting in SETTINGS:
        for rows in ROWS:
            found = coverage(setting, rows, repeats=repeats)
            yield (
                f"{setting.lengths:7.1f}  {setting.rows_per_prompt:11.1f}  {rows:4d}  "
                f"{found.prompts:7.0f}  {found.jackknife:8.1%}  {found.linearised:10.1%}"
            )
    for rows in (100, 300, 1000):
        held = with_seeds(SETTINGS[1], rows, repeats=repeats)
        yield f"rows and three seeds each, {rows} rows: {held:.1%}"


def main() -> None:
    began = time.monotonic()
    for line in lines():
        print(line, flush=True)
    print(f"{REPEATS:,} repeats a line; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
