"""Adds the lanes' adapters to a linear layer of the base: each lane's A and B on its own rows.

    rows of the batch     lane 0   lane 0   lane 1   lane 1   lane 2        (x: [rows, tokens, in])
    base layer            ------------ one matmul over all rows ------------
    bank 0 (r=8, 2 rows)  [lanes 0, 1: batched matmuls]
    bank 1 (r=4, 1 row)                                       [lane 2: one]

Lanes of one bank are neighbours in the batch, so their rows are one view
[lanes, rows x tokens, in]. Gradients go straight into the bank: no graph node, no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trainers.packed.adapter_bank import Bank
from trainers.packed.dropout import Stream

# BLAS on a CPU takes three times as long for a product with few columns as for the transposed one.
# So a product with a side of r is computed with r rows.
_FEW = 16


@dataclass(kw_only=True)
class Part:
    """Neighbouring lanes of one bank in a pass.

    Attributes:
        first, last: their slots in the bank.
        row: their first row in the batch; each lane has `rows` rows.
        shapes: (rows, tokens) of each lane's own micro-batch, without the padding of this batch.
        streams: the dropout of each lane; None if no lane has any, or in an evaluation.
    """

    bank: Bank
    first: int
    last: int
    row: int
    rows: int
    shapes: Sequence[tuple[int, int]] = ()
    streams: Sequence[Stream] | None = None

    @property
    def lanes(self) -> int:
        return self.last - self.first

    def scale(self, module: str) -> torch.Tensor | float:
        """The factor of the lanes' B A x: alpha / r, and 1 / (1 - p) if dropout is drawn.

        One number if the lanes agree, else [lanes, 1, 1].
        """
        keep = [1 - each.probability for each in self.streams or ()]
        return self.bank.scaling(module, self.first, self.last, tuple(keep))


@dataclass(kw_only=True)
class Pass:
    """Says which rows of a batch belong to which lanes.

    Attributes:
        computes: the number type of autocast; None without it.
        trains: gradients are wanted.
        again: activations are computed anew in the backward pass.
        goes_back: the backward pass has begun, and what is computed now is computed anew.
    """

    parts: list[Part]
    tokens: int  # of a row, padding included
    computes: torch.dtype | None = None
    trains: bool = False
    again: bool = False
    goes_back: bool = False


@dataclass
class Switch:
    """Holds the pass that the layers are in; with None the base computes alone."""

    now: Pass | None = None
    hooked: dict[str, Any] = field(default_factory=dict)

    def hook(self, name: str, module: torch.nn.Module) -> None:
        """Let a linear layer of the base add the adapters of the current pass."""
        if name in self.hooked:
            return
        anchor = torch.zeros((), requires_grad=True)  # so that autograd calls backward
        fresh = type(module) is torch.nn.Linear  # its result is used nowhere else: written in place

        def add(_: torch.nn.Module, given: tuple[Any, ...], base: torch.Tensor) -> Any:
            if self.now is None:
                return None
            return _LanesSum.apply(base, given[0], anchor, self.now, name, fresh)

        if type(module).__name__ == "Linear8bitLt":
            _lane_by_lane(self, module)
        self.hooked[name] = module.register_forward_hook(add)


def _lane_by_lane(switch: Switch, module: torch.nn.Module) -> None:
    """Run a layer on each lane's rows alone: LLM.int8() quantizes by the batch's largest value."""
    whole = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if switch.now is None:
            return whole(x)
        sizes = [part.rows for part in switch.now.parts for _ in range(part.lanes)]
        rows = x.view(-1, switch.now.tokens, x.shape[-1]).split(sizes)
        return torch.cat([whole(lane) for lane in rows]).view(*x.shape[:-1], -1)

    module.forward = forward


class _LanesSum(torch.autograd.Function):
    """Computes base + scaling B A dropout(x) of each lane; gradients of A, B go to the banks.

    A scale that a part's lanes share is a factor of a matmul; different scales go into `low`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: torch.Tensor,  # [rows, tokens, out], or [rows x tokens, out]
        x: torch.Tensor,  # [rows, tokens, in], likewise
        anchor: torch.Tensor,
        now: Pass,
        name: str,
        fresh: bool,
    ) -> torch.Tensor:
        if fresh:
            ctx.mark_dirty(base)
        result = base if fresh else base.clone()
        flat_x, flat_result = x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1])
        kept: list[torch.Tensor | None] = [x]
        for part in now.parts:
            if not part.bank.has(name):
                kept += [None, None]
                continue
            ours = _own(part, now, flat_x, name)
            mask = _mask(part, now, name, ours, _memory_order(x))
            dropped = ours if mask is None else ours * mask
            a = part.bank.view(name, "A", part.first, part.last, ours.dtype)  # [lanes, r, in]
            b = part.bank.view(name, "B", part.first, part.last, ours.dtype)  # [lanes, out, r]
            scale = part.scale(name)
            low = torch.bmm(a, dropped.transpose(1, 2))  # [lanes, r, rows x tokens]
            target = _rows(part, now, flat_result)
            if not _adds_in_place(ours, target, now):  # rounded where PEFT rounds
                added = torch.bmm(low.transpose(1, 2), b.transpose(1, 2))
                target += (added * scale).to(ours.dtype)
            elif isinstance(scale, float):
                target.baddbmm_(low.transpose(1, 2), b.transpose(1, 2), alpha=scale)
            else:
                low = low.mul_(scale)
                target.baddbmm_(low.transpose(1, 2), b.transpose(1, 2))
            kept += [low, mask]
        ctx.save_for_backward(*kept)
        ctx.now, ctx.name = now, name
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, *kept = ctx.saved_tensors
        now, name = ctx.now, ctx.name
        flat_x, flat_grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        wanted = ctx.needs_input_grad[1]
        grad_x = None
        if wanted:  # a bank may have no adapter here
            is_whole = all(low is not None for low in kept[::2])
            grad_x = torch.empty_like(flat_x) if is_whole else torch.zeros_like(flat_x)
        for part, low, mask in zip(now.parts, kept[::2], kept[1::2], strict=True):
            if low is None:
                continue
            ours = _own(part, now, flat_x, name)
            dropped = ours if mask is None else ours * mask
            above = _rows(part, now, flat_grad).to(ours.dtype).transpose(1, 2)  # [lanes, out, ...]
            a = part.bank.view(name, "A", part.first, part.last, ours.dtype)
            b = part.bank.view(name, "B", part.first, part.last, ours.dtype)
            scale, of_b = part.scale(name), 1.0  # of_b: what `low` lacks of the gradient of B
            if not _adds_in_place(ours, grad, now):
                above = (above * scale).to(ours.dtype)
                grad_low = torch.bmm(b.transpose(1, 2), above)  # as `low`
            elif isinstance(scale, float):
                of_b = scale
                nothing = low.new_empty(())
                grad_low = torch.baddbmm(nothing, b.transpose(1, 2), above, beta=0, alpha=scale)
            else:
                grad_low = torch.bmm(b.transpose(1, 2), above).mul_(scale)
            _accumulate(part, name, "B", above, low.transpose(1, 2), of_b)
            _accumulate(part, name, "A", grad_low, dropped)
            if grad_x is not None:
                target = _rows(part, now, grad_x)
                if mask is None and target.dtype == ours.dtype:
                    torch.bmm(grad_low.transpose(1, 2), a, out=target)
                else:
                    back = torch.bmm(grad_low.transpose(1, 2), a)
                    target.copy_(back if mask is None else back.mul_(mask))
        return grad, None if grad_x is None else grad_x.view(x.shape), None, None, None, None


