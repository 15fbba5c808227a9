"""Adds the lanes' adapters to a linear layer of the base: each lane's A and B on its own tokens.

    tokens of the pass    lane 0      lane 1   lane 2           (x: [1, tokens, in])
    base layer            --- one matmul over all tokens ---
    bank 0 (r=8)          [lanes 0, 1: theirs]
    bank 1 (r=4)                               [lane 2: its own]

Lanes of one bank are neighbours in the pass. In a padded pass, x is [rows, tokens, in], and the
rows of lanes lie one after another as their tokens do here. Gradients go straight into the bank:
no graph node, no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from trainers.model.ragged_products import Equal, Scales, products
from trainers.packed.adapter_bank import Bank
from trainers.packed.dropout import Stream


@dataclass(kw_only=True)
class Part:
    """Neighbouring lanes of one bank in a pass.

    Attributes:
        first, last: their slots in the bank.
        begin: their first token in the pass.
        counts: the tokens of each lane, padding of the pass included.
        ends: where each lane's tokens end, counted from `begin`, on the device; None on a CPU.
        rows: of each lane in a padded pass; 0 in a flat one.
        shapes: (rows, tokens) of each lane's own micro-batch, padded as SFTTrainer pads it.
        kept: of each lane of a flat pass, where its tokens lie in that micro-batch; None if there
            is no padding in it.
        streams: the dropout of each lane; None if no lane has any, or in an evaluation.
    """

    bank: Bank
    first: int
    last: int
    begin: int
    counts: list[int]
    ends: torch.Tensor | None = None
    rows: int = 0
    shapes: Sequence[tuple[int, int]] = ()
    kept: Sequence[torch.Tensor | None] = ()
    streams: Sequence[Stream] | None = None

    @cached_property
    def tokens(self) -> int:
        return sum(self.counts)

    def own(self, flat: torch.Tensor) -> torch.Tensor:
        """View the lanes' tokens of a pass, [tokens of the pass, features]."""
        return flat.narrow(0, self.begin, self.tokens)

    @property
    def lanes(self) -> int:
        return self.last - self.first

    def scales(self, module: str) -> Scales:
        """The factors of the lanes' B A x: alpha / r, and 1 / (1 - p) if dropout is drawn."""
        keep = [1 - each.probability for each in self.streams or ()]
        return self.bank.scaling(module, self.first, self.last, tuple(keep))


@dataclass(kw_only=True)
class Pass:
    """Says which tokens of a pass belong to which lanes.

    Attributes:
        tokens: of the whole pass, padding included.
        computes: the number type of autocast; None without it.
        trains: gradients are wanted.
        again: activations are computed anew in the backward pass.
        goes_back: the backward pass has begun, and what is computed now is computed anew.
    """

    parts: list[Part]
    tokens: int
    computes: torch.dtype | None = None
    trains: bool = False
    again: bool = False
    goes_back: bool = False

    @cached_property
    def is_whole(self) -> bool:
        """Whether each token is some lane's."""
        return sum(part.tokens for part in self.parts) == self.tokens


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
    """Run a layer on each lane's tokens alone: LLM.int8() quantizes by the largest value."""
    whole = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if switch.now is None:
            return whole(x)
        counts = [count for part in switch.now.parts for count in part.counts]
        lanes = x.view(-1, x.shape[-1]).split(counts)
        return torch.cat([whole(lane) for lane in lanes]).view(*x.shape[:-1], -1)

    module.forward = forward


