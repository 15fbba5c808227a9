"""What a lane reads from its trial's trainer section, with SFTConfig's defaults."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace
from typing import Any

from transformers import TrainingArguments

from sweeps.spec import TrainSpec
from trainers import schedule

# Building an SFTConfig would import TRL. Where its defaults are not TrainingArguments', and ours.
_DEFAULTS = {
    "learning_rate": 2e-5,
    "logging_steps": 10,
    "logging_first_step": True,
    "gradient_checkpointing": False,
    "gradient_checkpointing_kwargs": None,
    "pad_to_multiple_of": None,
}
USED = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "logging_steps", "logging_first_step", "pad_to_multiple_of"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
)


@functools.cache
def _library() -> dict[str, Any]:
    fields = dataclasses.fields(TrainingArguments)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def settings(train: TrainSpec) -> SimpleNamespace:
    """The fields in USED, by SFTConfig's names."""
    every = _library() | _DEFAULTS | _without_alias(train)
    found = {name: every[name] for name in USED}
    found["lr_scheduler_type"] = str(
        getattr(found["lr_scheduler_type"], "value", None) or found["lr_scheduler_type"]
    )
    found["optim"] = str(getattr(found["optim"], "value", None) or found["optim"])
    return SimpleNamespace(**found)


def _without_alias(train: TrainSpec) -> dict[str, Any]:
    """Newer transformers call gradient_checkpointing activation_checkpointing."""
    return {
        name.replace("activation_checkpointing", "gradient_checkpointing"): value
        for name, value in train.trainer.items()
    }


def schedule_arguments(chosen: SimpleNamespace, steps: int) -> dict[str, Any]:
    """What `get_scheduler` takes beside the optimizer, for a trial of `steps` optimizer steps."""
    name = chosen.lr_scheduler_type
    return {
        "name": name,
        "num_warmup_steps": schedule.warmup(chosen.warmup_steps, steps),
        "num_training_steps": steps,
        "scheduler_specific_kwargs": schedule.arguments(
            name, chosen.lr_scheduler_kwargs, warmup_steps=chosen.warmup_steps, steps=steps
        ),
    }


def log_every(chosen: SimpleNamespace, steps: int) -> int:
    """Optimizer steps between two logs; below 1 it is a ratio of them."""
    every = chosen.logging_steps
    return math.ceil(steps * every) if every < 1 else int(every)
