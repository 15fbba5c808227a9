"""Reads `sweep.first`: partial configs that are tried before the search's own suggestions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeps.config.spec import SearchSpec
from sweeps.core.errors import Problem, nearest
from sweeps.space.space import Choice, Condition, Dimension, Label, Space, label, set_by


def first_picks(first: Sequence[Mapping[str, Any]], space: Space) -> list[dict[str, Label]]:
    """The entries of a `sweep.first` without problems, as Optuna names their values."""
    return [_picked(entry, space) for entry in first]


def first_problems(spec: SearchSpec, space: Space) -> list[Problem]:
    """What is wrong with `sweep.first`."""
    asked = {"sweep.first": spec.first, "sweep.learn_from": spec.learn_from}
    if spec.search == "grid" and any(asked.values()):
        message = (
            "a grid is tried whole, in the order in which it is written: put these values first "
            "in sweep.space, or take sweep.search=tpe or random."
        )
        return [Problem(key=key, message=message) for key, entries in asked.items() if entries]
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


def entry_of(value: Callable[[str], Any], space: Space) -> tuple[dict[str, Any], list[str]]:
    """A config as an entry, and the dimensions whose values the space cannot hold.

    Args:
        value: what the config has for a key.
    """
    entry: dict[str, Any] = {}
    left = []
    for dimension in space.dimensions:
        found = _value_of(dimension, value)
        if _unfit(dimension, found) is None:
            entry[dimension.name] = found
        else:
            left.append(dimension.name)
    while inactive := _not_searched(_picked(entry, space), space):
        entry = {name: found for name, found in entry.items() if name not in inactive}
    given = {**space.fixed, **space.values(_picked(entry, space))}
    asked = {name: condition for name, condition in space.when.items() if name in left}
    idle = {n for n, c in asked.items() if c.key in given and given[c.key] not in c.values}
    return entry, [name for name in left if name not in idle]


def picked_of(value: Callable[[str], Any], space: Space) -> dict[str, Label] | None:
    """What Optuna would have picked for a config; None if the space cannot hold it."""
    entry, left = entry_of(value, space)
    return None if left else _picked(entry, space)


def _value_of(dimension: Dimension, value: Callable[[str], Any]) -> Any:
    keys = set_by(dimension)
    return value(dimension.name) if keys == (dimension.name,) else {key: value(key) for key in keys}


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
    return [
        Problem(
            key=f"{key}.{name}",
            message=f"is searched only if {condition.key} is "
            f"{' or '.join(map(str, condition.values))}: give that key, too.",
        )
        for name, condition in _not_searched(picked, space).items()
    ]


def _not_searched(picked: Mapping[str, Label], space: Space) -> dict[str, Condition]:
    """What is picked though its condition does not hold."""
    given = {**space.fixed, **space.values(picked)}
    return {
        name: condition
        for name in picked
        if (condition := space.when.get(name)) and given.get(condition.key) not in condition.values
    }
