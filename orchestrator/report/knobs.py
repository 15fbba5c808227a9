"""What was searched, as the figures show it: each knob's name, values and kind of axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from orchestrator.report.text import cut, escaped, plain, value_text
from orchestrator.terminal.tables import heads
from sweeps.core.naming import trial_name
from sweeps.ledger.history import History
from sweeps.results.ranking import dimension_keys
from sweeps.results.trials_csv import Row
from sweeps.space.parser import space_of
from sweeps.space.space import Choice, Interval, is_number

Shown = float | int | str  # a number, or an escaped text

_LOG_FROM = 8  # times the smallest value: a choice of such numbers has a log axis
_MOST_LABEL = 28  # characters of a value on an axis


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A dimension that took more than one value.

    Attributes:
        name: of the dimension; `head` is its short form.
        keys: that it sets together.
        is_number: every value is a number; `is_log`: and its axis is logarithmic.
        is_choice: its values were listed, so that the axis shows each.
        values: the different ones that trials had; numbers ascending.
    """

    name: str
    head: str
    keys: tuple[str, ...]
    is_number: bool
    is_log: bool
    is_choice: bool
    values: tuple[Shown, ...]

    def of(self, row: Row) -> Shown | None:
        """A trial's value; None if the knob was not active in it."""
        if not all(key in row.values for key in self.keys):
            return None
        value = row.values[self.keys[0]]
        if self.is_number:
            return float(value) if isinstance(value, float) else int(value)
        if len(self.keys) > 1:
            name = trial_name({key: row.values[key] for key in self.keys})
            return plain(cut(name, _MOST_LABEL))
        return plain(value_text(self.keys[0], value, _MOST_LABEL))

    def kind(self, *, spaced: bool) -> BaseDistribution:
        """For a picture by Optuna: numbers at their distances if `spaced`, else one by one."""
        if self.is_number and (spaced or not self.is_choice):
            numbers = [float(value) for value in self.values]
            return FloatDistribution(min(numbers), max(numbers), log=self.is_log)
        return CategoricalDistribution(self.values)


def knobs_of(history: History, rows: Sequence[Row]) -> list[Knob]:
    """Every knob that took more than one value, in the order of the space."""
    dimensions = dimension_keys(history)
    found: list[Knob] = []
    searched = {dimension.name: dimension for dimension in space_of(history.spec).dimensions}
    for (name, keys), head in zip(dimensions.items(), heads(list(dimensions)), strict=True):
        known = [row.values[keys[0]] for row in rows if all(key in row.values for key in keys)]
        are_numbers = len(keys) == 1 and all(map(is_number, known))
        dimension = searched.get(name)
        is_log = are_numbers and min(known, default=0) > 0
        if isinstance(dimension, Interval):
            is_log = is_log and dimension.log
        else:
            is_log = is_log and max(known) >= _LOG_FROM * min(known)
        knob = Knob(
            name=name,
            head=escaped(head),
            keys=keys,
            is_number=are_numbers,
            is_log=is_log,
            is_choice=not isinstance(dimension, Interval),
            values=(),
        )
        values = tuple(dict.fromkeys(value for row in rows if (value := knob.of(row)) is not None))
        if are_numbers:
            values = tuple(sorted(values, key=float))
        elif isinstance(dimension, Choice) and len(keys) == 1:
            listed = [plain(value_text(name, each, _MOST_LABEL)) for each in dimension.options]
            values = tuple(dict.fromkeys([each for each in listed if each in values] + [*values]))
        if len(values) > 1:
            found.append(replace(knob, values=values))
    return found
