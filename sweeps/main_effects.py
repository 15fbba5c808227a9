"""A least-squares fit in which every knob adds a part of its own to the loss (main effects)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

MAX_ROUNDS = 100

Levels = Sequence[Sequence[int]]  # of one knob: the trials that had each of its values


def adjusted_means(
    members: Mapping[str, Levels], losses: Mapping[int, float]
) -> dict[str, list[float | None]]:
    """Per knob and level, the mean loss had the other knobs been tried alike with every level.

    Equal to the plain means on a full grid. A knob takes no part in a trial where it was not
    active; a level without trials has no mean. Fitted by backfitting (Buja, Hastie, Tibshirani
    1989): round by round, each level takes the mean of what the other knobs leave over.
    """
    left = dict(losses)
    parts = {name: [0.0] * len(levels) for name, levels in members.items()}
    tolerance = 1e-9 * (1 + max((abs(loss) for loss in losses.values()), default=0.0))
    for _ in range(MAX_ROUNDS):
        moves = [_take(left, parts[name], levels) for name, levels in members.items()]
        if max(moves, default=0.0) < tolerance:
            break
    return {name: _centred(parts[name], levels, losses) for name, levels in members.items()}


def _take(left: dict[int, float], parts: list[float], levels: Levels) -> float:
    """Move each level's mean of `left` into its part; the largest move."""
    largest = 0.0
    for index, numbers in enumerate(levels):
        if not numbers:
            continue
        move = statistics.fmean(left[number] for number in numbers)
        parts[index] += move
        largest = max(largest, abs(move))
        for number in numbers:
            left[number] -= move
    return largest


def _centred(
    parts: Sequence[float], levels: Levels, losses: Mapping[int, float]
) -> list[float | None]:
    """A knob's parts as losses: moved so that they average what its own trials averaged."""
    count = sum(len(numbers) for numbers in levels)
    if not count:
        return [None] * len(levels)
    total = sum(losses[number] for numbers in levels for number in numbers)
    explained = sum(part * len(numbers) for part, numbers in zip(parts, levels, strict=True))
    offset = (total - explained) / count
    return [offset + part if numbers else None for part, numbers in zip(parts, levels, strict=True)]
