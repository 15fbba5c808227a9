"""Names a trial for people: the values that vary, in as few characters as possible.

Pure: the same searched values give the same name in W&B, in the live table and in messages. Names
are for reading only and may coincide; a trial's identity is its key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sweeps.core.secrets import masked

MAX_LENGTH = 100  # W&B shows 128 at most, and leaves room for a seed

_SHORT = {
    "learning_rate": "lr",
    "gradient_accumulation_steps": "accum",
    "per_device_train_batch_size": "batch",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "weight_decay": "decay",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "max_grad_norm": "clip",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "neftune_noise_alpha": "neftune",
    "init_lora_weights": "init",
}
# What people type, if it is too unlike the key to be found by similar spelling.
SPOKEN = {short: name for name, short in reversed(_SHORT.items())} | {
    "batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "grad_accum": "gradient_accumulation_steps",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "rank": "r",
    "modules": "target_modules",
    # axolotl, LLaMA-Factory, Lightning
    "micro_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "accumulate_grad_batches": "gradient_accumulation_steps",
    "lr_scheduler": "lr_scheduler_type",
    "gradient_clip_val": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "clip_grad_norm": "max_grad_norm",
    "label_smoothing": "label_smoothing_factor",
    "num_workers": "dataloader_num_workers",
    "lora_rank": "r",
    "lora_r": "r",
    "lora_target": "target_modules",
    "lora_targets": "target_modules",
    "lora_target_modules": "target_modules",
    "lora_target_linear": "target_modules",
}
# What other tools call a key of another section of ours, whatever section it is looked for in.
ELSEWHERE = {
    name: ours
    for ours, names in {
        "sweep.budget.epochs": "num_train_epochs num_epochs epochs max_epochs",
        "sweep.budget.examples": "examples max_steps steps",
        "sweep.trials": "n_trials num_samples num_trials max_trials run_cap count",
        "sweep.max_concurrent": "max_concurrent_trials n_jobs",
        "sweep.search": "sampler method search_alg",
        "sweep.search_options.n_startup_trials": "n_startup_trials",
        "sweep.pruner": "early_terminate",
        "sweep.pruner_options.min_resource": "grace_period min_resource",
        "sweep.pruner_options.reduction_factor": "reduction_factor eta",
        "sweep.direction": "goal mode",
        "sweep.evaluations": "max_t max_resource val_check_interval",
        "sweep.space": "parameters param_space search_space",
        "sweep.time_budget_s": "timeout time_budget",
        "data.max_length": """
            max_seq_length max_seq_len cutoff_len sequence_len model_max_length block_size""",
        "data.path": """
            dataset train_file train_files train_path train_data data_files data_path
            dataset_name dataset_path""",
        "data.eval_path": """
            validation_file validation_path validation_data eval_file eval_data eval_dataset
            test_file val_path""",
        "data.eval_fraction": """
            val_size val_set_size validation_split eval_size validation_fraction""",
        "data.limit": "max_samples max_train_samples num_rows",
        "data.eval_limit": "max_eval_samples",
        "data.columns": """
            dataset_text_field text_field text_column prompt_column prompt_field field_messages
            response_column completion_column field_instruction field_output""",
        "model.path": """
            model_name_or_path base_model model_name model_id base_model_name_or_path
            pretrained_model_name_or_path""",
        "model.dtype": "torch_dtype precision compute_dtype",
        "model.quantization": "load_in_4bit load_in_8bit quantization_bit quantization_config",
        "model.attn_implementation": """
            flash_attention flash_attn use_flash_attention_2 attention""",
        "model.chat_template": "template chat_template_file",
        "trainer.warmup_steps": "warmup_ratio",
        "trainer.lr_scheduler_type": "scheduler_type",
        "peft": "adapter finetuning_type",
        "engine.gpus_per_trial": "num_gpus n_gpus gpus devices resources_per_trial",
        "tracking.project": "wandb_project",
        "tracking.entity": "wandb_entity",
        "run_dir": "output_dir",
        "name": "run_name wandb_name experiment_name wandb_run_name",
    }.items()
    for name in names.split()
}
_SPEAK_FOR_THEMSELVES = frozenset(
    (
        "lr_scheduler_type",
        "optim",
        "method",
        "quantization",
        "dtype",
        "path",
        "attn_implementation",
    )
)


def trial_name(values: Mapping[str, Any]) -> str:
    """The searched values as words, e.g. `lr=1e-4 cosine accum=4`; `base config` if none vary.

    Args:
        values: searched config keys and what they are set to, in the order of the search space.
    """
    labels = Counter(map(_label, values))
    words = [_word(key, value, labels) for key, value in values.items()]
    name = " ".join(words) or "base config"
    return name if len(name) <= MAX_LENGTH else f"{name[: MAX_LENGTH - 1]}…"


def short_value(value: object) -> str:
    """A value in short form: 1e-4, 0.1, 2048, cosine, q_proj+v_proj, true, none."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{short_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "+".join(short_value(item) for item in value)
    return str(value).rstrip("/").rpartition("/")[2] or str(value)


def _label(key: str) -> str:
    last = key.rpartition(".")[2]
    return _SHORT.get(last, last)


def _word(key: str, value: object, labels: Counter[str]) -> str:
    label = _label(key)
    value = masked(key, value)
    if labels[label] > 1:
        label = key  # two keys would look alike
    elif isinstance(value, str) and label in _SPEAK_FOR_THEMSELVES:
        return short_value(value)
    return f"{label}={short_value(value)}"


def _short_float(value: float) -> str:
    """At most three significant digits, with an exponent only if that is shorter."""
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    mantissa, exponent, power = f"{value:.2e}".partition("e")
    if not exponent:
        return mantissa  # inf, nan
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
