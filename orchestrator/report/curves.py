"""Learning curves for the page: the evaluations of each trial, and its training loss thinned."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results.trials_csv import Row
from sweeps.storage.run_folder import RunFolder

MOST_POINTS = 100  # of a training curve
_MOST_ROWS = 1000  # of metrics.jsonl that are read: every second, third, ... of a longer one
_WINDOW = 1 / 20  # of a training curve's rows: what one smoothed point is the mean of
_ABOVE_BASE = 0.1  # of the fall below the base model: how far above it the scale goes

Scale = tuple[float, float]
Points = tuple[tuple[int, float], ...]  # (examples, loss)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial's curve.

    Attributes:
        place: of a completed trial among them, from 0 (the best) to 1; else None.
        points: (examples, value), examples ascending.
    """

    row: Row
    place: float | None
    points: Points


def places(rows: Sequence[Row]) -> dict[int, float]:
    """By number, the place of each completed trial among them: 0 for the best, 1 for the last."""
    completed = [row.number for row in rows if row.rank is not None]
    return {number: i / max(1, len(completed) - 1) for i, number in enumerate(completed)}


def evaluations(history: History, rows: Sequence[Row]) -> list[Curve]:
    """The ranked metric of each trial at its evaluations, from the base model's value on."""
    base = history.base
    first = [] if base is None or history.metric not in base.metrics else [(0, base)]
    place = places(rows)
    found = []
    for row in rows:
        reports = history.trials[row.key].reports
        measured = [(reports[index].examples, reports[index]) for index in sorted(reports)]
        points = tuple(
            (examples, shortened(report.metrics[history.metric]))
            for examples, report in [*first, *measured]
        )
        if measured:
            found.append(Curve(row=row, place=place.get(row.number), points=points))
    return found


def training(folder: RunFolder, rows: Sequence[Row]) -> list[Curve]:
    """The training loss of each trial, smoothed and thinned to `MOST_POINTS`."""
    place = places(rows)
    curves = [
        Curve(row=row, place=place.get(row.number), points=training_points(folder.metrics(row.key)))
        for row in rows
    ]
    return [curve for curve in curves if curve.points]


def training_points(path: Path) -> Points:
    """(examples, loss) of a metrics.jsonl: means over a window, at most `MOST_POINTS` of them.

    Rows that cannot be read, and losses that are not finite, are left out. If a trial went on from
    an older checkpoint, the later row for the same examples counts.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return ()
    found: dict[int, float] = {}
    for line in lines[:: math.ceil(len(lines) / _MOST_ROWS) or 1]:
        try:
            row = json.loads(line)
            examples, loss = int(row["examples"]), float(row["loss"])
        except (ValueError, TypeError, KeyError, OverflowError):
            continue
        if math.isfinite(loss):
            found[examples] = loss
    return thinned(smoothed(sorted(found.items())))


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Each point's mean with its neighbours, as many on both sides: fewer towards the ends."""
    most = int(len(points) * _WINDOW / 2)
    sums = [0.0, *accumulate(value for _, value in points)]
    means = []
    for i, (x, _) in enumerate(points):
        half = min(most, i, len(points) - 1 - i)
        means.append((x, (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)))
    return means


def thinned(points: Sequence[tuple[int, float]]) -> Points:
    """At most `MOST_POINTS` of the points, evenly spread, the first and the last among them."""
    last, most = len(points) - 1, min(len(points), MOST_POINTS)
    picked = [points[round(i * last / max(1, most - 1))] for i in range(most)]
    return tuple((x, shortened(y)) for x, y in picked)


def shortened(number: float) -> float:
    """A number of five digits: more are not seen, and take room."""
    return float(f"{number:.5g}")


def curves_scale(history: History) -> Scale | None:
    """The lowest and the highest value of learning curves; None if nothing was measured.

    Trials that diverged or failed do not count.
    """
    return _scale(
        history,
        [
            report.metrics[history.metric]
            for record in history.trials.values()
            if record.state not in (State.DIVERGED, State.FAILED)
            for report in record.reports.values()
        ],
    )


def values_scale(history: History, rows: Sequence[Row]) -> Scale | None:
    """The lowest and the highest value of completed trials; None if none is."""
    return _scale(
        history, [row.value for row in rows if row.rank is not None and row.value is not None]
    )


def _scale(history: History, measured: Iterable[float]) -> Scale | None:
    """Both ends with a margin. What is far on the bad side of the base model is cut off.

    One such value would press all others into a line.
    """
    values = [value * history.sign for value in measured]
    if not values:
        return None
    low, high = min(values), max(values)
    base = history.base.metrics.get(history.metric) if history.base else None
    if base is not None and (signed := base * history.sign) > low:
        high = min(high, signed + _ABOVE_BASE * (signed - low))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin
    return (low, high) if history.sign > 0 else (-high, -low)
