"""The search space: Hydra's sweep grammar read into dimensions, checked, and walked.

Hydra's parser accepts reversed intervals, nan and doubled choices in silence, so all that is checked
here; every problem of a space is found in one pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException

from sweeps.errors import Problem

Label = None | bool | int | float | str  # what Optuna takes as a categorical choice
GRAMMAR = "choice(a, b), range(1, 9, 2), interval(0.0, 0.3) or tag(log, interval(1e-5, 1e-2))"


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


Dimension = Choice | Interval


@dataclass(frozen=True)
class Condition:
    """Holds where config key `key` has one of `values`."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """All dimensions, a condition's key before what depends on it.

    `fixed` gives the base config's value of a key that a condition asks for and nothing searches.
    """

    dimensions: tuple[Dimension, ...]
    when: Mapping[str, Condition] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_continuous(self) -> bool:
        return any(isinstance(dimension, Interval) for dimension in self.dimensions)

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
            values.update(option if isinstance(option, Mapping) else {dimension.name: option})
        return values

    def grid(self) -> Iterator[dict[str, Label]]:
        """Every combination in the order in which it is written, the first dimension outermost."""
        assert not self.is_continuous
        yield from self._grid(0, {})

    def size(self, limit: int = 10_000) -> int | None:
        """How many different configs there are; None where that is more than `limit`."""
        if self.is_continuous:
            return None
        count = 0
        for count, _ in enumerate(self.grid(), start=1):  # noqa: B007
            if count > limit:
                return None
        return count

    def _grid(self, depth: int, picked: dict[str, Label]) -> Iterator[dict[str, Label]]:
        if depth == len(self.dimensions):
            yield dict(picked)
            return
        dimension = self.dimensions[depth]
        if not self._active(dimension, self.values(picked)):
            yield from self._grid(depth + 1, picked)
            return
        assert isinstance(dimension, Choice)
        for chosen in dimension.labels:
            yield from self._grid(depth + 1, {**picked, dimension.name: chosen})

    def _active(self, dimension: Dimension, values: Mapping[str, Any]) -> bool:
        condition = self.when.get(dimension.name)
        if condition is None:
            return True
        return values.get(condition.key, self.fixed.get(condition.key)) in condition.values


def label(option: Any) -> Label:
    """How Optuna and the ledger name an option: itself, or compact JSON where it has parts."""
    if option is None or isinstance(option, bool | int | float | str):
        return option
    return json.dumps(option, separators=(",", ":"))


def parse_space(
    space: Mapping[str, Any], when: Mapping[str, str], problems: list[Problem]
) -> Space:
    """Read `sweep.space` and `sweep.when`; what is wrong is added to `problems`."""
    dimensions: dict[str, Dimension] = {}
    for name, expression in space.items():
        dimension = _dimension(str(name), expression, problems)
        if dimension is not None:
            dimensions[str(name)] = dimension
    _check_owners(dimensions, problems)
    conditions = {
        str(name): condition
        for name, text in when.items()
        if (condition := _condition(str(name), text, space, problems)) is not None
    }
    return Space(_ordered(dimensions, conditions, problems), conditions)


def set_by(dimension: Dimension) -> tuple[str, ...]:
    """The config keys that a dimension sets."""
    if isinstance(dimension, Choice) and isinstance(dimension.options[0], Mapping):
        return tuple(dict.fromkeys(key for option in dimension.options for key in option))
    return (dimension.name,)


def _dimension(name: str, expression: Any, problems: list[Problem]) -> Dimension | None:
    found: list[Problem] = []
    dimension: Dimension | None = None
    if isinstance(expression, Sequence) and not isinstance(expression, str):
        dimension = _choice(name, list(expression), found)
    else:
        sweep = _parse(name, expression, found)
        if isinstance(sweep, ChoiceSweep):
            dimension = _choice(name, list(sweep.list), found)
        elif isinstance(sweep, RangeSweep):
            dimension = _range(name, sweep, found)
        elif isinstance(sweep, IntervalSweep):
            dimension = _interval(name, sweep, found)
    problems.extend(
        Problem(key=f"sweep.space.{name}", value=expression, message=problem.message)
        for problem in found
    )
    return None if found else dimension


def _parse(name: str, expression: Any, found: list[Problem]) -> Sweep | None:
    try:
        override = OverridesParser.create().parse_override(f"key={expression}")
        value = override.value()
    except HydraException as error:
        reason = str(error).splitlines()[0]
        if "empty choice" in str(error):
            reason = "an empty choice has nothing to try"
        found.append(Problem(key=name, message=f"{reason}. Write {GRAMMAR}."))
        return None
    if isinstance(value, ChoiceSweep | IntervalSweep | RangeSweep):
        return value
    found.append(
        Problem(key=name, message=f"is one value, not something to search. Write {GRAMMAR}.")
    )
    return None


def _choice(name: str, options: list[Any], found: list[Problem]) -> Choice | None:
    options = [_plain(option) for option in options]
    if not options:
        found.append(Problem(key=name, message="an empty choice has nothing to try."))
        return None
    labels = [json.dumps(option, sort_keys=True) for option in options]
    doubled = sorted({text for text in labels if labels.count(text) > 1})
    if doubled:
        found.append(Problem(key=name, message=f"lists {', '.join(doubled)} twice; once is enough."))
    if any(isinstance(option, float) and not math.isfinite(option) for option in options):
        found.append(Problem(key=name, message="nan and inf are no values to train with."))
    kinds = {isinstance(option, Mapping) for option in options}
    if len(kinds) > 1:
        found.append(
            Problem(key=name, message="mixes mappings and single values; use one or the other.")
        )
    elif True in kinds and len({frozenset(option) for option in options}) > 1:
        found.append(
            Problem(key=name, message="every mapping of a choice must set the same keys.")
        )
    return Choice(name=name, options=tuple(options))


def _range(name: str, sweep: RangeSweep, found: list[Problem]) -> Choice | None:
    start, stop, step = sweep.start, sweep.stop, sweep.step
    assert start is not None and stop is not None
    if not all(math.isfinite(number) for number in (start, stop, step)) or step == 0:
        found.append(Problem(key=name, message="a range needs finite numbers and a step other than 0."))
        return None
    count = max(0, math.ceil(round((stop - start) / step, 9)))
    if not count:
        found.append(
            Problem(key=name, message=f"range({start}, {stop}, {step}) is empty; its end is left out.")
        )
        return None
    return Choice(name=name, options=tuple(start + index * step for index in range(count)))


def _interval(name: str, sweep: IntervalSweep, found: list[Problem]) -> Interval | None:
    low, high = sweep.start, sweep.end
    assert low is not None and high is not None
    unknown = sorted(set(sweep.tags) - {"log", "int"})
    integer = "int" in sweep.tags or (isinstance(low, int) and isinstance(high, int))
    log = "log" in sweep.tags
    if unknown:
        found.append(Problem(key=name, message=f"knows the tags log and int, not {unknown}."))
    if not (math.isfinite(low) and math.isfinite(high)):
        found.append(Problem(key=name, message="an interval needs two finite numbers."))
    elif low >= high:
        found.append(
            Problem(key=name, message=f"low {low:g} must be below high {high:g}; swap them?")
        )
    elif log and low <= 0:
        found.append(Problem(key=name, message=f"a log interval starts above 0, not at {low:g}."))
    elif integer and (low != int(low) or high != int(high)):
        found.append(Problem(key=name, message="an int interval needs whole bounds."))
    if found:
        return None
    cast = int if integer else float
    return Interval(name=name, low=cast(low), high=cast(high), log=log, integer=integer)


def _check_owners(dimensions: Mapping[str, Dimension], problems: list[Problem]) -> None:
    owner: dict[str, str] = {}
    for name, dimension in dimensions.items():
        for key in set_by(dimension):
            if key in owner:
                problems.append(
                    Problem(
                        key=f"sweep.space.{name}",
                        message=f"sets {key}, which {owner[key]} sets too; search it in one place.",
                    )
                )
            owner[key] = name


def _condition(
    name: str, text: Any, space: Mapping[str, Any], problems: list[Problem]
) -> Condition | None:
    key, sign, value = str(text).partition("=")
    where = f"sweep.when.{name}"
    if name not in space:
        problems.append(Problem(key=where, message="is not searched in sweep.space."))
        return None
    if not sign or not key:
        problems.append(
            Problem(key=where, value=text, message="is written key=value, or key=choice(a, b).")
        )
        return None
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}").value()
    except HydraException as error:
        problems.append(Problem(key=where, value=text, message=str(error).splitlines()[0]))
        return None
    options = parsed.list if isinstance(parsed, ChoiceSweep) else [parsed]
    return Condition(key, tuple(_plain(option) for option in options))


def _ordered(
    dimensions: Mapping[str, Dimension],
    when: Mapping[str, Condition],
    problems: list[Problem],
) -> tuple[Dimension, ...]:
    """As written, but each dimension after the one that its condition asks about."""
    setter = {key: name for name, dimension in dimensions.items() for key in set_by(dimension)}
    ordered: dict[str, Dimension] = {}

    def place(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circle = " -> ".join([*above, name])
            problems.append(Problem(key=f"sweep.when.{name}", message=f"goes in a circle: {circle}."))
            return
        if name in ordered or name not in dimensions:
            return
        if name in when and when[name].key in setter:
            place(setter[when[name].key], (*above, name))
        ordered.setdefault(name, dimensions[name])

    for name in dimensions:
        place(name, ())
    return tuple(ordered.values())


def _plain(option: Any) -> Any:
    """Without Hydra's own types, at any depth."""
    if isinstance(option, QuotedString):
        return option.text
    if isinstance(option, Mapping):
        return {_plain(key): _plain(value) for key, value in option.items()}
    if isinstance(option, list | tuple):
        return [_plain(item) for item in option]
    return option
