"""Tables of real fine-tuning results, read as panels: one model with every setting that was tried.

A table is a CSV file with a line for each trained setting: `model`, one or more of the columns in
`KEYS`, `repeat`, `status` (completed, diverged, not_listed) and `test_nll`; or one for each of its
evaluations, if it has the column `evaluation` (1, 2, ...). Repeats are averaged. A `not_listed`
setting is not in the grid; a diverged one is, without a loss.
"""

from __future__ import annotations

import csv
import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

RATE, RANK = "trainer.learning_rate", "peft.r"
# Column -> config key, and how its text is read.
KEYS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "learning_rate": (RATE, float),
    "lora_rank": (RANK, int),
    "lr_scheduler_type": ("trainer.lr_scheduler_type", str),
    "gradient_accumulation_steps": ("trainer.gradient_accumulation_steps", int),
    "optim": ("trainer.optim", str),
}
# What a search of the rate alone leaves as it is; of the other keys, the highest value.
_BASE: Mapping[str, Any] = {
    "trainer.lr_scheduler_type": "cosine",
    "trainer.gradient_accumulation_steps": 1,
    "trainer.optim": "adamw_torch",
}

Setting = tuple[tuple[str, Any], ...]  # config keys and values, in the order of KEYS


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a setting came to. `losses` are those of its evaluations, the last one the result.

    Attributes:
        losses: empty if it diverged.
    """

    losses: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One model: its grid of settings and what each came to."""

    model: str
    cells: Mapping[Setting, Cell]

    @property
    def best(self) -> float:
        return min(cell.losses[-1] for cell in self.cells.values() if cell.losses)

    @property
    def worst(self) -> float:
        return max(cell.losses[-1] for cell in self.cells.values() if cell.losses)

    def values(self, key: str) -> list[Any]:
        """The values of a key, in ascending order if they are numbers."""
        found = {value for setting in self.cells for name, value in setting if name == key}
        return sorted(found, key=lambda value: (isinstance(value, str), value))

    def between(self, low: float, high: float) -> Panel:
        """The panel with these learning rates alone."""
        cells = {s: cell for s, cell in self.cells.items() if low <= dict(s)[RATE] <= high}
        return replace(self, cells=cells)

    def usual(self, key: str) -> Any:
        """The value of a key that a search does not vary: the base config's, or the highest."""
        values = self.values(key)
        return _BASE[key] if _BASE.get(key) in values else values[-1]

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in next(iter(self.cells))]

    def nearest(self, values: Mapping[str, Any]) -> Setting:
        """The setting of the grid for what a search suggests; numbers on a log scale."""
        wanted = {key: values.get(key, self.usual(key)) for key in self.keys}

        def distance(setting: Setting) -> tuple[float, float]:
            there = dict(setting)
            others = [key for key in self.keys if key != RATE]
            apart = sum(_apart(there[key], wanted[key]) for key in others)
            return apart, _apart(there[RATE], wanted[RATE])

        return min(self.cells, key=distance)


def _apart(one: Any, other: Any) -> float:
    if isinstance(one, str):
        return float(one != other)
    return abs(math.log(one / other))


def read_panels(path: Path) -> list[Panel]:
    """The panels of a table, in its order."""
    losses: dict[str, dict[Setting, dict[int, list[float]]]] = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["status"] == "not_listed":
                continue
            there = losses[row["model"]].setdefault(_setting(row), defaultdict(list))
            if row["status"] == "completed":
                there[int(row.get("evaluation", 1))].append(float(row["test_nll"]))
    return [
        Panel(model=model, cells={setting: _cell(found) for setting, found in cells.items()})
        for model, cells in losses.items()
        if any(cells.values())
    ]


def _setting(row: Mapping[str, str]) -> Setting:
    return tuple((key, read(row[column])) for column, (key, read) in KEYS.items() if column in row)


def _cell(found: Mapping[int, Sequence[float]]) -> Cell:
    return Cell(losses=tuple(statistics.fmean(found[index]) for index in sorted(found)))


def with_curves(panels: Sequence[Panel], path: Path, evaluations: int) -> list[Panel]:
    """The panels with the losses of `evaluations` evaluations, from a table of digitised curves.

    A rank is left out if one of its rates has no curve. Where a curve cannot be read, since it lies
    on another, its difference to that of the lowest rate is interpolated, but not below the last.
    """
    points: dict[tuple[str, Setting], dict[int, float]] = defaultdict(dict)
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            points[row["model"], _setting(row)][int(row["step"])] = float(row["test_nll"])
    found = []
    for panel in panels:
        cells = {}
        for rank in panel.values(RANK):
            own = {s: cell for s, cell in panel.cells.items() if dict(s)[RANK] == rank}
            curves = {s: points.get((panel.model, s), {}) for s, cell in own.items() if cell.losses}
            if curves and all(len(curve) > 1 for curve in curves.values()):
                below = curves[min(curves)]
                cells |= {
                    s: replace(cell, losses=_losses(curves[s], below, evaluations))
                    if cell.losses
                    else cell
                    for s, cell in own.items()
                }
        if cells:
            found.append(Panel(model=panel.model, cells=cells))
    return found


def _losses(
    curve: Mapping[int, float], below: Mapping[int, float], evaluations: int
) -> tuple[float, ...]:
    last = max(curve)
    steps = [last * index / evaluations for index in range(1, evaluations + 1)]
    apart = {step: curve[step] - below[step] for step in curve if step in below}
    return tuple(max(_at(below, step) + _at(apart, step), curve[last]) for step in steps)


def _at(curve: Mapping[int, float], step: float) -> float:
    """Linear between two points, constant outside them."""
    steps = sorted(curve)
    place = bisect_left(steps, step)
    if place in (0, len(steps)):
        return curve[steps[min(place, len(steps) - 1)]]
    left, right = steps[place - 1], steps[place]
    share = (step - left) / (right - left)
    return curve[left] * (1 - share) + curve[right] * share
