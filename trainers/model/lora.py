"""Checks `peft.*` of the config, makes PEFT's LoraConfig of it, and adds the adapter."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
import types
import typing
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sweeps.config.setting import Kind, Number, Positive
from sweeps.config.spec import ModelSpec
from sweeps.core import commands
from sweeps.core.errors import ConfigError, Problem, SweepError, first_line, nearest
from sweeps.core.naming import ELSEWHERE, SPOKEN

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

METHODS = ("lora", "qlora", "full")
_DEFAULTS = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
_Rank = Annotated[int, Field(ge=1)]
# The types of fields whose values PEFT bounds further than its own types say, and these in words.
_RANGES: dict[str, tuple[str, Any]] = {
    "r": ("a whole number, 1 or more", _Rank),
    "lora_alpha": ("a number above 0", Positive),
    "lora_dropout": ("a probability, from 0 to below 1", Annotated[Number, Field(ge=0, lt=1)]),
    "bias": ("one of none, all, lora_only", Literal["none", "all", "lora_only"]),
    "qalora_group_size": ("a whole number, 1 or more", _Rank),
    "rank_pattern": (
        "a mapping of module names to ranks, whole numbers from 1",
        dict[str, _Rank] | None,
    ),
    "alpha_pattern": (
        "a mapping of module names to numbers above 0",
        dict[str, Positive] | None,
    ),
}
# Fields that have words of their own in `_variant_problems` and `_target_problems`.
_CHECKED_ELSEWHERE = ("method", "init_lora_weights", "target_modules", "trainable_token_indices")
_NUMBERS = ("r", "lora_alpha", "lora_dropout", "bias")
_HEAD = "lm_head"
# peft.init_lora_weights: values that leave the base model's weights as they are, so that several
# trials can share them; and values that take the adapter's start out of them.
INITS_BESIDE_BASE = (True, False, "gaussian", "orthogonal")
INITS_FROM_BASE = ("pissa", "olora")
# PEFT's other values draw a new start from the base or from data whenever an adapter is loaded:
# the best adapter, loaded again, would not be the one that was trained.
_INITS = (*INITS_BESIDE_BASE, *INITS_FROM_BASE)


def lora_config(peft: Mapping[str, Any]) -> LoraConfig | None:
    """Make PEFT's config of `peft`; None for full fine-tuning.

    Raises:
        ConfigError: see `peft_problems`. Fields that sweeps could begin with before they were held
            against their types are left to PEFT, so that such a sweep goes on.
    """
    if problems := peft_problems(peft, typed=_NUMBERS):
        raise ConfigError(problems)
    if peft.get("method", "lora") == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(**_fields(peft))


def adapt(model: Any, peft: Mapping[str, Any]) -> Any:
    """Add a fresh adapter to the model; full fine-tuning leaves it unchanged.

    The adapter is initialised from torch's generator: seed it first.

    Raises:
        ConfigError, SweepError: a wrong `peft`, or target modules that the model does not have.
    """
    config = lora_config(peft)
    if config is None:
        return model
    from peft import get_peft_model

    try:
        # PEFT asks by the old name. (catch_warnings would not be safe among threads.)
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # Patterns that PEFT itself adds for experts; the user's are checked in `lora_targets`.
        warnings.filterwarnings("ignore", ".*did not match any targeted", RuntimeWarning)
        return in_training_type(get_peft_model(model, config))
    except ValueError as error:
        raise SweepError(f"peft: {first_line(error)}{_way_out(str(error), peft)}") from error


def _way_out(said: str, peft: Mapping[str, Any]) -> str:
    """What to type if PEFT refuses one kind of a model's modules."""
    if "ParamWrapper" in said:
        return (
            " Experts take no dropout: set peft.lora_dropout=0, or name the modules beside them, "
            f"as in {commands.typed('peft.target_modules', ['q_proj', 'v_proj'])}"
        )
    found = re.search(r"Module '(\w+)' is incompatible", said)
    if found is None:
        return ""
    left_out = peft.get("exclude_modules") or []
    left_out = [left_out] if isinstance(left_out, str) else list(left_out)
    word = commands.typed("peft.exclude_modules", [*left_out, found[1]])
    return f" With target_modules=all-linear write {word}"


def in_training_type(adapted: Any, autocast: torch.dtype | None = None) -> Any:
    """Cast a new or newly loaded adapter to the number type that it trains in.

    On a quantized base the type is bfloat16, as SFTTrainer makes it, except for DoRA's magnitudes,
    whose updates are smaller than bfloat16 can hold. Under float16 autocast, on GPUs without
    bfloat16, it is float32: the scaler of float16's gradients has no kernel for bfloat16.
    """
    import torch

    base = adapted.get_base_model()
    if getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False):
        dtype = torch.float32 if autocast == torch.float16 else torch.bfloat16
        for name, weight in adapted.named_parameters():
            if weight.requires_grad and "lora_magnitude_vector" not in name:
                weight.data = weight.data.to(dtype)
    return adapted


