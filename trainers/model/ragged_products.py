"""Multiplies the tokens of each lane with that lane's own low-rank matrices.

Tokens of lanes lie one after another: `x` [tokens, features]. Matrices are [lanes, r, features].
What has r numbers a token, `low`, is handed from one product to the next; its shape is a matter of
the class. Lanes with equally many tokens take batched matmuls. Others take a loop of matmuls on a
CPU, which is faster than padding lanes and than `grouped_mm`, and grouped matmuls on GPUs that have
them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# BLAS on a CPU takes three times as long for a product with few columns as for the transposed one.
# So a product with a side of r is computed with r rows.
_FEW = 16
_ALIGNED = 8  # numbers of bfloat16 in 16 bytes, of which grouped matmuls want multiples


class Equal:
    """Products of lanes with equally many tokens; `low` is [lanes, r, tokens of a lane]."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._counts = list(counts)

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        """A scale for each lane, [lanes, 1, 1], over its tokens, [tokens, 1]."""
        pairs = zip(scales.view(-1, 1).unbind(), self._counts, strict=True)
        return torch.cat([scale.expand(count, 1) for scale, count in pairs])

    def low(self, w: torch.Tensor, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Compute scale x w' for each lane."""
        x = self._by_lane(x).transpose(1, 2)
        return torch.baddbmm(x.new_empty(()), w, x, beta=0, alpha=scale)

    def scaled(self, low: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Multiply `low` in place by a scale for each lane, [lanes, 1, 1]."""
        return low.mul_(scales)

    def high(
        self, low: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute low w, [tokens, features]; into `out` if given."""
        into = None if out is None else self._by_lane(out)
        return torch.bmm(low.transpose(1, 2), w, out=into).flatten(0, 1)

    def add(self, target: torch.Tensor, low: torch.Tensor, w: torch.Tensor, scale: float) -> None:
        """Add scale x low w to `target` [tokens, features]."""
        self._by_lane(target).baddbmm_(low.transpose(1, 2), w, alpha=scale)

    def accumulate(
        self, sums: torch.Tensor, low: torch.Tensor, x: torch.Tensor, scale: float
    ) -> None:
        """Add scale x low' x of each lane to `sums` [lanes, r, features]."""
        x, is_turned = self._by_lane(x), sums.stride(-1) != 1
        is_slow = is_turned and low.shape[1] < _FEW and low.device.type == "cpu"
        if low.dtype != sums.dtype or is_slow:
            sums.add_(torch.bmm(low, x), alpha=scale)
        elif is_turned:
            turned = sums.transpose(1, 2)
            turned.baddbmm_(x.transpose(1, 2), low.transpose(1, 2), alpha=scale)
        else:
            sums.baddbmm_(low, x, alpha=scale)

    def _by_lane(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(self._counts), -1, x.shape[-1])


class Looped(Equal):
    """Products of lanes with unlike numbers of tokens, lane by lane; `low` is [r, tokens]."""

    def low(self, w: torch.Tensor, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        low = x.new_empty(w.shape[1], len(x))
        for one, own, out in zip(w.unbind(), self._rows(x), self._columns(low), strict=True):
            out.addmm_(one, own.t(), beta=0, alpha=scale)
        return low

    def scaled(self, low: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return low.mul_(self.spread(scales).t())

    def high(
        self, low: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = low.new_empty(low.shape[1], w.shape[2]) if out is None else out
        for one, own, out in zip(w.unbind(), self._columns(low), self._rows(found), strict=True):
            torch.mm(own.t(), one, out=out)
        return found

    def add(self, target: torch.Tensor, low: torch.Tensor, w: torch.Tensor, scale: float) -> None:
        for one, own, out in zip(w.unbind(), self._columns(low), self._rows(target), strict=True):
            out.addmm_(own.t(), one, alpha=scale)

    def accumulate(
        self, sums: torch.Tensor, low: torch.Tensor, x: torch.Tensor, scale: float
    ) -> None:
        pairs = list(zip(self._columns(low), self._rows(x), strict=True))
        if low.dtype == sums.dtype and sums.stride(-1) == 1:
            for into, (few, own) in zip(sums.unbind(), pairs, strict=True):
                into.addmm_(few, own, alpha=scale)
            return
        found = low.new_empty(sums.shape)
        for into, (few, own) in zip(found.unbind(), pairs, strict=True):
            torch.mm(few, own, out=into)
        sums.add_(found, alpha=scale)

    def _rows(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.split(self._counts)

    def _columns(self, low: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return low.split(self._counts, 1)


class Grouped(Equal):
    """The same in bfloat16 by grouped matmuls; `low` is [tokens, r], r rounded up to 8.

    Args:
        ends: where each lane's tokens end, int32, on the device.
    """

    def __init__(self, counts: Sequence[int], ends: torch.Tensor) -> None:
        super().__init__(counts)
        self._ends = ends

    def low(self, w: torch.Tensor, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        low = self._product(x, _aligned(w).transpose(1, 2))
        return low if scale == 1.0 else low.mul_(scale)

    def scaled(self, low: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return low.mul_(self.spread(scales))

    def high(
        self, low: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        found = self._product(low, _aligned(w))
        return found if out is None else out.copy_(found)

    def add(self, target: torch.Tensor, low: torch.Tensor, w: torch.Tensor, scale: float) -> None:
        target.add_(self.high(low, w), alpha=scale)

    def accumulate(
        self, sums: torch.Tensor, low: torch.Tensor, x: torch.Tensor, scale: float
    ) -> None:
        sums.add_(self._product(low.t(), x)[:, : sums.shape[1]], alpha=scale)

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.nn.functional.grouped_mm(left, right, offs=self._ends)
        return found


def _aligned(w: torch.Tensor) -> torch.Tensor:
    """Matrices [lanes, r, features] with rows of zeros, up to a multiple of 8, laid out by rows."""
    missing = -w.shape[1] % _ALIGNED
    return torch.nn.functional.pad(w, (0, 0, 0, missing)) if missing else w


def products(counts: Sequence[int], ends: torch.Tensor | None, w: torch.Tensor) -> Equal:
    """The products of lanes with `counts` tokens each, with matrices as large and in the type of
    `w` [lanes, r, features]."""
    if len(set(counts)) == 1:
        return Equal(counts)
    if ends is not None and _has_groups(w) and w.shape[-1] % _ALIGNED == 0:
        return Grouped(counts, ends)
    return Looped(counts)


def _has_groups(w: torch.Tensor) -> bool:
    """Whether PyTorch has grouped matmuls that do not wait for the device; `meta` stands for one."""
    if w.dtype != torch.bfloat16 or not hasattr(torch.nn.functional, "grouped_mm"):
        return False
    return w.is_meta or (w.is_cuda and torch.cuda.get_device_capability(w.device) >= (9, 0))
