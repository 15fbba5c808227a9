"""Which trials can be lanes, and which of them can share an engine."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.errors import ConfigError, SweepError
from sweeps.spec import ModelSpec, TrainSpec
from trainers.model import choose_for
from trainers.model_source import load_config

# LoraConfig's fields that leave the forward pass what it is.
_PLAIN = (
    *("method", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "init_lora_weights", "inference_mode", "revision"),
    *("base_model_name_or_path", "peft_type", "fan_in_fan_out", "low_cpu_mem_usage"),
)
_INITS = (True, False, "gaussian", "orthogonal")
_OPTIMIZERS = (
    *("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
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


@dataclass(frozen=True)
class Shared:
    """What the trials of one engine agree in."""

    model: ModelSpec
    max_length: int
    bf16: bool | None  # trainer.bf16
    recomputes: bool  # activation checkpointing
    recompute_options: str


def shared(train: TrainSpec) -> Shared:
    """Trials with equal answers can be lanes of one engine."""
    trainer = train.trainer
    recomputes = _either(trainer, "checkpointing") or False
    options = _either(trainer, "checkpointing_kwargs") or {}
    return Shared(
        model=train.model,
        max_length=train.data.max_length,
        bf16=trainer.get("bf16"),
        recomputes=bool(recomputes),
        recompute_options=repr(sorted(options.items())) if recomputes else "",
    )


def obstacle(train: TrainSpec, device: str = "cpu") -> str:
    """Why a trial cannot be a lane on `device`, naming the key; empty if it can."""
    reasons = [
        *_peft_obstacles(train.peft),
        *_trainer_obstacles(train.trainer),
        *_precision_obstacles(train, device),
    ]
    return reasons[0] if reasons else _model_obstacle(train.model)


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
        return False  # told of where models are checked


def _peft_obstacles(peft: Mapping[str, Any]) -> Iterator[str]:
    if peft.get("method", "lora") == "full":
        yield "peft.method=full: each trial trains the whole model, so none can share it"
        return
    start = peft.get("init_lora_weights", True)
    if start not in _INITS:
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
    if optimizer not in _OPTIMIZERS:
        yield f"trainer.optim={optimizer}: it was never tried with lanes"
    if trainer.get("loss_type", "nll") != "nll":
        yield f"trainer.loss_type={trainer['loss_type']}: lanes have the plain loss, nll"
    if (_either(trainer, "checkpointing_kwargs") or {}).get("selective"):
        yield "trainer.gradient_checkpointing_kwargs.selective: TRL's own, for one trial"
    for name, reason in _REASONS.items():
        if trainer.get(name):
            yield f"trainer.{name}={trainer[name]}: {reason}"


def _either(trainer: Mapping[str, Any], name: str) -> Any:
    """Newer transformers call gradient_checkpointing activation_checkpointing."""
    return trainer.get(f"gradient_{name}", trainer.get(f"activation_{name}"))


@functools.cache
def _model_obstacle(spec: ModelSpec) -> str:
    try:
        config = load_config(spec).get_text_config().to_dict()
    except (SweepError, ConfigError):
        return ""  # told of where models are checked
    for name, value in config.items():
        is_rate = name.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate"))
        if is_rate and isinstance(value, int | float) and 0 < value < 1:
            return f"model.path={spec.path}: the base has dropout itself ({name}={value})"
        if name in ("num_experts", "num_local_experts", "n_routed_experts") and (value or 0) > 1:
            return f"model.path={spec.path}: experts see the rows of all trials mixed"
    return ""
