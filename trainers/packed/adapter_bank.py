"""Makes the adapters of lanes, and keeps them in banks.

PEFT makes an adapter, and its files are PEFT's own. A bank holds the weights and gradients of lanes
of one shape side by side, so that batched matmuls compute all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sweeps.core.errors import SweepError
from trainers.flat.products import Scales
from trainers.model.lora import adapt

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = "default"  # PEFT's, of a model's only adapter


@dataclass(kw_only=True)
class Adapter:
    """An adapter as PEFT initialised it, taken out of the model.

    Attributes:
        config: PEFT's, with target modules resolved.
        weights: its matrices, in the order of the model's parameters.
        values: the numbers of all weights, [numel], in the type that they train in.
        scaling: module -> alpha / r, or alpha / sqrt(r) with use_rslora.
        decays: for each weight, whether weight decay applies to it.
    """

    config: Any
    weights: tuple[Weight, ...]
    values: torch.Tensor
    scaling: dict[str, float]
    decays: list[bool]

    def save(self, values: torch.Tensor, folder: Path) -> None:
        """Write `values` [numel] as PeftModel.save_pretrained writes an adapter."""
        parts = values.to("cpu").split([weight.numel for weight in self.weights])  # copied at once
        named = {
            _key(weight): part.view(weight.shape)
            for weight, part in zip(self.weights, parts, strict=True)
        }
        save_file(named, str(folder / _WEIGHTS), metadata={"format": "pt"})
        self.config.inference_mode = True
        self.config.save_pretrained(str(folder), auto_mapping_dict=None)

    def load(self, folder: Path) -> torch.Tensor:
        """Read the values of a saved adapter, [numel].

        Raises:
            SweepError: the adapter is not this trial's.
        """
        saved = load_file(str(folder / _WEIGHTS))
        wanted = {_key(weight): weight.shape for weight in self.weights}
        if {name: tuple(value.shape) for name, value in saved.items()} != wanted:
            raise SweepError(f"{folder} holds other weights than this trial trains")
        return torch.cat([saved[name].flatten().to(self.values) for name in wanted])


class NoLaneError(SweepError):
    """PEFT trains something that lanes cannot: what it is."""


def fresh(base: Any, peft: Mapping[str, Any], seed: int) -> Adapter:
    """Make the adapter that SFTTrainer begins with under `seed`; `base` is left as it was.

    Raises:
        ConfigError, SweepError: see `trainers.model.lora.adapt`.
        NoLaneError: the adapter is more than plain LoRA on linear layers.
    """
    modules = {name for name, _ in base.named_modules()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = adapt(base, peft)
    try:
        return _read(adapted, modules)
    finally:
        adapted.unload()
        base.requires_grad_(False)


@dataclass(frozen=True)
class Weight:
    """One trained matrix: lora_A [r, in] or lora_B [out, r] of a module of the base."""

    module: str
    side: str  # "A" or "B"
    shape: tuple[int, int]

    @property
    def numel(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Shape:
    """The properties that lanes share if the same batched matmuls compute them.

    Attributes:
        weights: matrices of one lane, in the order in which PEFT and the optimizer number them.
        rows: rows of a micro-batch.
    """

    weights: tuple[Weight, ...]
    rows: int
    dtype: torch.dtype

    @cached_property
    def numel(self) -> int:
        return sum(weight.numel for weight in self.weights)

    @cached_property
    def offsets(self) -> dict[tuple[str, str], tuple[int, Weight]]:
        """(module, side) -> the matrix's first place in a lane's vector, and the matrix."""
        found, offset = {}, 0
        for weight in self.weights:
            found[weight.module, weight.side] = (offset, weight)
            offset += weight.numel
        return found

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """View a lane's vector [numel] as its matrices."""
        parts = vector.split([weight.numel for weight in self.weights])
        return [part.view(w.shape) for part, w in zip(parts, self.weights, strict=True)]


class Slot:
    """One lane's place in a bank. `moved` is called when its storage has changed."""

    def __init__(self) -> None:
        self.weights = torch.empty(0)  # [numel], a view of the bank's
        self.grads = torch.empty(0)
        self.scaling: dict[str, float] = {}  # by module
        self.moved: Callable[[], None] = lambda: None


