"""Find what is wrong with the `trainer` section of a sweep, and with what is searched in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

from sweeps.config.spec import TrainSpec
from sweeps.core.errors import Problem
from trainers.sft import lr_schedule, optimizers, schedulers
from trainers.sft.config import construction_problems, setting
from trainers.sft.fields import field_problems, name_problem

_PREFIX = "trainer."
_KWARGS = "lr_scheduler_kwargs"
_ROUNDS_AWAY = 1e-4  # from here on, most weights of a model (some 0.02) are moved
_CHECKPOINTING = "gradient_checkpointing"
# The fields that not every optimizer reads.
_OPTIMIZERS = ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules")
_MEASURED = ("completion_only_loss", "assistant_only_loss", "eos_token")


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
    options = _Options.of(trainer, searched)
    found = field_problems(trainer)
    for name, values in options.searched.items():
        found += [each for each in _searched_problems(name, values) if each not in found]
    found += schedulers.problems(
        options["lr_scheduler_type"],
        kwargs=options.scheduler_kwargs(),
        learning_rates=options["learning_rate"],
        warmup_steps=options["warmup_steps"],
    )
    found += optimizers.problems(
        options["optim"],
        device=device,
        dtype=dtype,
        optim_args=options["optim_args"],
        target_modules=trainer.get("optim_target_modules"),
    )
    if device == "cpu" and True in options["tf32"]:
        message = "is a number format of GPUs, and trials train on the CPU."
        found.append(Problem(key="trainer.tf32", value=True, message=message))
    return found or construction_problems(trainer)


def notes(
    trainer: Mapping[str, Any],
    *,
    searched: Mapping[str, Sequence[Any]],
    device: str,
    evaluations: int | None = None,
) -> list[str]:
    """What is allowed but may surprise; for a config without problems."""
    options = _Options.of(trainer, searched)
    return optimizers.notes(options["optim"], device) + schedulers.notes(
        options["lr_scheduler_type"],
        warmup_steps=options["warmup_steps"],
        kwargs=list(chain.from_iterable(options.scheduler_kwargs())),
        evaluations=evaluations,
    )


def unread(
    name: str, trainer: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
) -> str | None:
    """Why no trial would read the field `name` of the section, or its argument `NAME.x`; or None.

    Args:
        searched: as in `problems`.
    """
    options = _Options.of(trainer, searched)
    field, _, argument = name.partition(".")
    kinds, optims = options["lr_scheduler_type"], options["optim"]
    if any(kind not in lr_schedule.names() for kind in kinds):
        return None  # refused by its name
    if field in _OPTIMIZERS and not any(optimizers.reads_field(each, field) for each in optims):
        return f"trainer.optim={', '.join(optims)} does not read it"
    known = {argument for kind in kinds for argument in lr_schedule.accepted(kind)}
    if field == _KWARGS and argument and argument not in known:
        return f"trainer.lr_scheduler_type={', '.join(kinds)} does not take it"
    if field == "warmup_steps" and all(kind in schedulers.WITHOUT_WARMUP for kind in kinds):
        return f"trainer.lr_scheduler_type={', '.join(kinds)} has no warmup"
    if field == f"{_CHECKPOINTING}_kwargs" and not any(options[_CHECKPOINTING]):
        return f"trainer.{_CHECKPOINTING} is not true"
    return None


def rounding_notes(train: TrainSpec, searched: Mapping[str, Sequence[Any]]) -> list[str]:
    """Say if rates are too low for weights that are trained, all of them, in bfloat16.

    An optimizer moves a weight by about the rate; what is below 1/256 of the weight, the distance
    of neighbours in bfloat16, is rounded away, at every step anew.
    """
    methods = searched.get("peft.method", [train.peft.get("method", "lora")])
    dtypes = searched.get("model.dtype", [train.model.dtype])
    rates: Sequence[Any] = _Options.of(train.trainer, searched)["learning_rate"]
    rates = searched.get(f"{_PREFIX}learning_rate", rates)
    if "full" not in methods or "bfloat16" not in dtypes or min(rates) >= _ROUNDS_AWAY:
        return []
    rate = min(rates)
    return [
        "peft.method=full with model.dtype=bfloat16: steps below 1/256 of a weight are rounded "
        f"away; at trainer.learning_rate={rate:g} those of weights above {256 * rate:.2g} are. "
        "model.dtype=auto trains float32 weights"
    ]


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


@dataclass(frozen=True)
class _Options:
    """What each field may be in some trial: `options["optim"]` lists the values.

    Attributes:
        trainer: the section.
        searched: field -> its searched values.
    """

    trainer: Mapping[str, Any]
    searched: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, trainer: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]) -> _Options:
        ours = (key for key in searched if key.startswith(_PREFIX))
        return cls(trainer, {key.removeprefix(_PREFIX): searched[key] for key in ours})

    def __getitem__(self, name: str) -> list[Any]:
        """The base value too, since `sweep.when` may leave a field so.

        Values that do not fit are left out: `field_problems` has told of them.
        """
        every = [setting(self.trainer, name), *self.searched.get(name, ())]
        sound = [value for value in every if not field_problems({name: value})]
        return [value for index, value in enumerate(sound) if value not in sound[:index]]

    def scheduler_kwargs(self) -> list[list[dict[str, Any]]]:
        """For each whole lr_scheduler_kwargs, all that its single searched keys make of it."""
        single = {
            name.removeprefix(f"{_KWARGS}."): values
            for name, values in self.searched.items()
            if name.startswith(f"{_KWARGS}.")
        }
        settings = [dict(zip(single, values, strict=True)) for values in product(*single.values())]
        whole = [dict(value or {}) for value in self[_KWARGS]] or [{}]
        return [[own | each for each in settings] for own in whole]
