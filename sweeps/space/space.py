"""A search space: its dimensions, which of them are active, and every combination in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Label = None | bool | int | float | str  # what Optuna takes as a categorical choice


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of some values. A value may be a mapping: its keys are then set together."""

    name: str
    options: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Label, ...]:
        return tuple(label(option) for option in self.options)

    def option(self, chosen: Label) -> Any:
        return self.options[self.labels.index(chosen)]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Any number between `low` and `high`, both included."""

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        return (self.low, self.high)

    @property
    def labels(self) -> Sequence[Label] | None:
        """Every value, if they can be counted."""
        return range(int(self.low), int(self.high) + 1) if self.integer else None


Dimension = Choice | Interval


@dataclass(frozen=True)
class Condition:
    """Holds if config key `key` has one of `values`."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """All dimensions, a condition's key before what depends on it.

    `fixed` gives the base config's value of a key that a condition asks for and nothing searches.
    `notes` say what the command line took out of the space of the sweep's file.
    """

    dimensions: tuple[Dimension, ...]
    when: Mapping[str, Condition] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_continuous(self) -> bool:
        """Whether some dimension has more values than can be counted."""
        return any(dimension.labels is None for dimension in self.dimensions)

    @property
    def is_conditional(self) -> bool:
        return bool(self.when)

    def walk(self, pick: Callable[[Dimension], Label]) -> dict[str, Label]:
        """Ask `pick` for each dimension that is active, given what was picked before."""
        picked: dict[str, Label] = {}
        for dimension in self.dimensions:
            if self._active(dimension, self.values(picked)):
                picked[dimension.name] = pick(dimension)
        return picked

    def values(self, picked: Mapping[str, Label]) -> dict[str, Any]:
        """The config keys that `picked` sets, in the order of the dimensions."""
        values: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.name not in picked:
                continue
            chosen = picked[dimension.name]
            option = dimension.option(chosen) if isinstance(dimension, Choice) else chosen
            values.update(_settings(dimension, option))
        return values

    def values_by_key(self) -> dict[str, list[Any]]:
        """Config key -> every value that it may get; the bounds of an interval."""
        found: dict[str, list[Any]] = {}
        for dimension in self.dimensions:
            if isinstance(dimension, Interval):
                found[dimension.name] = [dimension.low, dimension.high]
                continue
            for option in dimension.options:
                for key, value in _settings(dimension, option).items():
                    found.setdefault(key, []).append(value)
        return found

    def over(self, keys: Collection[str]) -> Space:
        """The part of the space that sets these keys, or keys below them, or decides if it does."""
        kept = {
            each.name
            for each in self.dimensions
            if any(key == k or key.startswith(f"{k}.") for key in set_by(each) for k in keys)
        }
        for each in reversed(self.dimensions):  # a condition's key comes before what depends on it
            asked = {self.when[name].key for name in kept if name in self.when}
            if asked & set(set_by(each)):
                kept.add(each.name)
        return replace(self, dimensions=tuple(d for d in self.dimensions if d.name in kept))

    def ends(self) -> Iterator[dict[str, Any]]:
        """The values of every combination, of an interval only its two ends."""
        counted = tuple(
            each if isinstance(each, Choice) else Choice(name=each.name, options=each.ends)
            for each in self.dimensions
        )
        space = replace(self, dimensions=counted)
        return (space.values(picked) for picked in space.grid())

    def grid(self) -> Iterator[dict[str, Label]]:
        """Every combination in the order in which it is written, the first dimension outermost."""
        assert not self.is_continuous
        yield from self._grid(0, {})

    def size(self) -> int | None:
        """How many different configs there are; None if they cannot be counted."""
        return None if self.is_continuous else self._count(0, {})

    def planned(self, trials: int | None) -> int | None:
        """How many configs a sweep tries if it stops after `trials`; None if neither bounds it."""
        return min((count for count in (self.size(), trials) if count), default=None)

    def _count(self, depth: int, picked: dict[str, Label]) -> int:
        """Configs from this dimension on; only what a condition asks for is gone through."""
        if depth == len(self.dimensions):
            return 1
        dimension = self.dimensions[depth]
        if not self._active(dimension, self.values(picked)):
            return self._count(depth + 1, picked)
        labels = dimension.labels or ()
        asked = {condition.key for condition in self.when.values()}
        if asked.isdisjoint(set_by(dimension)):
            many = labels.stop - labels.start if isinstance(labels, range) else len(labels)
            return many * self._count(depth + 1, picked)
        return sum(self._count(depth + 1, {**picked, dimension.name: each}) for each in labels)

    def _grid(self, depth: int, picked: dict[str, Label]) -> Iterator[dict[str, Label]]:
        if depth == len(self.dimensions):
            yield dict(picked)
            return
        dimension = self.dimensions[depth]
        if not self._active(dimension, self.values(picked)):
            yield from self._grid(depth + 1, picked)
            return
        for chosen in dimension.labels or ():
            yield from self._grid(depth + 1, {**picked, dimension.name: chosen})

    def _active(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        condition = self.when.get(dimension.name)
        if condition is None:
            return True
        return values.get(condition.key, self.fixed.get(condition.key)) in condition.values


def label(option: Any) -> Label:
    """How Optuna and the ledger name an option: itself, or compact JSON if it has parts."""
    if option is None or isinstance(option, bool | int | float | str):
        return option
    return json.dumps(option, separators=(",", ":"))


def set_by(dimension: Dimension) -> tuple[str, ...]:
    """The config keys that a dimension sets."""
    if isinstance(dimension, Choice) and isinstance(dimension.options[0], Mapping):
        mappings = [option for option in dimension.options if isinstance(option, Mapping)]
        return tuple(dict.fromkeys(key for option in mappings for key in option))
    return (dimension.name,)


def _settings(dimension: Dimension, option: Any) -> Mapping[str, Any]:
    """The config keys that one of a dimension's options sets, and their values."""
    return option if isinstance(option, Mapping) else {dimension.name: option}
