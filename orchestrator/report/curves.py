"""Learning curves for the page: the evaluations of each trial, and its training loss thinned."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from orchestrator.report.view import Scale, scale_of, shortened
from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results.trials_csv import Row
from sweeps.storage.run_folder import RunFolder

MOST_POINTS = 100  # of a training curve
_MOST_ROWS = 1000  # of metrics.jsonl that are read: every second, third, ... of a longer one
_WINDOW = 1 / 20  # of a training curve's rows: what one smoothed point is the mean of

Points = tuple[tuple[int, float], ...]  # (examples, loss)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial's curve.

    Attributes:
        points: (examples, value), examples ascending.
    """

    row: Row
    points: Points


def evaluations(history: History, rows: Sequence[Row]) -> list[Curve]:
    """The ranked metric of each trial at its evaluations, from the base model's value on."""
    base = history.base
    first = [] if base is None or history.metric not in base.metrics else [(0, base)]
    found = []
    for row in rows:
        reports = history.trials[row.key].reports
        measured = [(reports[index].examples, reports[index]) for index in sorted(reports)]
        points = tuple(
            (examples, shortened(report.metrics[history.metric]))
            for examples, report in [*first, *measured]
        )
        if measured:
            found.append(Curve(row=row, points=points))
    return found


def training(folder: RunFolder, rows: Sequence[Row]) -> list[Curve]:
    """The training loss of each trial, smoothed and thinned to `MOST_POINTS`."""
    curves = [Curve(row=row, points=training_points(folder.metrics(row.key))) for row in rows]
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


def curves_scale(history: History) -> Scale | None:
    """The scale of learning curves, for which trials that diverged or failed do not count."""
    return scale_of(
        history,
        [
            report.metrics[history.metric]
            for record in history.trials.values()
            if record.state not in (State.DIVERGED, State.FAILED)
            for report in record.reports.values()
        ],
    )
