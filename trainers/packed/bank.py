"""Where the weights of lanes live: those of one shape together, lane-major, in one tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


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
    """What lanes must have in common to be computed by the same batched matmuls.

    Attributes:
        weights: of one lane, in the order in which PEFT and the optimizer number them.
        rows: of a micro-batch.
    """

    weights: tuple[Weight, ...]
    rows: int
    dtype: torch.dtype

    @cached_property
    def numel(self) -> int:
        return sum(weight.numel for weight in self.weights)

    @cached_property
    def offsets(self) -> dict[tuple[str, str], tuple[int, Weight]]:
        """(module, side) -> where the matrix begins in a lane's vector, and what it is."""
        found, offset = {}, 0
        for weight in self.weights:
            found[weight.module, weight.side] = (offset, weight)
            offset += weight.numel
        return found

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """A lane's vector [numel] as views of its matrices."""
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
        self._views: dict[object, torch.Tensor | float] = {}

    def add(self, slot: Slot, values: torch.Tensor) -> None:
        """Give `slot` a place, with these weights [numel]."""
        self._rebuild([*self.slots, slot], {id(slot): values})

    def remove(self, slot: Slot) -> None:
        """Give the memory of `slot` back."""
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
        """The weights have been stepped."""
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

    def scaling(
        self, module: str, first: int, last: int, keep: tuple[float, ...] = ()
    ) -> torch.Tensor | float:
        """alpha / r of lanes first:last, divided by `keep` if given; [lanes, 1, 1], or one number
        if it is the same for all."""
        key = (module, first, last, keep)
        found = self._views.get(key)
        if found is None:
            values = [slot.scaling[module] for slot in self.slots[first:last]]
            if keep:
                values = [value / share for value, share in zip(values, keep, strict=True)]
            found = values[0]
            if len(set(values)) > 1:
                found = torch.tensor(values, device=self.weights.device)[:, None, None]
            self._views[key] = found
        return found
