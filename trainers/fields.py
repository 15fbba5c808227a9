"""SFTConfig's fields as a sweep may set them: whose each one is, and which values it takes."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union

from trl.trainer.sft_config import SFTConfig

from sweeps.errors import Problem, nearest
from sweeps.naming import SPOKEN
from trainers.owners import GONE, OWNED, REFUSED

_FRACTION = ("a number from 0 up to, but not, 1", lambda value: 0 <= value < 1)
_POSITIVE = ("a finite number above 0", lambda value: value > 0)
_NOT_NEGATIVE = ("a finite number, 0 or more", lambda value: value >= 0)
_COUNT = ("a whole number, 1 or more", lambda value: value >= 1)


def _whole_from_1(value: float) -> bool:
    """A ratio below 1, a number of steps from there on."""
    return value < 1 or value == int(value)


LIMITS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "learning_rate": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "warmup_steps": (
        "a ratio of the steps from 0 to 1, or a whole number of steps",
        lambda value: value >= 0 and _whole_from_1(value),
    ),
    "adam_beta1": _FRACTION,
    "adam_beta2": _FRACTION,
    "adam_epsilon": _POSITIVE,
    "label_smoothing_factor": _FRACTION,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "gradient_accumulation_steps": _COUNT,
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "dataloader_num_workers": ("a whole number, 0 or more", lambda value: value >= 0),
    "logging_steps": (
        "a whole number of steps, or a ratio of them above 0",
        lambda value: value > 0 and _whole_from_1(value),
    ),
}

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "a mapping",
    list: "a list",
    types.NoneType: "null",
}


@functools.cache
def _hints() -> dict[str, Any]:
    """The type of each field; scheduler arguments are a mapping here, never a JSON text."""
    hints = typing.get_type_hints(SFTConfig)
    names = [field.name for field in dataclasses.fields(SFTConfig)]
    return {name: hints[name] for name in names} | {"lr_scheduler_kwargs": dict[str, Any] | None}


@functools.cache
def _choices() -> dict[str, list[str]]:
    """The fields whose values SFTConfig itself lists."""
    named = {field.name: field.metadata.get("choices") for field in dataclasses.fields(SFTConfig)}
    return {name: list(choices) for name, choices in named.items() if choices}


def _members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value`, as YAML gives it, is of the type `hint`."""
    kind = typing.get_origin(hint) or hint
    if kind is Literal:
        return value in typing.get_args(hint)
    if isinstance(value, bool):  # True is an int for Python, but not for a user
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if kind is dict:
        return isinstance(value, Mapping)
    if kind is list:
        return isinstance(value, Sequence) and not isinstance(value, str)
    if not isinstance(kind, type):
        return True
    if issubclass(kind, enum.Enum):
        return value in [member.value for member in kind]
    return isinstance(value, kind)


def _wanted(hint: Any) -> str:
    kinds = [typing.get_origin(member) or member for member in _members(hint)]
    return " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds if kind in _WORDS))


def name_problem(name: str, prefix: str = "trainer") -> str | None:
    """Why a trial may not set the field `name`, or None where it may."""
    if name in OWNED:
        return f"belongs to {OWNED[name]}."
    if name in REFUSED:
        return f"is not supported: {REFUSED[name]}."
    if name in GONE:
        return f"{GONE[name]}."
    return None if name in _hints() else f"is not a field of SFTConfig; {prefix}.* are its fields."


def value_problem(name: str, value: Any) -> str | None:
    """Why the field `name` cannot be `value`, or None where it can."""
    hint = _hints()[name]
    if not any(_fits(value, member) for member in _members(hint)):
        return f"must be {LIMITS[name][0] if name in LIMITS else _wanted(hint)}."
    if name in LIMITS and value is not None and not LIMITS[name][1](value):
        return f"must be {LIMITS[name][0]}."
    if name in _choices() and value is not None and value not in _choices()[name]:
        return f"must be one of {', '.join(_choices()[name])}."
    if name == "optim_args" and value and any(part.count("=") != 1 for part in value.split(",")):
        return "must be text such as momentum=0.9,nesterov=true."
    return None


def _problems(trainer: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    for name, value in trainer.items():
        message = name_problem(name, prefix)
        known = name in _hints() or name in GONE
        near = None if known else _near(name)
        if message is None:
            message = value_problem(name, value)
        if message is not None:
            hint = f"{prefix}.{near}" if near else None
            yield Problem(key=f"{prefix}.{name}", message=message, value=value, nearest=hint)


def _near(name: str) -> str | None:
    """The field that was most likely meant."""
    names = [each for each in _hints() if each not in OWNED]
    return SPOKEN[name] if SPOKEN.get(name) in names else nearest(name, names)


def field_problems(trainer: Mapping[str, Any], prefix: str = "trainer") -> list[Problem]:
    """What is wrong with the names and values of `trainer`, each field looked at alone."""
    return list(_problems(trainer, prefix))
