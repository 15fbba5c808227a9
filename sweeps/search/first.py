"""Reads `sweep.first`: partial configs that are tried before the search's own suggestions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.config.spec import SearchSpec
from sweeps.core.errors import Problem, nearest
from sweeps.space.parser import lookup
from sweeps.space.space import Choice, Dimension, Label, Space, label, set_by


def first_picks(spec: SearchSpec, space: Space) -> list[dict[str, Label]]:
    """The entries of a `sweep.first` without problems, as Optuna names their values."""
    return [_picked(entry, space) for entry in spec.first]


def first_problems(spec: SearchSpec, space: Space) -> list[Problem]:
    """What is wrong with `sweep.first`."""
    if spec.first and spec.search == "grid":
        message = (
            "a grid is tried whole, in the order in which it is written: put these values first "
            "in sweep.space, or take sweep.search=tpe or random."
        )
        return [Problem(key="sweep.first", message=message)]
    return [
        problem
        for number, entry in enumerate(spec.first)
        for problem in _problems(f"sweep.first[{number}]", entry, space)
    ]


def fitting(first: Sequence[Mapping[str, Any]], space: Space) -> list[dict[str, Any]]:
    """The entries that fit a space, without the keys that it does not search."""
    names = {dimension.name for dimension in space.dimensions}
    kept = [{key: value for key, value in entry.items() if key in names} for entry in first]
    return [entry for entry in kept if entry and not _problems("", entry, space)]


def picks_of(config: Mapping[str, Any], space: Space) -> dict[str, Label] | None:
    """What a search would have picked to come to a trial's config, as Optuna names it.

    None if the space does not hold it. Keys that are not searched are not looked at.
    """

    def pick(dimension: Dimension) -> Label:
        if isinstance(dimension, Choice):
            for option in dimension.options:
                chosen = option if isinstance(option, Mapping) else {dimension.name: option}
                if all(_same(value, lookup(config, key)) for key, value in chosen.items()):
                    return label(option)
        elif _unfit(dimension, value := lookup(config, dimension.name)) is None:
            return _label(dimension, value)
        raise _NotHeldError

    try:
        return space.walk(pick)
    except _NotHeldError:
        return None


class _NotHeldError(Exception):
    """A dimension does not hold a value."""


def _picked(entry: Mapping[str, Any], space: Space) -> dict[str, Label]:
    kinds = {dimension.name: dimension for dimension in space.dimensions}
    return {name: _label(kinds[name], value) for name, value in entry.items()}


def _label(dimension: Dimension, value: Any) -> Label:
    if isinstance(dimension, Choice):
        return label(next(option for option in dimension.options if _same(option, value)))
    return int(value) if dimension.integer else float(value)


def _problems(key: str, entry: Mapping[str, Any], space: Space) -> list[Problem]:
    kinds = {dimension.name: dimension for dimension in space.dimensions}
    if not entry:
        return [Problem(key=key, message="is empty: name a searched key and its value.")]
    found = []
    for name, value in entry.items():
        if name not in kinds:
            found.append(_unsearched(key, name, kinds))
        elif message := _unfit(kinds[name], value):
            found.append(Problem(key=f"{key}.{name}", value=value, message=message))
    return found or _inactive(key, _picked(entry, space), space)


def _unsearched(key: str, name: str, kinds: Mapping[str, Dimension]) -> Problem:
    linked = next((each.name for each in kinds.values() if name in set_by(each)), None)
    if linked:
        message = f"is set by sweep.space.{linked}: give one of its mappings, as {linked}: {{...}}."
    else:
        message = f"is not searched. sweep.space has {', '.join(kinds) or 'no key'}."
    return Problem(key=f"{key}.{name}", message=message, nearest=nearest(name, kinds))


def _unfit(dimension: Dimension, value: Any) -> str | None:
    """Why a dimension cannot have this value; None if it can."""
    if isinstance(dimension, Choice):
        if any(_same(option, value) for option in dimension.options):
            return None
        return f"must be one of {', '.join(map(str, dimension.options))}, as sweep.space has it."
    low, high = dimension.ends
    kind = "a whole number" if dimension.integer else "a number"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and low <= value <= high and (not dimension.integer or value == int(value)):
        return None
    return f"must be {kind} from {low:g} to {high:g}, as sweep.space has it."


def _same(option: Any, value: Any) -> bool:
    return bool(option == value) and isinstance(option, bool) == isinstance(value, bool)


def _inactive(key: str, picked: Mapping[str, Label], space: Space) -> list[Problem]:
    """Values of keys that this entry, or what it leaves open, may not search."""
    given = {**space.fixed, **space.values(picked)}
    return [
        Problem(
            key=f"{key}.{name}",
            message=f"is searched only if {condition.key} is "
            f"{' or '.join(map(str, condition.values))}: give that key, too.",
        )
        for name in picked
        if (condition := space.when.get(name)) and given.get(condition.key) not in condition.values
    ]
