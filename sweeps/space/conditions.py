"""Read `sweep.when`: keys that are searched only if another key has a certain value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException

from sweeps.core.errors import Problem, first_line, nearest
from sweeps.space.grammar import parse, plain
from sweeps.space.space import Condition, Dimension, Interval, set_by


def read_conditions(
    when: Mapping[str, Any],
    space: Mapping[str, Any],
    dimensions: Mapping[str, Dimension],
    problems: list[Problem],
) -> dict[str, Condition]:
    """Read `sweep.when`; what is wrong is added to `problems`.

    Args:
        space: `sweep.space` as written.
        dimensions: those of its entries that could be read.
    """
    # A key that has a condition itself has its base value if that does not hold: any value may do.
    setter = {
        key: dimension
        for name, dimension in dimensions.items()
        if name not in when
        for key in set_by(dimension)
    }
    return {
        str(name): condition
        for name, text in when.items()
        if (condition := _condition(str(name), text, space, setter, problems)) is not None
    }


def _condition(
    name: str,
    text: Any,
    space: Mapping[str, Any],
    setter: Mapping[str, Dimension],
    problems: list[Problem],
) -> Condition | None:
    """`setter` is the dimension that sets a config key."""
    where = f"sweep.when.{name}"
    if name not in space:
        near = nearest(name, [str(key) for key in space])
        problems.append(Problem(key=where, message="is not searched in sweep.space.", nearest=near))
        return None
    key, sign, value = (part.strip() for part in str(text).partition("="))
    if not sign or not key:
        message = "is written key=value, or key=choice(a, b)."
        problems.append(Problem(key=where, value=text, message=message))
        return None
    try:
        parsed = parse(value)
    except HydraException as error:
        problems.append(Problem(key=where, value=text, message=first_line(error)))
        return None
    options = parsed.list if isinstance(parsed, ChoiceSweep) else [parsed]
    condition = Condition(key, tuple(plain(option) for option in options))
    problems.extend(_never(where, text, condition, setter.get(key)))
    return condition


def _never(
    where: str, text: Any, condition: Condition, dimension: Dimension | None
) -> Iterable[Problem]:
    """Conditions on values that the search never gives would drop their key in silence."""
    if isinstance(dimension, Interval):
        message = f"{condition.key} is an interval; a condition needs a choice or a range."
        yield Problem(key=where, value=text, message=message)
    elif dimension is not None:
        given = [
            option[condition.key] if isinstance(option, Mapping) else option
            for option in dimension.options
            if not isinstance(option, Mapping) or condition.key in option
        ]
        for value in condition.values:
            if value not in given:
                words = [str(option) for option in given]
                message = f"{condition.key} is never {value}; it is one of {', '.join(words)}."
                near = nearest(str(value), words)
                yield Problem(key=where, value=text, message=message, nearest=near)


def ordered(
    dimensions: Mapping[str, Dimension],
    when: Mapping[str, Condition],
    problems: list[Problem],
) -> tuple[Dimension, ...]:
    """Order dimensions as written, but each after the one that its condition asks about."""
    setter = {key: name for name, dimension in dimensions.items() for key in set_by(dimension)}
    ordered: dict[str, Dimension] = {}

    def place(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circle = " -> ".join([*above, name])
            message = f"goes in a circle: {circle}."
            problems.append(Problem(key=f"sweep.when.{name}", message=message))
            return
        if name in ordered or name not in dimensions:
            return
        if name in when and when[name].key in setter:
            place(setter[when[name].key], (*above, name))
        ordered.setdefault(name, dimensions[name])

    for name in dimensions:
        place(name, ())
    return tuple(ordered.values())
