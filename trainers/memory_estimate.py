"""Estimates the least memory of a trial from the model's config alone: no weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.config.spec import ModelSpec
from trainers.model.loading import skeleton
from trainers.model.lora import adapt
from trainers.model.precision import Runtime

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED = {"nf4": 0.56, "int8": 1.05}  # bytes a weight, with its scales
_GRADIENT = 4
_MOMENTS = 8  # Adam's two


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Lower bounds in MiB, without activations; `trainers.dry_run` measures with them.

    Attributes:
        trained: parameters that are trained.
        memory_mb: of one trial on its device: weights, gradients, optimizer.
        checkpoint_mb: of one checkpoint: what is trained, and the optimizer's state.
    """

    trained: int
    memory_mb: float
    checkpoint_mb: float


def needs(spec: ModelSpec, peft: Mapping[str, Any], runtime: Runtime) -> Needs:
    """Estimate a trial with this model and adapter, with Adam or an optimizer that keeps less."""
    import torch

    name = str(runtime.dtype).removeprefix("torch.")
    model = skeleton(spec)
    base = trained = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        if peft.get("method") != "full":
            model = adapt(model, peft)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weight = _QUANTIZED.get(spec.quantization, _BYTES.get(name, 4.0))
    adapter = 4 * trained if trained != base else 0
    state = trained * (_GRADIENT + _MOMENTS)
    return Needs(
        trained=trained,
        memory_mb=(base * weight + adapter + state) / 2**20,
        checkpoint_mb=trained * (4 + _MOMENTS) / 2**20,
    )
