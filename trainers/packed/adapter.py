"""A lane's adapter: PEFT makes it, and its files are PEFT's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sweeps.errors import SweepError
from trainers.adapters import adapt
from trainers.packed.bank import Weight

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = "default"  # PEFT's, of a model's only adapter


@dataclass(kw_only=True)
class Adapter:
    """An adapter as PEFT initialised it, taken out of the model.

    Attributes:
        config: PEFT's, with target modules resolved.
        weights: in the order of the model's parameters.
        values: of all weights, [numel], in the type that they train in.
        scaling: module -> alpha / r, or what use_rslora makes of it.
        decays: for each weight, whether weight decay applies to it.
    """

    config: Any
    weights: tuple[Weight, ...]
    values: torch.Tensor
    scaling: dict[str, float]
    decays: list[bool]

    def save(self, values: torch.Tensor, folder: Path) -> None:
        """Write what PeftModel.save_pretrained writes, of these values [numel]."""
        parts = values.to("cpu").split([weight.numel for weight in self.weights])  # copied at once
        named = {
            _key(weight): part.view(weight.shape)
            for weight, part in zip(self.weights, parts, strict=True)
        }
        save_file(named, str(folder / _WEIGHTS), metadata={"format": "pt"})
        self.config.inference_mode = True
        self.config.save_pretrained(str(folder), auto_mapping_dict=None)

    def load(self, folder: Path) -> torch.Tensor:
        """The values of a saved adapter, [numel].

        Raises:
            SweepError: it is not this trial's.
        """
        saved = load_file(str(folder / _WEIGHTS))
        wanted = {_key(weight): weight.shape for weight in self.weights}
        if {name: tuple(value.shape) for name, value in saved.items()} != wanted:
            raise SweepError(f"{folder} holds other weights than this trial trains")
        return torch.cat([saved[name].flatten().to(self.values) for name in wanted])


def fresh(base: Any, peft: Mapping[str, Any], seed: int) -> Adapter:
    """The adapter that SFTTrainer begins with under `seed`; `base` is left as it was.

    Raises:
        ConfigError, SweepError: see `trainers.adapters.adapt`; or it is more than plain LoRA on
            linear layers.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = adapt(base, peft)
    try:
        return _read(adapted)
    finally:
        adapted.unload()
        base.requires_grad_(False)


def _read(adapted: Any) -> Adapter:
    from torch import nn
    from transformers import Trainer

    modules = dict(adapted.named_modules())
    decaying = set(Trainer.get_decay_parameter_names(None, adapted))
    weights, values, scaling, decays = [], [], {}, []
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, rest = name.partition(".lora_")
        layer = modules[path]
        if rest not in (f"A.{_NAME}.weight", f"B.{_NAME}.weight") or layer.lora_variant:
            raise SweepError(f"{name} is trained beside plain LoRA; engine=solo trains it")
        if not isinstance(layer.lora_A[_NAME], nn.Linear):
            raise SweepError(f"{path} is no linear layer; engine=solo trains it")
        module = path.removeprefix(_PREFIX)
        rows, columns = parameter.shape
        weights.append(Weight(module, rest[0], (rows, columns)))
        values.append(parameter.detach().flatten().clone())
        scaling[module] = float(layer.scaling[_NAME])
        decays.append(name in decaying)
    return Adapter(
        config=adapted.peft_config[_NAME],
        weights=tuple(weights),
        values=torch.cat(values),
        scaling=scaling,
        decays=decays,
    )


def _key(weight: Weight) -> str:
    return f"{_PREFIX}{weight.module}.lora_{weight.side}.weight"