class _LanesSum(torch.autograd.Function):
    """Computes base + scaling B A dropout(x) of each lane; gradients of A, B go to the banks."""

    @staticmethod
    def forward(
        ctx: Any,
        base: torch.Tensor,  # [1, tokens, out], [rows, tokens, out], or flat
        x: torch.Tensor,  # [1, tokens, in], likewise
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
        ctx.products = []
        for part in now.parts:
            if not part.bank.has(name):
                kept += [None, None]
                ctx.products.append(None)
                continue
            ours = _own(part, now, flat_x, name)
            mask = _mask(part, now, name, ours, _memory_order(x))
            target = part.own(flat_result)
            of = _products(part, name, ours.dtype, _rounds(ours, target, now))
            low = of.add(target, ours if mask is None else ours * mask)
            kept += [low, mask]
            ctx.products.append(of)
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
            is_whole = now.is_whole and all(low is not None for low in kept[::2])
            grad_x = torch.empty_like(flat_x) if is_whole else torch.zeros_like(flat_x)
        lanes = zip(now.parts, ctx.products, kept[::2], kept[1::2], strict=True)
        for part, of, low, mask in lanes:
            if low is None:
                continue
            ours = _own(part, now, flat_x, name)
            above = part.own(flat_grad).to(ours.dtype)
            grads = [part.bank.view(name, side, part.first, part.last, None) for side in ("A", "B")]
            into = None if grad_x is None else part.own(grad_x)
            is_direct = mask is None and into is not None and into.dtype == ours.dtype
            back = of.back(
                above,
                ours if mask is None else ours * mask,
                low,
                grads[0],
                grads[1].transpose(1, 2),
                out=into if is_direct else None,
                wanted=wanted,
            )
            if into is not None and back is not None and not is_direct:
                into.copy_(back if mask is None else back.mul_(mask))
        return grad, None if grad_x is None else grad_x.view(x.shape), None, None, None, None


def _products(part: Part, name: str, dtype: torch.dtype, rounds: bool) -> Equal:
    """The products with the lanes' A and B of a module."""
    a = part.bank.view(name, "A", part.first, part.last, dtype)
    b = part.bank.view(name, "B", part.first, part.last, dtype).transpose(1, 2)
    return products(part.counts, part.ends, a, b, part.scales(name), rounds=rounds)


def _rounds(ours: torch.Tensor, target: torch.Tensor, now: Pass) -> bool:
    """Whether B A x is rounded before it is added to the base's result.

    PEFT rounds it to half precision. So does this layer without autocast, and always in
    evaluations: PEFT measures the best checkpoint again.
    """
    is_exact = ours.dtype == torch.float32 or (now.computes is not None and now.trains)
    return not is_exact or ours.dtype != target.dtype


def _own(part: Part, now: Pass, flat: torch.Tensor, name: str) -> torch.Tensor:
    """The part's inputs [tokens, in], in the type that its matmuls compute in."""
    if flat.shape[0] != now.tokens:
        raise RuntimeError(
            f"{name} is given {flat.shape[0]} positions where the batch has {now.tokens}: this "
            "model's layers cannot be shared by lanes. engine=solo trains it"
        )
    return part.own(flat).to(now.computes or part.bank.weights.dtype)


def _memory_order(x: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of `x` [rows, tokens, in], the slowest in memory first.

    Some models hand a layer a transposed view (the out_proj of Mamba), and dropout draws in the
    order of memory.
    """
    if x.dim() != 3:
        return (0, 1, 2)
    strides = x.stride()
    if x.shape[0] == 1:  # whose stride says nothing
        return (0, 1, 2) if strides[1] >= strides[2] else (0, 2, 1)
    return tuple(sorted(range(3), key=strides.__getitem__, reverse=True))


def _mask(
    part: Part, now: Pass, name: str, ours: torch.Tensor, order: tuple[int, ...]
) -> torch.Tensor | None:
    """Dropout of the part's lanes: 1 where an input is kept, else 0, [tokens, in].

    It is drawn at the shape of each lane's own micro-batch. Kept inputs grow by 1 / (1 - p), which
    is part of the lanes' scale. None without any dropout.
    """
    if part.streams is None:
        return None
    mask = torch.ones(ours.shape, dtype=torch.uint8, device=ours.device)
    for place, own in enumerate(mask.split(part.counts)):
        stream, (rows, tokens) = part.streams[place], part.shapes[place]
        if not stream.probability:
            continue
        drawn = stream.mask(
            name,
            (rows, tokens, ours.shape[-1]),
            part.bank.shape.dtype,
            again=now.again,
            goes_back=now.goes_back,
            order=order,
        )
        kept = part.kept[place] if part.kept else None
        if kept is not None:
            torch.index_select(drawn.reshape(-1, ours.shape[-1]), 0, kept, out=own)
        else:
            own.view(part.rows or rows, -1, ours.shape[-1])[:rows, :tokens] = drawn
    return mask
