"""Decides which trials can be lanes, and which of them can share an engine; reads their settings.

`obstacle` names what keeps a trial from being a lane, `shared` what trials of one engine agree in.
The other functions give what a lane takes from the trainer section, by SFTConfig's names.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sweeps.config.spec import ModelSpec, TrainSpec
from sweeps.core.errors import ConfigError, SweepError
from trainers.model.loading import choose_for, skeleton
from trainers.model.lora import INITS_BESIDE_BASE
from trainers.model.source import has_experts, load_config
from trainers.packed.adapter_bank import NoLaneError, fresh
from trainers.sft import lr_schedule, optimizers
from trainers.sft.config import CHECKPOINTING, given_fields, setting

# The fields of SFTConfig that a lane obeys.
USED = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "logging_steps", "logging_first_step", "pad_to_multiple_of"),
    *(CHECKPOINTING, f"{CHECKPOINTING}_kwargs"),
)
# LoraConfig's fields that leave the forward pass what it is.
_PLAIN = (
    *("method", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "init_lora_weights", "inference_mode", "revision"),
    *("base_model_name_or_path", "peft_type", "fan_in_fan_out", "low_cpu_mem_usage"),
)
# Fields of SFTConfig that a lane cannot obey, and why.
_REASONS = {
    "neftune_noise_alpha": "its noise is drawn for a whole batch",
    "label_smoothing_factor": "it needs the logits of every position",
    "torch_compile": "a pack changes its shape as trials come and go",
    "optim_target_modules": "its optimizer needs the whole model",
    "activation_offloading": "activations of a pack stay on the device",
    "full_determinism": "it binds the whole process",
    "tf32": "it binds the whole process",
    "router_aux_loss_coef": "the routers' loss is taken over a whole batch",
}
# How configs name the dropouts of a model, and those that no causal language model uses.
_RATES = ("dropout", "pdrop", "dropout_prob", "dropout_rate", "layerdrop")
_UNUSED_RATES = ("classifier_dropout", "summary_first_dropout")


@dataclass(frozen=True)
class Shared:
    """What the trials of one engine agree in."""

    model: ModelSpec
    max_length: int
    bf16: bool | None  # trainer.bf16
    recomputes: bool  # activation checkpointing
    recompute_options: str


def shared(train: TrainSpec) -> Shared:
    """What a trial shares with its engine; trials with equal answers can be lanes of one."""
    trainer = given_fields(train.trainer)
    recomputes = trainer[CHECKPOINTING]
    options = trainer.get(f"{CHECKPOINTING}_kwargs") or {}
    return Shared(
        model=train.model,
        max_length=train.data.max_length,
        bf16=trainer.get("bf16"),
        recomputes=bool(recomputes),
        recompute_options=repr(sorted(options.items())) if recomputes else "",
    )


def obstacle(train: TrainSpec, device: str = "cpu") -> str:
    """Why a trial cannot be a lane on `device`, naming the key; empty if it can."""
    return next(iter(obstacles(train, device)), "")


def obstacles(train: TrainSpec, device: str = "cpu") -> list[str]:
    """All that keeps a trial from being a lane; the model is looked at if nothing else does."""
    reasons = [
        *_peft_obstacles(train.peft),
        *_trainer_obstacles(given_fields(train.trainer)),
        *_precision_obstacles(train, device),
    ]
    return reasons or list(filter(None, [_model_obstacle(train)]))


def settings(train: TrainSpec) -> SimpleNamespace:
    """The fields in USED, by SFTConfig's names and with its defaults, without building one.

    Building an SFTConfig resets accelerate's state, and with it any trainer of this process.
    """
    given = given_fields(train.trainer)
    found = {name: setting(given, name) for name in USED}
    if isinstance(multiple := found["pad_to_multiple_of"], str):  # SFTConfig reads "auto" and "8"
        found["pad_to_multiple_of"] = int(multiple) if multiple.isdigit() else None
    return SimpleNamespace(**{name: getattr(v, "value", v) for name, v in found.items()})


def schedule_arguments(chosen: SimpleNamespace, steps: int) -> dict[str, Any]:
    """What `get_scheduler` takes beside the optimizer, for a trial of `steps` optimizer steps."""
    name = chosen.lr_scheduler_type
    return {
        "name": name,
        "num_warmup_steps": lr_schedule.warmup(chosen.warmup_steps, steps),
        "num_training_steps": steps,
        "scheduler_specific_kwargs": lr_schedule.arguments(
            name, chosen.lr_scheduler_kwargs, warmup_steps=chosen.warmup_steps, steps=steps
        ),
    }


def log_every(chosen: SimpleNamespace, steps: int) -> int:
    """Optimizer steps between two logs; trainer.logging_steps below 1 is a ratio of `steps`."""
    every = chosen.logging_steps
    return math.ceil(steps * every) if every < 1 else int(every)


def _peft_obstacles(peft: Mapping[str, Any]) -> Iterator[str]:
    if peft.get("method", "lora") == "full":
        yield "peft.method=full: each trial trains the whole model, so none can share it"
        return
    start = peft.get("init_lora_weights", True)
    if start not in INITS_BESIDE_BASE:
        yield f"peft.init_lora_weights={start}: it changes the base model, which lanes share"
    if peft.get("bias", "none") != "none":
        yield f"peft.bias={peft['bias']}: it trains biases of the base model, which lanes share"
    if peft.get("modules_to_save"):
        yield "peft.modules_to_save: it trains parts of the base model, which lanes share"
    for name, value in peft.items():
        if name not in (*_PLAIN, "bias", "modules_to_save") and value:
            yield f"peft.{name}={value}: lanes are plain LoRA on linear layers"


def _trainer_obstacles(trainer: Mapping[str, Any]) -> Iterator[str]:
    optimizer = trainer.get("optim", "adamw_torch")
    if optimizer not in optimizers.PACKED:
        yield f"trainer.optim={optimizer}: it was never tried with lanes"
    if trainer.get("loss_type", "nll") != "nll":
        yield f"trainer.loss_type={trainer['loss_type']}: lanes have the plain loss, nll"
    if (trainer.get(f"{CHECKPOINTING}_kwargs") or {}).get("selective"):
        yield "trainer.gradient_checkpointing_kwargs.selective: TRL's own, for one trial"
    for name, reason in _REASONS.items():
        if trainer.get(name):
            yield f"trainer.{name}={trainer[name]}: {reason}"


def _precision_obstacles(train: TrainSpec, device: str) -> Iterator[str]:
    on_gpu, quantization = device.startswith("cuda"), train.model.quantization
    if train.model.dtype == "float16":
        yield "model.dtype=float16: each trial would need a loss scale of its own"
    elif on_gpu and quantization != "none" and _computes_in_float16(train, device):
        yield (
            f"model.quantization={quantization}: this GPU computes in float16, and each trial "
            "would need a loss scale of its own"
        )
    if on_gpu and quantization == "int8":
        yield "model.quantization=int8: each lane would wait for the GPU in each layer"


def _computes_in_float16(train: TrainSpec, device: str) -> bool:
    try:
        return str(choose_for(train, device).autocast) == "torch.float16"
    except (SweepError, ConfigError):
        return False  # reported by the check of the model


def _model_obstacle(train: TrainSpec) -> str:
    try:
        config = load_config(train.model).get_text_config()
    except (SweepError, ConfigError):
        return ""  # reported by the check of the model
    path = f"model.path={train.model.path}"
    for name, value in config.to_dict().items():
        is_rate = name.endswith(_RATES) and name not in _UNUSED_RATES
        if is_rate and isinstance(value, int | float) and 0 < value < 1:
            return f"{path}: the base has dropout itself ({name}={value})"
    coefficient = train.trainer.get("router_aux_loss_coef")
    if coefficient is None:
        coefficient = getattr(config, "router_aux_loss_coef", 0)
    if coefficient and has_experts(
        config
    ):  # each token has experts of its own: lanes can share them
        return (
            f"{path}: the loss of its routers is taken over a whole batch; "
            "trainer.router_aux_loss_coef=0 leaves it out"
        )
    return _structure_obstacle(train.model, json.dumps(train.peft, default=list, sort_keys=True))


_skeleton = functools.cache(skeleton)


@functools.cache
def _structure_obstacle(spec: ModelSpec, peft: str) -> str:
    """What PEFT would train beside LoRA on linear layers, seen on the model without its weights."""
    try:
        fresh(_skeleton(spec), json.loads(peft), seed=0)
    except NoLaneError as error:
        return f"model.path={spec.path}: {error}"
    except Exception:
        return ""  # PEFT refuses it: reported by the check of peft, or by the dry run
    return ""
