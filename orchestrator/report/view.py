"""What the figures of a page share: the trials, their labels and colours, the scale of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.report.text import MOST_NAME, cut, escaped, plain
from sweeps.core.naming import trial_name
from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results.trials_csv import Row

Scale = tuple[float, float]

BEST = "#16a34a"
COMPLETED = "59,130,246"  # red, green, blue; a worse trial is paler, on light and dark alike
GREY = "#8b949e"
COLOURS: Mapping[str, str] = {
    State.RUNNING: "#0891b2",
    State.PRUNED: GREY,
    State.STOPPED: GREY,
    State.DIVERGED: "#d97706",
    State.FAILED: "#dc2626",
}
SYMBOLS = {
    State.PRUNED: "x-thin",
    State.STOPPED: "square-open",
    State.DIVERGED: "triangle-up",
    State.FAILED: "x",
}
_ABOVE_BASE = 0.1  # of the fall below the base model: how far above it the scale goes


@dataclass(frozen=True, kw_only=True)
class View:
    """The trials of a page as its figures show them.

    Attributes:
        rows: best first.
        metric: its name, escaped.
        best: number of the best trial.
        scale: from the lowest to the highest value of completed trials; None if none is.
        labels: number and name of each trial, escaped, by its number.
        places: of each completed trial, by its number: 0 for the best, 1 for the last.
    """

    rows: Sequence[Row]
    metric: str
    best: int | None
    scale: Scale | None
    is_minimized: bool
    labels: Mapping[int, str]
    places: Mapping[int, float]

    @classmethod
    def of(cls, history: History, rows: Sequence[Row], best: int | None) -> View:
        completed = [row for row in rows if row.rank is not None]
        last = max(1, len(completed) - 1)
        return cls(
            rows=rows,
            metric=escaped(history.metric),
            best=best,
            scale=scale_of(history, [row.value for row in completed if row.value is not None]),
            is_minimized=history.direction == "minimize",
            labels={row.number: _label(row) for row in rows},
            places={row.number: i / last for i, row in enumerate(completed)},
        )

    @property
    def completed(self) -> list[Row]:
        return [row for row in self.rows if row.number in self.places]

    def is_best(self, row: Row) -> bool:
        return row.number == self.best

    def colour(self, row: Row) -> str:
        if self.is_best(row):
            return BEST
        place = self.places.get(row.number)
        return shade(place) if place is not None else COLOURS.get(row.status, GREY)

    def within(self, value: float) -> float:
        """`value`, or the edge of the scale if it lies beyond."""
        return within(value, self.scale)


def shade(place: float) -> str:
    """The colour of a completed trial; `place` is 0 for the best and 1 for the worst."""
    return f"rgba({COMPLETED},{0.9 - 0.65 * place:.2f})"


def shortened(number: float) -> float:
    """A number of five digits: more are not seen, and take room."""
    return float(f"{number:.5g}")


def within(value: float, scale: Scale | None) -> float:
    """`value` in five digits, or the edge of the scale if it lies beyond."""
    return shortened(value if scale is None else min(max(value, scale[0]), scale[1]))


def scale_of(history: History, measured: Iterable[float]) -> Scale | None:
    """The lowest and the highest value with a margin; None if nothing was measured.

    What is far on the bad side of the base model is cut off: one such value would press all others
    into a line.
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


def _label(row: Row) -> str:
    name = trial_name(row.values)  # which masks secrets
    return f"trial {row.number}: {plain(cut(name, MOST_NAME))}"