class Bank:
    """Weights and gradients of the lanes of one shape, each [lanes, numel].

    A lane's weights are one contiguous vector, so norms, clipping and elementwise optimizers take
    one operation a lane; a module's matrices of neighbouring lanes are one strided view
    [lanes, rows, columns], which is what a batched matmul takes.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.slots: list[Slot] = []
        self.weights = torch.empty(0, shape.numel, dtype=shape.dtype, device=device)
        self.grads = torch.empty_like(self.weights)
        self._cast: torch.Tensor | None = None  # the weights in the type that matmuls compute in
        self._cast_is_old = True
        self._views: dict[object, torch.Tensor | Scales] = {}

    def add(self, slot: Slot, values: torch.Tensor) -> None:
        """Give `slot` a place, with the weights `values` [numel]."""
        self._rebuild([*self.slots, slot], {id(slot): values})

    def remove(self, slot: Slot) -> None:
        """Free the memory of `slot`."""
        self._rebuild([each for each in self.slots if each is not slot], {})

    def _rebuild(self, slots: Sequence[Slot], values: dict[int, torch.Tensor]) -> None:
        weights = self.weights.new_empty(len(slots), self.shape.numel)
        grads = torch.zeros_like(weights)
        for place, slot in enumerate(slots):
            if id(slot) in values:
                weights[place] = values[id(slot)]
            else:
                weights[place], grads[place] = slot.weights, slot.grads
        self.slots, self.weights, self.grads = list(slots), weights, grads
        self._cast = None
        self._views.clear()
        for place, slot in enumerate(slots):
            slot.weights, slot.grads = weights[place], grads[place]
            slot.moved()

    def changed(self) -> None:
        """Note that the weights have been stepped."""
        self._cast_is_old = True

    def computed_in(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights [lanes, numel] in `dtype`; cast once after each step, not in each module."""
        if dtype == self.weights.dtype:
            return self.weights
        if self._cast is None or self._cast.dtype != dtype:
            self._cast = self.weights.to(dtype)
            self._views.clear()
        elif self._cast_is_old:
            self._cast.copy_(self.weights)
        self._cast_is_old = False
        return self._cast

    def has(self, module: str) -> bool:
        return (module, "A") in self.shape.offsets

    def view(
        self, module: str, side: str, first: int, last: int, dtype: torch.dtype | None
    ) -> torch.Tensor:
        """A module's matrices of lanes first:last, [lanes, *shape]; gradients without `dtype`."""
        source = self.grads if dtype is None else self.computed_in(dtype)
        key = (module, side, first, last, dtype)
        found = self._views.get(key)
        if not isinstance(found, torch.Tensor):
            offset, weight = self.shape.offsets[module, side]
            found = source[first:last, offset : offset + weight.numel].unflatten(1, weight.shape)
            self._views[key] = found
        return found

    def scaling(self, module: str, first: int, last: int, keep: tuple[float, ...] = ()) -> Scales:
        """alpha / r of lanes first:last, divided by `keep` if given."""
        key = (module, first, last, keep)
        found = self._views.get(key)
        if not isinstance(found, Scales):
            values = [slot.scaling[module] for slot in self.slots[first:last]]
            if keep:
                values = [value / share for value, share in zip(values, keep, strict=True)]
            found = self._views[key] = Scales(tuple(values), self.weights.device)
        return found


def _read(adapted: Any, base_modules: set[str]) -> Adapter:
    from torch import nn
    from transformers import Trainer

    modules = dict(adapted.named_modules())
    decaying = set(Trainer.get_decay_parameter_names(None, adapted))
    weights, values, scaling, decays = [], [], {}, []
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, rest = name.partition(".lora_")
        layer, is_lora = modules.get(path), rest in (f"A.{_NAME}.weight", f"B.{_NAME}.weight")
        if layer is None or not is_lora or layer.lora_variant:
            raise NoLaneError(f"{name} is trained beside plain LoRA")
        if not isinstance(layer.lora_A[_NAME], nn.Linear):
            raise NoLaneError(f"{path} is no linear layer")
        module = path.removeprefix(_PREFIX)
        if module not in base_modules:  # PEFT wraps a parameter, such as the weights of all experts
            raise NoLaneError(f"{module.removesuffix('.base_layer')} is no linear layer")
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
