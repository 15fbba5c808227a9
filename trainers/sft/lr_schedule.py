"""Reads one trial's learning-rate schedule, and runs through it before anything trains on it.

Arguments come from trainer.lr_scheduler_kwargs. `num_decay_steps` and `num_stable_steps` follow the
rule of `warmup_steps`: below 1 they are a ratio of the trial's steps, so that trials of different
length keep the same shape of schedule.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import optimization
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler

from sweeps.core.commands import typed

# Schedulers that act on the loss of an evaluation, not on the step; both ignore warmup.
WATCHING = ("reduce_lr_on_plateau", "greedy")
STEP_COUNTS = ("num_decay_steps", "num_stable_steps")
_GIVEN_BY_THE_TRAINER = {"self", "optimizer", "num_warmup_steps", "num_training_steps"}
_NOT_A_SETTING = {"last_epoch"}  # the step of a resumed schedule
_GREEDY_FLOOR = 1e-3  # GreedyLR's own min_lr
_SAMPLES = 200  # of a schedule's steps, enough to see one that leaves its range

# Arguments that a scheduler needs (one of the names), and an example.
REQUIRED: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "warmup_stable_decay": (("num_decay_steps",), {"num_decay_steps": 0.2}),
    "cosine_with_min_lr": (("min_lr", "min_lr_rate"), {"min_lr_rate": 0.1}),
    "cosine_warmup_with_min_lr": (("min_lr", "min_lr_rate"), {"min_lr_rate": 0.1}),
}
_KWARGS = "trainer.lr_scheduler_kwargs"


def names() -> list[str]:
    """Every name that `trainer.lr_scheduler_type` knows."""
    return [kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION]


def accepted(name: str) -> list[str]:
    """The names of trainer.lr_scheduler_kwargs that the scheduler `name` takes."""
    classes: dict[str, Any] = {
        "reduce_lr_on_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
        "greedy": getattr(optimization, "GreedyLR", None),
    }
    functions = {kind.value: function for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()}
    function: Any = classes.get(name) or functions[name]
    parameters = inspect.signature(function).parameters
    return [each for each in parameters if each not in _GIVEN_BY_THE_TRAINER | _NOT_A_SETTING]


def warmup(warmup_steps: float, steps: int) -> int:
    """Warmup steps of a trial; as TrainingArguments.get_warmup_steps counts them."""
    return int(warmup_steps) if warmup_steps >= 1 else math.ceil(steps * warmup_steps)


def arguments(
    name: str, kwargs: Mapping[str, Any] | None, *, warmup_steps: float, steps: int
) -> dict[str, Any]:
    """The `kwargs` that the scheduler takes, with ratios resolved for a trial of `steps` steps.

    A ratio is rounded up, and never reaches back into the warmup.
    """
    known = accepted(name)
    own = {key: value for key, value in (kwargs or {}).items() if key in known}
    room = max(0, steps - warmup(warmup_steps, steps))
    for key in STEP_COUNTS:
        value = own.get(key)
        if isinstance(value, float):
            own[key] = min(math.ceil(steps * value), room) if value < 1 else int(value)
    return own


def fault(
    name: str,
    kwargs: Mapping[str, Any] | None,
    *,
    learning_rate: float,
    warmup_steps: float,
    steps: int,
) -> str | None:
    """Build the schedule and run through `steps` steps; what is wrong with it, or None."""
    needed, example = REQUIRED.get(name, ((), {}))
    own = {key: value for key, value in (kwargs or {}).items() if key in accepted(name)}
    if needed and all(own.get(key) is None for key in needed):
        given = " or ".join(needed)
        return f"needs {given}: add {typed(_KWARGS, example)}"
    if name in WATCHING:
        return _watching_fault(name, own, learning_rate) or _run(name, own, learning_rate, 0, steps)
    if name != "constant" and warmup_steps > steps:
        return (
            f"warms up for {warmup_steps:g} steps and the trial has {steps}, so its rate stays "
            f"below {steps / warmup_steps:.2g} of trainer.learning_rate: set trainer.warmup_steps "
            "lower, or to a ratio of the steps such as 0.1"
        )
    return _counts_fault(own, warmup_steps, steps) or _run(
        name,
        arguments(name, own, warmup_steps=warmup_steps, steps=steps),
        learning_rate,
        warmup(warmup_steps, steps),
        steps,
    )


def _watching_fault(name: str, own: Mapping[str, Any], learning_rate: float) -> str | None:
    if own.get("mode", "min") != "min":
        return "watches eval_loss, which falls as it gets better: mode must be min"
    floor = own.get("min_lr", _GREEDY_FLOOR)
    if name == "greedy" and isinstance(floor, int | float) and floor >= learning_rate:
        return (
            f"never goes below its min_lr of {floor:g}, and trainer.learning_rate starts "
            f"at {learning_rate:g}: add {typed(_KWARGS, {'min_lr': 1e-7})}"
        )
    return None


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return 0 < value < 1 or (value >= 1 and value == int(value))


def _counts_fault(own: Mapping[str, Any], warmup_steps: float, steps: int) -> str | None:
    counts = {key: own[key] for key in STEP_COUNTS if own.get(key) is not None}
    for key, value in counts.items():
        if not _is_count(value):
            return f"{key} must be a ratio of the steps below 1, or a whole number of steps"
    counts["warmup_steps"] = warmup_steps
    total = sum(value if value >= 1 else value * steps for value in counts.values())
    if len(counts) > 1 and total > steps + 1e-6:
        taken = " and ".join(f"{key}={value:g}" for key, value in counts.items())
        return f"has no room for {taken}: together they must not exceed {_whole(counts, steps)}"
    return None


def _whole(counts: Mapping[str, float], steps: int) -> str:
    """The whole that the counts are parts of, in words: 1 for ratios, else the trial's steps."""
    if all(value < 1 for value in counts.values()):
        return "1"
    return f"the trial's {steps} steps; below 1 they are ratios of them"


def _run(
    name: str, own: dict[str, Any], learning_rate: float, warmup_count: int, steps: int
) -> str | None:
    """Build the schedule on two parameter groups, as the Trainer has, and check its rates."""
    weights = [{"params": [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.SGD(weights, lr=learning_rate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule = get_scheduler(name, optimizer, warmup_count, steps, own)
            if not isinstance(schedule, LambdaLR):
                schedule.step(1.0)
                return None
            rate = schedule.lr_lambdas[0]
            sampled = {*range(0, steps, max(1, steps // _SAMPLES)), steps - 1, warmup_count}
            factors = [float(rate(step)) for step in sorted(sampled) if step < steps]
            rate(steps)  # the Trainer asks once more after the last step
    except Exception as error:
        return f"refuses these arguments: {error}"
    if not all(math.isfinite(each) and 0 <= each <= 1 + 1e-6 for each in factors):
        return f"leaves the range from 0 to trainer.learning_rate = {learning_rate:g}"
    if max(factors) == 0 and steps == 1:
        return "keeps the rate at 0 for its only step: raise sweep.budget, or set " + typed(
            "trainer.warmup_steps", 0
        )
    if max(factors) == 0:
        return f"keeps the rate at 0 for all {steps} steps: set trainer.warmup_steps=0"
    return None
