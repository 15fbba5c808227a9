"""How a config key is declared: its type, its range, and what may be done with it."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal

import pydantic

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "a mapping",
    Mapping: "a mapping",
    list: "a list",
    types.NoneType: "null",
}
_STRICT = pydantic.ConfigDict(strict=True, allow_inf_nan=False)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_given(value: Any, check: Callable[[Any], Any]) -> Any:
    check(value)
    return value


def _on_or_off(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Whole = Annotated[int, pydantic.BeforeValidator(_whole)]  # 5.0 is 5
Count = Annotated[Whole, pydantic.Field(ge=1)]
FromZero = Annotated[Whole, pydantic.Field(ge=0)]
# An int stays one: a trial's key and the data's fingerprint are hashes of the config as given.
Number = Annotated[float, pydantic.WrapValidator(_as_given)]
Positive = Annotated[Number, pydantic.Field(gt=0)]
NotNegative = Annotated[Number, pydantic.Field(ge=0)]
Keys = Annotated[Mapping[str, Any], pydantic.Field(description="a mapping of keys")]
# YAML knows lists only, which a strict tuple refuses.
Words = Annotated[tuple[str, ...], pydantic.Field(strict=False, description="a list of words")]
Mappings = Annotated[
    tuple[Mapping[str, Any], ...],
    pydantic.Field(strict=False, description="a list of mappings, [{key: value}, ...]"),
]
YamlWord = pydantic.BeforeValidator(_on_or_off)  # YAML reads a bare off as false


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What may be done with a config key, or with all keys of a section; without any, nothing.

    Attributes:
        may_change: it may differ between two starts on one run folder.
        may_grow: it may become more there, and nothing else.
        may_set: it may do so while the sweep runs, too, by the verb `set`.
        tracked: it may leave the machine.
        searched: a trial may have a value of its own.
        owner: what decides it instead of a trial, in words.
    """

    may_change: bool = False
    may_grow: bool = False
    may_set: bool = False
    tracked: bool = False
    searched: bool = False
    owner: str = ""


def setting(default: Any = MISSING, *, factory: Any = MISSING, **facts: Any) -> Any:
    """Declare a dataclass's field with its default and its `Facts`.

    Raises:
        TypeError: there is no such fact.
    """
    return field(default=default, default_factory=factory, metadata={"facts": Facts(**facts)})


_LAST = {"a list": 1, "null": 2}  # of the alternatives of a type


class Kind:
    """A type that a value of a config is held against, by pydantic's strict rules.

    Attributes:
        words: the type in words, e.g. "a whole number or null".
        options: every text that the type lists by itself.
    """

    def __init__(self, hint: Any) -> None:
        self._adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(hint, config=_STRICT)
        members = _members(hint)
        literals = [each for each in members if typing.get_origin(each) is Literal]
        self.options = [option for each in literals for option in typing.get_args(each)]
        words = dict.fromkeys(filter(None, map(_in_words, members)))
        # In one order: `typing` gives `list | str` for `str | list` if it met that one first.
        self.words = " or ".join(sorted(words, key=lambda each: _LAST.get(each, 0)))

    def read(self, value: Any) -> Any:
        """The value as its field holds it.

        Raises:
            ValueError: it is not of this type; says what it must be.
        """
        try:
            return self._adapter.validate_python(value)
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
        for context in (each.get("ctx", {}) for each in found):
            if "ge" in context:
                raise ValueError(f"{context['ge']} or more")
            if "gt" in context:
                raise ValueError(f"above {context['gt']}")
        raise ValueError(self.words)


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself; annotated only if that describes them."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(each for option in typing.get_args(hint) for each in _members(option))
    if typing.get_origin(hint) is Annotated and not _description(hint):
        return _members(typing.get_args(hint)[0])
    return (hint,)


def _description(hint: Any) -> str | None:
    found = (getattr(each, "description", None) for each in getattr(hint, "__metadata__", ()))
    return next(filter(None, found), None)


def _in_words(hint: Any) -> str | None:
    """None if a user has no word for it, such as an enum beside its values as text."""
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return _description(hint) or _WORDS.get(typing.get_origin(hint) or hint)
