"""Lays out a lane's matrices as few tensors, so that its optimizer launches less.

States are cut into those of single matrices, and joined again, so that checkpoints do not differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Adafactor

from trainers.packed.adapter_bank import Shape, Weight
from trainers.sft.optimizers import ELEMENTWISE

# bitsandbytes scales 8-bit states by blocks of _BLOCK numbers, and keeps the states of a matrix
# with fewer than _MIN_8BIT numbers in 32 bits.
_BLOCK = 256
_MIN_8BIT = 4096
_SCALES = ("absmax1", "absmax2")  # one number for each block
_TABLES = ("qmap1", "qmap2")  # the values of the 8 bits: the same for all matrices


@dataclass(frozen=True, kw_only=True)
class Flat:
    """All matrices of a lane as one vector [numel]."""

    shape: Shape

    @property
    def places(self) -> Sequence[int]:
        """The places of its matrices among those of the lane."""
        return range(len(self.shape.weights))

    def view(self, vector: torch.Tensor) -> torch.Tensor:
        return vector

    def cut(self, name: str, value: torch.Tensor) -> list[torch.Tensor]:
        """Cut a tensor of the state, [numel] or [2, numel], by matrix."""
        if name in _TABLES:
            return [value for _ in self.places]
        if not value.dim():  # a count of steps, which goes on in place
            return [value.clone() for _ in self.places]
        size = _BLOCK if name in _SCALES else 1
        parts = value.split([weight.numel // size for weight in self.shape.weights], dim=-1)
        if name not in _SCALES:
            pairs = zip(parts, self.shape.weights, strict=True)
            parts = [part.unflatten(-1, weight.shape) for part, weight in pairs]
        return [part.contiguous() for part in parts]

    def join(self, name: str, values: list[torch.Tensor]) -> torch.Tensor:
        """Join the tensors of its matrices to a tensor of the state."""
        if name in _TABLES or not values[0].dim():
            return values[0]
        if name not in _SCALES:
            values = [value.flatten(-2) for value in values]
        return torch.cat(values, dim=-1)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Matrices of one shape at equal distances in a lane's vector, [count, rows, columns].

    Attributes:
        first: the place of the first matrix.
        distance: from the place of one matrix to the next.
    """

    places: tuple[int, ...]
    weight: Weight
    first: int
    distance: int

    def view(self, vector: torch.Tensor) -> torch.Tensor:
        every = vector[self.first :].unfold(0, self.weight.numel, self.distance)
        return every[: len(self.places)].unflatten(1, self.weight.shape)

    def cut(self, name: str, value: torch.Tensor) -> list[torch.Tensor]:
        parts = value.unbind()
        return [part.reshape(()) for part in parts] if name == "RMS" else list(parts)

    def join(self, name: str, values: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(values)
        return stacked[:, None, None] if name == "RMS" else stacked


Piece = Flat | Stack


class StackedAdafactor(Adafactor):  # type: ignore[misc]
    """transformers' Adafactor on stacks of matrices, each scaled by its own root mean square.

    The step calls `_rms`, and has no public hook for it.
    """

    @staticmethod
    def _rms(tensor: torch.Tensor) -> torch.Tensor:
        count = tensor.shape[-2] * tensor.shape[-1]
        return torch.linalg.vector_norm(tensor, dim=(-2, -1), keepdim=True) / count**0.5


def pieces(shape: Shape, optimizer: str, arguments: Mapping[str, Any]) -> list[Piece]:
    """Find the pieces that `optimizer` steps with the numbers of single matrices; else none.

    Args:
        arguments: the arguments that the optimizer is built with.
    """
    if optimizer == "adafactor":
        return list(_stacks(shape))
    bits = arguments.get("optim_bits")  # all of bitsandbytes' have it, and no other
    sizes = [weight.numel for weight in shape.weights]
    in_blocks = all(size >= _MIN_8BIT and size % _BLOCK == 0 for size in sizes)
    is_flat = optimizer in ELEMENTWISE or bits == 32 or (bits == 8 and in_blocks)
    return [Flat(shape=shape)] if is_flat else []


def _stacks(shape: Shape) -> list[Stack]:
    """Stack the same matrix of all layers; a change of the distance begins another stack."""
    alike: dict[object, list[int]] = {}
    begins = []
    for place, (begin, weight) in enumerate(shape.offsets.values()):
        begins.append(begin)
        key = (re.sub(r"\d+", "#", weight.module), weight.side, weight.shape)
        alike.setdefault(key, []).append(place)
    found = []
    for places in alike.values():
        runs: list[list[int]] = [[]]
        for place in places:
            run = runs[-1]
            if len(run) > 1 and begins[place] - begins[run[-1]] != begins[run[1]] - begins[run[0]]:
                runs.append(run := [])
            run.append(place)
        for run in runs:
            weight, first = shape.weights[run[0]], begins[run[0]]
            distance = begins[run[1]] - first if len(run) > 1 else weight.numel
            found.append(Stack(places=tuple(run), weight=weight, first=first, distance=distance))
    return found


def cut(piece: Piece, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cut a piece's state into those of its matrices, in main memory; copies each tensor once."""
    count = len(piece.places)
    each: dict[str, list[Any]] = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            each[name] = piece.cut(name, value.to("cpu", copy=True))
        else:  # bitsandbytes wraps its tensors in a mapping
            each[name] = cut(piece, value) if isinstance(value, Mapping) else [value] * count
    return [{name: values[n] for name, values in each.items()} for n in range(count)]


def joined(piece: Piece, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the states of a piece's matrices."""
    whole: dict[str, Any] = {}
    for name, first in states[0].items():
        values = [state[name] for state in states]
        if isinstance(first, torch.Tensor):
            whole[name] = piece.join(name, values)
        else:
            whole[name] = joined(piece, values) if isinstance(first, Mapping) else first
    return whole
