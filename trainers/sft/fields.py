"""SFTConfig's fields as a sweep may set them: who owns each, and which values it takes."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any

from trl.trainer.sft_config import SFTConfig

from sweeps.config.setting import Kind
from sweeps.core.errors import Problem, nearest
from sweeps.core.naming import ELSEWHERE, SPOKEN

_FRACTION = ("a number from 0 up to, but not, 1", lambda value: 0 <= value < 1)
_POSITIVE = ("a finite number above 0", lambda value: value > 0)
_NOT_NEGATIVE = ("a finite number, 0 or more", lambda value: value >= 0)
_COUNT = ("a whole number, 1 or more", lambda value: value >= 1)


def _whole_from_1(value: float) -> bool:
    """Whether it is a ratio below 1, or a whole number of steps."""
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


@functools.cache
def _hints() -> dict[str, Any]:
    """The type of each field, as a sweep may write it: scheduler arguments never as a JSON text."""
    hints = typing.get_type_hints(SFTConfig)
    ours = {"lr_scheduler_kwargs": dict[str, Any] | None, "debug": str | list[str]}
    return {field.name: hints[field.name] for field in dataclasses.fields(SFTConfig)} | ours


@functools.cache
def _kind(name: str) -> Kind:
    return Kind(_hints()[name])


@functools.cache
def _choices() -> dict[str, list[str]]:
    """The fields whose values SFTConfig itself lists."""
    named = {field.name: field.metadata.get("choices") for field in dataclasses.fields(SFTConfig)}
    return {name: list(choices) for name, choices in named.items() if choices}


def name_problem(name: str) -> str | None:
    """Why a trial may not set the field `name`, or None if it may."""
    if name in OWNED:
        return f"belongs to {OWNED[name]}."
    if name in REFUSED:
        return f"is not supported: {REFUSED[name]}."
    if name in GONE:
        return f"{GONE[name]}."
    return None if name in _hints() else "is not a field of SFTConfig; trainer.* are its fields."


def value_problem(name: str, value: Any) -> str | None:
    """Why the field `name` cannot be `value`, or None if it can."""
    wanted, is_in_range = LIMITS.get(name, (_kind(name).words, None))
    try:
        _kind(name).read(value)
    except ValueError:
        return f"must be {wanted}."
    if value is None:
        return None
    if is_in_range is not None and not is_in_range(value):
        return f"must be {wanted}."
    if name in _choices() and value not in _choices()[name]:
        return f"must be one of {', '.join(_choices()[name])}."
    if name == "optim_args" and value and any(part.count("=") != 1 for part in value.split(",")):
        return "must be text such as momentum=0.9,nesterov=true."
    return None


def field_problems(trainer: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the names and values of `trainer`, each field looked at alone."""
    found = []
    for name, value in trainer.items():
        message, hint = name_problem(name) or value_problem(name, value), None
        if name not in _hints() and name not in GONE:
            near = _near(name)
            hint = ELSEWHERE.get(name) or (f"trainer.{near}" if near else None)
        if message is not None:
            key = f"trainer.{name}"
            found.append(Problem(key=key, message=message, value=value, nearest=hint))
    return found


def _near(name: str) -> str | None:
    """The field that was most likely meant."""
    names = [each for each in _hints() if each not in OWNED]
    return SPOKEN[name] if SPOKEN.get(name) in names else nearest(name, names)


def _by_name(table: Mapping[str, str]) -> dict[str, str]:
    return {name: text for text, names in table.items() for name in names.split()}


# owner -> the fields that are decided there
OWNED = _by_name(
    {
        "run_dir; each trial has its own folder there": "output_dir",
        "sweep.budget.epochs": "num_train_epochs",
        "sweep.budget.examples; steps follow from batch size and accumulation": "max_steps",
        "data.max_length": "max_length",
        "data.max_length; rows are cut at their end": "truncation_mode",
        "seed": "seed data_seed",
        "sweep.evaluations; the loss there is the sweep's own, a mean over tokens": """
        eval_strategy eval_steps eval_delay eval_on_start eval_do_concat_batches
        eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics
        prediction_loss_only do_train do_eval do_predict""",
        "sweep.keep; a checkpoint is written at each of sweep.evaluations": """
        save_strategy save_steps save_total_limit save_only_model save_on_each_node
        enable_jit_checkpoint""",
        "sweep.metric and sweep.direction": """
        load_best_model_at_end metric_for_best_model greater_is_better""",
        "the ledger; the same command again goes on where the sweep stopped": """
        resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint""",
        "tracking": """
        report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id""",
        "export; best/ is ready to be pushed once the sweep is done": """
        push_to_hub hub_model_id hub_strategy hub_token hub_private_repo hub_always_push
        hub_revision""",
        "model.dtype": "fp16 bf16_full_eval fp16_full_eval",
        "the sweep; every trial reads one fixed stream of rows, in the order its seed gives": """
        shuffle_dataset train_sampling_strategy length_column_name dataloader_drop_last
        dataloader_in_order""",
        "data; rows are prepared once, for all trials": """
        dataset_kwargs dataset_num_proc dataset_text_field remove_unused_columns label_names""",
        "model": "model_init_kwargs",
        "model.trust_remote_code": "trust_remote_code",
        "model.chat_template": "chat_template_path",
        "model; rows are tokenized before training": "pad_token",
        "engine": "use_cpu local_rank accelerator_config parallelism_config",
        "the sweep; out of memory, it halves the batch and doubles the accumulation": """
        auto_find_batch_size""",
        "trainer.logging_steps": "logging_strategy",
        "the sweep; it is always off, for it logs a diverged loss as 0.0": "logging_nan_inf_filter",
        "the sweep, which counts tokens itself": "include_num_input_tokens_seen",
        "the sweep's own display": "disable_tqdm",
    }
)

# reason -> the fields that are not supported
REFUSED = _by_name(
    {
        "it changes what one example is, so trials could not be compared at equal data": """
        packing packing_strategy eval_packing padding_free""",
        "engine.devices_per_trial=2 and trainer.strategy=fsdp share a model out over devices": """
        deepspeed fsdp fsdp_config""",
        "it patches the model's classes for every later trial in the same process; "
        "engine.kernels=liger gives a pack's own base liger-kernel's norms and gated layers": """
        use_liger_kernel liger_kernel_config""",
    }
)

# Names of older versions, and what became of them.
GONE: dict[str, str] = {
    "warmup_ratio": "is gone from transformers 5: set trainer.warmup_steps; below 1 it is a ratio",
    "evaluation_strategy": f"belongs to {OWNED['eval_strategy']}",
    "group_by_length": f"belongs to {OWNED['train_sampling_strategy']}",
    "logging_dir": "belongs to tracking",
    "max_seq_length": "belongs to data.max_length",
    "no_cuda": "belongs to engine",
    "overwrite_output_dir": "belongs to run_dir",
    "dataset_batch_size": f"belongs to {OWNED['dataset_num_proc']}",
}
