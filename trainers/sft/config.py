"""Builds a trial's SFTConfig, and reads the trainer section with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from trl.trainer.sft_config import SFTConfig

from sweeps.config.spec import TrainSpec
from sweeps.core.errors import ConfigError, Problem
from trainers.sft import fsdp
from trainers.sft.fields import field_problems
from trainers.sft.lr_schedule import WATCHING, arguments, fault, names
from trainers.sft.schedulers import unknown_name
from trainers.trial.ranks import per_rank

_FIELDS = {field.name for field in fields(SFTConfig)}
# The name of gradient checkpointing in the installed transformers: newer ones have both, and warn
# of the old one.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in _FIELDS
)
# Our defaults that are not SFTConfig's own.
_OURS: dict[str, Any] = {
    "logging_first_step": True,
    CHECKPOINTING: False,
    "pad_to_multiple_of": None,  # SFTConfig's "auto" is None but on devices that we do not know
}
_NEVER = 10**12  # steps; far beyond any trial's last


def setting(trainer: Mapping[str, Any], name: str) -> Any:
    """The field's value: the section's, or SFTConfig's own default if the section has none."""
    return trainer.get(name, getattr(SFTConfig, name))


def given_fields(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The section's fields with our defaults, and checkpointing under its current name."""
    old = "gradient_checkpointing"
    return _OURS | {name.replace(old, CHECKPOINTING): value for name, value in trainer.items()}


def schedule_problems(trainer: Mapping[str, Any], *, steps: int) -> list[Problem]:
    """What is wrong with the schedule of a trial of `steps` optimizer steps."""
    name = setting(trainer, "lr_scheduler_type")
    if name not in names():
        return [unknown_name(name)]
    reason = fault(
        name,
        trainer.get("lr_scheduler_kwargs"),
        learning_rate=setting(trainer, "learning_rate"),
        warmup_steps=setting(trainer, "warmup_steps"),
        steps=steps,
    )
    key = "trainer.lr_scheduler_type"
    return [Problem(key=key, value=name, message=f"{reason}.")] if reason else []


def construction_problems(trainer: Mapping[str, Any]) -> list[Problem]:
    """What SFTConfig itself refuses, such as a prefetch factor without workers."""
    given = given_fields(trainer)
    given.pop("tf32", None)  # asks the GPU
    anywhere = {"use_cpu": True, "bf16": False}  # this process may have no GPU
    try:
        SFTConfig(**given | anywhere | _evaluating(given))
    except (TypeError, ValueError) as error:
        return [Problem(key="trainer", message=" ".join(str(error).split()))]
    return []


def sft_config(
    train: TrainSpec,
    *,
    output_dir: Path,
    examples: int,
    autocast: str | None,
    device: str,
    world: int = 1,
    shards: bool = False,
) -> SFTConfig:
    """Build the SFTConfig of one trial; every field the user gave passes through unchanged.

    The trial's rows are one stream in its final order, so it is read once, in that order. A
    callback asks for evaluating and saving, never the Trainer's own counts of steps.

    Args:
        examples: rows of the stream.
        autocast: "bfloat16" or "float16", as trainer.bf16 and model.dtype mean on the device.
        device: "cpu", "cuda" or "cuda:1".
        world: processes that train the trial together, a device each.
        shards: share out the weights among them (`trainers.sft.fsdp`).

    Raises:
        ConfigError: a field is not the trial's to set, or the schedule cannot run.
    """
    steps = train.steps(examples)
    given = given_fields(per_rank(train, world).trainer)
    found = field_problems(given) or schedule_problems(given, steps=steps)
    if found:
        raise ConfigError(found)
    ours = _stream(train) | _precision(autocast, device) | _evaluating(given)
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_nan_inf_filter": False}
    if "lr_scheduler_kwargs" in given:
        given["lr_scheduler_kwargs"] = arguments(
            setting(given, "lr_scheduler_type"),
            given["lr_scheduler_kwargs"],
            warmup_steps=setting(given, "warmup_steps"),
            steps=steps,
        )
    if shards:
        ours |= fsdp.fields()
    config = SFTConfig(output_dir=str(output_dir), **given | ours | quiet)
    if shards:
        fsdp.admit_cpus()
    # Else ACCELERATE_MIXED_PRECISION in the environment would decide.
    config.mixed_precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "no"
    if world == 1:
        _keep_to_one_device(config)
    return config


def _keep_to_one_device(config: SFTConfig) -> None:
    """Let the Trainer use one GPU, though this process may see several.

    It would spread each batch over all of them (nn.DataParallel), which SFTTrainer refuses. No
    public field says so: this is what the Trainer itself sets if it has reasons for one device.
    """
    if config.n_gpu > 1:
        config._n_gpu = 1


def _stream(train: TrainSpec) -> dict[str, Any]:
    """The fields for one pass over prepared rows, in their order."""
    return {
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # The labels say already what is learnt; SFTTrainer would look for chats in their place.
        "assistant_only_loss": False,
        "completion_only_loss": False,
        "max_length": train.data.max_length,
        "seed": train.seed,
        "data_seed": train.seed,
        "save_strategy": "no",
        "save_only_model": False,  # an exact resume needs the optimizer and the schedule
    }


def _precision(autocast: str | None, device: str) -> dict[str, Any]:
    return {
        "bf16": autocast == "bfloat16",  # SFTConfig's own default is True
        "fp16": autocast == "float16",
        "use_cpu": device == "cpu",
    }


def _evaluating(given: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate only if the callback asks for it.

    The Trainer steps schedulers that watch the loss after each evaluation, and refuses them without
    an eval_strategy: they get one whose own first evaluation never comes.
    """
    if given.get("lr_scheduler_type") not in WATCHING:
        return {"eval_strategy": "no"}
    return {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_delay": _NEVER,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
