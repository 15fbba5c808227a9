"""The `trainer` section of a sweep: what can be set and searched there, and what is wrong with it.

The one door to trainers.sft.fields, .optimizers, .schedulers and .sft, which know the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, product
from typing import Any

from sweeps.core.errors import Problem
from trainers.sft import optimizers, schedulers
from trainers.sft.config import construction_problems, setting
from trainers.sft.fields import field_problems, name_problem

_PREFIX = "trainer."
_KWARGS = "lr_scheduler_kwargs"
_MEASURED = ("completion_only_loss", "assistant_only_loss")


def problems(
    trainer: Mapping[str, Any],
    *,
    searched: Mapping[str, Sequence[Any]],
    device: str,
    dtype: str = "float32",
) -> list[Problem]:
    """Everything wrong with the trainer section and with what is searched in it.

    Args:
        searched: config key -> its values, or the bounds of its range; the key
            `trainer.lr_scheduler_kwargs.x` searches one argument, and those outside `trainer.`
            are left alone.
        device: where trials train, "cpu" or "cuda".
        dtype: of the weights that they train.
    """
    ours = {key.removeprefix(_PREFIX): v for key, v in searched.items() if key.startswith(_PREFIX)}
    found = field_problems(trainer)
    for name, values in ours.items():
        found += [each for each in _searched_problems(name, values) if each not in found]
    found += _scheduler_problems(trainer, ours) + _optimizer_problems(trainer, ours, device, dtype)
    if device == "cpu" and True in _options(trainer, ours, "tf32"):
        message = "is a number format of GPUs, and trials train on the CPU."
        found.append(Problem(key="trainer.tf32", value=True, message=message))
    return found or construction_problems(trainer)


def _searched_problems(name: str, values: Sequence[Any]) -> list[Problem]:
    if name.startswith(f"{_KWARGS}."):
        return []  # checked with the schedulers
    if name in _MEASURED:
        reason = (
            "decides which tokens the evaluation counts, so trials could not be compared: "
            "run one sweep for each value."
        )
        return [Problem(key=_PREFIX + name, message=reason)]
    if name_problem(name) is not None:
        values = values[:1]  # the name is wrong, whatever the value
    return [problem for value in values for problem in field_problems({name: value})]


def _options(
    trainer: Mapping[str, Any], searched: Mapping[str, Sequence[Any]], name: str
) -> list[Any]:
    """What the field may be in some trial: the base value too, for `sweep.when` may leave it so.

    Values that are not the field's are left out: `field_problems` has told of them.
    """
    every = [setting(trainer, name), *searched.get(name, ())]
    sound = [value for value in every if not field_problems({name: value})]
    return [value for index, value in enumerate(sound) if value not in sound[:index]]


def _kwargs_options(
    trainer: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
) -> list[list[dict[str, Any]]]:
    """What lr_scheduler_kwargs may be: for each whole mapping, all that single keys make of it."""
    single = {
        name.removeprefix(f"{_KWARGS}."): values
        for name, values in searched.items()
        if name.startswith(f"{_KWARGS}.")
    }
    settings = [dict(zip(single, values, strict=True)) for values in product(*single.values())]
    whole = [dict(value or {}) for value in _options(trainer, searched, _KWARGS)] or [{}]
    return [[own | each for each in settings] for own in whole]


def _scheduler_problems(
    trainer: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
) -> list[Problem]:
    return schedulers.problems(
        _options(trainer, searched, "lr_scheduler_type"),
        kwargs=_kwargs_options(trainer, searched),
        learning_rates=_options(trainer, searched, "learning_rate"),
        warmup_steps=_options(trainer, searched, "warmup_steps"),
    )


def _optimizer_problems(
    trainer: Mapping[str, Any], searched: Mapping[str, Sequence[Any]], device: str, dtype: str
) -> list[Problem]:
    return optimizers.problems(
        _options(trainer, searched, "optim"),
        device=device,
        dtype=dtype,
        optim_args=_options(trainer, searched, "optim_args"),
        target_modules=trainer.get("optim_target_modules"),
    )


def notes(
    trainer: Mapping[str, Any],
    *,
    searched: Mapping[str, Sequence[Any]],
    device: str,
    evaluations: int | None = None,
) -> list[str]:
    """What is allowed but may surprise; for a config without problems."""
    ours = {key.removeprefix(_PREFIX): v for key, v in searched.items() if key.startswith(_PREFIX)}
    return optimizers.notes(_options(trainer, ours, "optim"), device) + schedulers.notes(
        _options(trainer, ours, "lr_scheduler_type"),
        warmup_steps=_options(trainer, ours, "warmup_steps"),
        kwargs=list(chain.from_iterable(_kwargs_options(trainer, ours))),
        evaluations=evaluations,
    )