def _adds_in_place(ours: torch.Tensor, target: torch.Tensor, now: Pass) -> bool:
    """Whether B A x is added to the base's result by the matmul itself.

    PEFT rounds it to half precision first. So does this layer without autocast, and always in
    evaluations: PEFT measures the best checkpoint again.
    """
    is_exact = ours.dtype == torch.float32 or (now.computes is not None and now.trains)
    return is_exact and ours.dtype == target.dtype


def _accumulate(
    part: Part,
    name: str,
    side: str,
    left: torch.Tensor,
    right: torch.Tensor,
    scale: float = 1.0,
) -> None:
    """Add scale x left @ right to the gradients of the part's lanes."""
    grads = part.bank.view(name, side, part.first, part.last, None)
    if right.shape[-1] < _FEW and right.device.type == "cpu":
        turned = torch.bmm(right.transpose(1, 2), left.transpose(1, 2)).transpose(1, 2)
        grads.add_(turned, alpha=scale)
    elif left.dtype == torch.float32 == grads.dtype:
        grads.baddbmm_(left, right, alpha=scale)
    else:
        grads.add_(torch.bmm(left, right), alpha=scale)


def _rows(part: Part, now: Pass, flat: torch.Tensor) -> torch.Tensor:
    """View the part of a batch [rows x tokens, features] as [lanes, rows x tokens, features]."""
    begin, length = part.row * now.tokens, part.rows * now.tokens
    return flat[begin : begin + part.lanes * length].view(part.lanes, length, flat.shape[-1])


def _own(part: Part, now: Pass, flat: torch.Tensor, name: str) -> torch.Tensor:
    """The part's inputs [lanes, rows x tokens, in], in the type that its matmuls compute in."""
    total = max(each.row + each.rows * each.lanes for each in now.parts) * now.tokens
    if flat.shape[0] != total:
        raise RuntimeError(
            f"{name} is given {flat.shape[0]} positions where the batch has {total}: this model's "
            "layers cannot be shared by lanes. engine=solo trains it"
        )
    return _rows(part, now, flat).to(now.computes or part.bank.weights.dtype)


def _memory_order(x: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of `x` [rows, tokens, in], the slowest in memory first.

    Some models hand a layer a transposed view (the out_proj of Mamba), and dropout draws in the
    order of memory.
    """
    if x.dim() != 3:
        return (0, 1, 2)
    strides = x.stride()
    return tuple(sorted(range(3), key=strides.__getitem__, reverse=True))


def _mask(
    part: Part, now: Pass, name: str, ours: torch.Tensor, order: tuple[int, ...]
) -> torch.Tensor | None:
    """Dropout of the part's lanes: 1 where an input is kept, else 0, [lanes, rows x tokens, in].

    Kept inputs grow by 1 / (1 - p), which is part of the lanes' scale. None without any dropout.
    """
    if part.streams is None:
        return None
    mask = torch.ones(ours.shape, dtype=torch.uint8, device=ours.device)
    by_row = mask.view(part.lanes, part.rows, now.tokens, ours.shape[-1])
    for place, (stream, (rows, tokens)) in enumerate(zip(part.streams, part.shapes, strict=True)):
        if stream.probability:
            by_row[place, :rows, :tokens] = stream.mask(
                name,
                (rows, tokens, ours.shape[-1]),
                part.bank.shape.dtype,
                again=now.again,
                goes_back=now.goes_back,
                order=order,
            )
    return mask
