"""Adds to the tokens of each lane the products with that lane's own B and A, and goes back.

Tokens of lanes lie one after another: `x` [tokens, in]. A is [lanes, r, in] and B [lanes, r, out].
What is between the two, `low`, has r numbers a token, in a shape that is a matter of the class.
Lanes with equally many tokens take batched matmuls. Others take a loop of matmuls, which on a CPU
is faster than padding lanes and than `grouped_mm`; on GPUs that have them, grouped matmuls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

# BLAS on a CPU takes three times as long for a product with few columns as for the transposed one.
# So a product with a side of r is computed with r rows.
_FEW = 16
_ALIGNED = 8  # numbers of bfloat16 in 16 bytes, of which grouped matmuls want multiples


@dataclass(frozen=True)
class Scales:
    """A factor of B A x for each lane."""

    values: tuple[float, ...]
    device: torch.device

    @cached_property
    def shared(self) -> float | None:
        """The factor of all lanes, if it is one."""
        return self.values[0] if len(set(self.values)) == 1 else None

    @cached_property
    def column(self) -> torch.Tensor:
        """The factors, [lanes, 1, 1]."""
        return torch.tensor(self.values, device=self.device)[:, None, None]


class Equal:
    """Lanes with equally many tokens; `low` is [lanes, r, tokens of a lane].

    Args:
        counts: the tokens of each lane.
        a, b: the lanes' matrices of a module, [lanes, r, in] and [lanes, r, out].
        rounds: B A x is rounded before it is added up, as PEFT does.
    """

    def __init__(
        self,
        counts: Sequence[int],
        a: torch.Tensor,
        b: torch.Tensor,
        scales: Scales,
        *,
        rounds: bool,
    ) -> None:
        self._counts, self._scales, self._rounds = list(counts), scales, rounds
        self._a, self._b = a, b

    def add(self, target: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add scale B A x to `target` [tokens, out]; returns `low`."""
        scale, low = self._scales.shared, self._low(self._a, x, 1.0)
        if self._rounds:
            target += (self._high(low, self._b) * self._by_token).to(x.dtype)
            return low
        if scale is None:
            low = self._scaled(low)
        self._add(target, low, 1.0 if scale is None else scale)
        return low

    def back(
        self,
        above: torch.Tensor,
        x: torch.Tensor,
        low: torch.Tensor,
        grads_a: torch.Tensor,
        grads_b: torch.Tensor,
        out: torch.Tensor | None = None,
        wanted: bool = True,
    ) -> torch.Tensor | None:
        """Add the gradients of A and B to `grads_a` and `grads_b`, which are shaped as they are.

        Args:
            above: the gradient of what `add` was given as target, [tokens, out].
            out: where the gradient of x goes.

        Returns:
            The gradient of x, [tokens, in], if it is wanted.
        """
        scale, of_b = self._scales.shared, 1.0  # of_b: what `low` lacks of the gradient of B
        if self._rounds:
            above = (above * self._by_token).to(x.dtype)
            grad_low = self._low(self._b, above, 1.0)
        elif scale is None:
            grad_low = self._scaled(self._low(self._b, above, 1.0))
        else:
            grad_low, of_b = self._low(self._b, above, scale), scale
        self._accumulate(grads_b, low, above, of_b)
        self._accumulate(grads_a, grad_low, x, 1.0)
        return self._high(grad_low, self._a, out) if wanted else None

    @property
    def _by_token(self) -> torch.Tensor | float:
        """The scale, if lanes differ in it for each token, [tokens, 1]."""
        if self._scales.shared is not None:
            return self._scales.shared
        pairs = zip(self._scales.column.view(-1, 1).unbind(), self._counts, strict=True)
        return torch.cat([scale.expand(count, 1) for scale, count in pairs])

    def _by_lane(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(self._counts), -1, x.shape[-1])

    def _low(self, w: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
        x = self._by_lane(x).transpose(1, 2)
        return torch.baddbmm(x.new_empty(()), w, x, beta=0, alpha=scale)

    def _scaled(self, low: torch.Tensor) -> torch.Tensor:
        return low.mul_(self._scales.column)

    def _high(
        self, low: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        into = None if out is None else self._by_lane(out)
        return torch.bmm(low.transpose(1, 2), w, out=into).flatten(0, 1)

    def _add(self, target: torch.Tensor, low: torch.Tensor, scale: float) -> None:
        self._by_lane(target).baddbmm_(low.transpose(1, 2), self._b, alpha=scale)

    def _accumulate(
        self, sums: torch.Tensor, low: torch.Tensor, x: torch.Tensor, scale: float
    ) -> None:
        """Add scale x low x of each lane to `sums` [lanes, r, features]."""
        x, is_turned = self._by_lane(x), sums.stride(-1) != 1
        is_slow = is_turned and low.shape[1] < _FEW and low.device.type == "cpu"
        if low.dtype != sums.dtype or is_slow:
            sums.add_(torch.bmm(low, x), alpha=scale)
        elif is_turned:
            turned = sums.transpose(1, 2)
            turned.baddbmm_(x.transpose(1, 2), low.transpose(1, 2), alpha=scale)
        else:
            sums.baddbmm_(low, x, alpha=scale)


class Looped(Equal):
    """Lanes with unlike numbers of tokens, lane by lane; `low` is [r, tokens]."""

    @cached_property
    def _each(self) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """A, B and scale of each lane."""
        return list(zip(self._a.unbind(), self._b.unbind(), self._scales.values, strict=True))

    def add(self, target: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        low = x.new_empty(self._a.shape[1], len(x))
        for (a, b, scale), own, few, into in zip(
            self._each,
            x.split(self._counts),
            low.split(self._counts, 1),
            target.split(self._counts),
            strict=True,
        ):
            torch.mm(a, own.t(), out=few)
            if self._rounds:
                into.add_(torch.mm(few.t(), b).mul_(scale))
            else:
                into.addmm_(few.t(), b, alpha=scale)
        return low

    def back(
        self,
        above: torch.Tensor,
        x: torch.Tensor,
        low: torch.Tensor,
        grads_a: torch.Tensor,
        grads_b: torch.Tensor,
        out: torch.Tensor | None = None,
        wanted: bool = True,
    ) -> torch.Tensor | None:
        out = torch.empty_like(x) if out is None else out
        of_a, of_b = low.new_empty(grads_a.shape), low.new_empty(grads_b.shape)
        for (a, b, scale), high, own, few, to_a, to_b, to_x in zip(
            self._each,
            above.split(self._counts),
            x.split(self._counts),
            low.split(self._counts, 1),
            of_a.unbind(),
            of_b.unbind(),
            out.split(self._counts),
            strict=True,
        ):
            if self._rounds:
                high, scale = high * scale, 1.0
            grad_low = torch.mm(b, high.t())
            to_a.addmm_(grad_low, own, beta=0, alpha=scale)
            to_b.addmm_(few, high, beta=0, alpha=scale)
            if wanted:
                to_x.addmm_(grad_low.t(), a, beta=0, alpha=scale)
        grads_a.add_(of_a)
        grads_b.add_(of_b)
        return out if wanted else None


class Grouped(Equal):
    """The same in bfloat16 by grouped matmuls; `low` is [tokens, r], r rounded up to 8."""

    ends: torch.Tensor  # where each lane's tokens end, int32, on the device

    def _low(self, w: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
        low = self._product(x, _aligned(w).transpose(1, 2))
        return low if scale == 1.0 else low.mul_(scale)

    def _scaled(self, low: torch.Tensor) -> torch.Tensor:
        return low.mul_(self._by_token)

    def _high(
        self, low: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = self._product(low, _aligned(w))
        return found if out is None else out.copy_(found)

    def _add(self, target: torch.Tensor, low: torch.Tensor, scale: float) -> None:
        target.add_(self._high(low, self._b), alpha=scale)

    def _accumulate(
        self, sums: torch.Tensor, low: torch.Tensor, x: torch.Tensor, scale: float
    ) -> None:
        sums.add_(self._product(low.t(), x)[:, : sums.shape[1]], alpha=scale)

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.nn.functional.grouped_mm(left, right, offs=self.ends)
        return found


def _aligned(w: torch.Tensor) -> torch.Tensor:
    """Matrices [lanes, r, features] with rows of zeros, up to a multiple of 8, laid out by rows."""
    missing = -w.shape[1] % _ALIGNED
    return torch.nn.functional.pad(w, (0, 0, 0, missing)) if missing else w


def products(
    counts: Sequence[int],
    ends: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: Scales,
    *,
    rounds: bool,
) -> Equal:
    """The products of lanes with `counts` tokens each; `ends` as `Grouped` has them, if at all."""
    if len(set(counts)) == 1:
        return Equal(counts, a, b, scales, rounds=rounds)
    if ends is None or not _has_groups(a, b):
        return Looped(counts, a, b, scales, rounds=rounds)
    grouped = Grouped(counts, a, b, scales, rounds=rounds)
    grouped.ends = ends
    return grouped


def _has_groups(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether PyTorch has grouped matmuls that do not wait for the device."""
    is_aligned = a.shape[-1] % _ALIGNED == b.shape[-1] % _ALIGNED == 0
    if a.dtype != torch.bfloat16 or not is_aligned:
        return False
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    return a.is_meta or (a.is_cuda and torch.cuda.get_device_capability(a.device) >= (9, 0))