def peft_problems(
    peft: Mapping[str, Any],
    model: ModelSpec | None = None,
    *,
    typed: Collection[str] | None = None,
) -> list[Problem]:
    """Everything wrong with `peft`, and with `peft` on `model` if that is given.

    Args:
        typed: the fields that are held against their types; None: all.
    """
    method = peft.get("method", "lora")
    if method not in METHODS:
        message = f"must be one of {', '.join(METHODS)}."
        hint = nearest(str(method), METHODS)
        return [Problem(key="peft.method", value=method, message=message, nearest=hint)]
    problems = _quantization_problems(method, model)
    if method == "full":
        return problems
    problems += _unknown_fields(peft) + _value_problems(peft, typed) + _target_problems(peft)
    problems += _variant_problems(peft)
    if not problems:
        problems += _library_problems(peft)
    return problems


def _fields(peft: Mapping[str, Any]) -> dict[str, Any]:
    return {**_DEFAULTS, **{name: value for name, value in peft.items() if name != "method"}}


def _quantization_problems(method: str, model: ModelSpec | None) -> list[Problem]:
    if model is None:
        return []
    if method == "qlora" and model.quantization == "none":
        message = "peft.method=qlora trains on a quantized base: set it to nf4 or int8"
        return [Problem(key="model.quantization", value="none", message=message)]
    if method == "full" and model.quantization != "none":
        message = "quantized weights cannot be trained: peft.method=qlora, or quantization none"
        return [Problem(key="model.quantization", value=model.quantization, message=message)]
    return []


def _unknown_fields(peft: Mapping[str, Any]) -> list[Problem]:
    known = list(_hints())
    return [
        Problem(
            key=f"peft.{name}",
            value=value,
            message="is not a field of peft.LoraConfig.",
            nearest=(
                SPOKEN[name]
                if SPOKEN.get(name) in known
                else ELSEWHERE.get(name) or nearest(name, known)
            ),
        )
        for name, value in peft.items()
        if name != "method" and name not in known
    ]


def _value_problems(peft: Mapping[str, Any], typed: Collection[str] | None) -> list[Problem]:
    """Values that are not of their field's type, or out of its range."""
    found = []
    for name, value in peft.items():
        if name in _CHECKED_ELSEWHERE or name not in _hints():
            continue
        if typed is not None and name not in typed:
            continue
        wanted, _ = _RANGES.get(name, ("", None))
        try:
            _kind(name).read(value)
        except ValueError:
            message = f"must be {wanted or _kind(name).words}."
            message += _as_list(name, value)
            found.append(Problem(key=f"peft.{name}", value=repr(value), message=message))
    return found


def _as_list(name: str, value: object) -> str:
    """How one word is written if it is meant as a list of one."""
    if value == "None":
        return f" Nothing is written {commands.typed(f'peft.{name}', None)}"
    try:
        _kind(name).read([value])
    except ValueError:
        return ""
    return f" Write {commands.typed(f'peft.{name}', [value])}"


@functools.cache
def _kind(name: str) -> Kind:
    return Kind(_hints()[name])


@functools.cache
def _hints() -> dict[str, Any]:
    """The type of each field of LoraConfig as a config may write it."""
    from peft import LoraConfig

    hints = typing.get_type_hints(LoraConfig)
    names = [field.name for field in dataclasses.fields(LoraConfig)]
    ours = {name: kind for name, (_, kind) in _RANGES.items()}
    ours["layer_replication"] = list[list[int]] | None
    return {name: _written_as(hints[name]) for name in names} | ours


def _written_as(hint: Any) -> Any:
    """The type with a mapping in the place of each dataclass of PEFT's."""
    if dataclasses.is_dataclass(hint):
        return dict[str, Any]
    members = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, [_written_as(each) for each in members])
    return hint


def _variant_problems(peft: Mapping[str, Any]) -> list[Problem]:
    """Find variants of LoRA that cannot be loaded again or that break SFTTrainer's fused head."""
    problems = []
    start = peft.get("init_lora_weights", True)
    if start not in _INITS:
        message = (
            f"cannot be loaded again as it was trained. Take one of {', '.join(map(str, _INITS))}."
        )
        problems.append(Problem(key="peft.init_lora_weights", value=start, message=message))
    if peft.get("trainable_token_indices"):
        message = "does not go with SFTTrainer's fused head; use modules_to_save."
        problems.append(Problem(key="peft.trainable_token_indices", message=message))
    return problems


def _target_problems(peft: Mapping[str, Any]) -> list[Problem]:
    targets = peft.get("target_modules")
    if targets is None:
        return []
    key = "peft.target_modules"
    if isinstance(targets, str):
        try:
            trains_head = bool(re.fullmatch(targets, _HEAD))
        except re.error as error:
            return [Problem(key=key, value=targets, message=f"not a regular expression: {error}")]
    elif isinstance(targets, list | tuple | set) and targets:
        if not all(isinstance(target, str) for target in targets):
            return [Problem(key=key, value=targets, message="holds names of modules")]
        trains_head = any(target.rpartition(".")[2] == _HEAD for target in targets)
    else:
        message = "must be all-linear, a name, or a list"
        return [Problem(key=key, value=repr(targets), message=message)]
    if not trains_head:
        return []
    message = "an adapter on lm_head would never be trained: take it out, or use modules_to_save"
    return [Problem(key=key, value=targets, message=message)]


def _library_problems(peft: Mapping[str, Any]) -> list[Problem]:
    """Find what LoraConfig itself refuses, such as two variants that exclude each other."""
    from peft import LoraConfig

    try:
        LoraConfig(**_fields(peft))
    except (ValueError, TypeError, ImportError) as error:
        return [Problem(key="peft", message=first_line(error))]
    return []
