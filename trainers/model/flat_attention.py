"""Computes causal attention of rows that lie one after another in one sequence, without padding.

Registered with transformers' attention interface under its own name and without a mask function, so
that transformers makes no mask and never looks at the device. Windows, scales, softcaps and sinks
are those that the model's own code passes. Without a layout (`laid_out`) each row of a batch is
attended to by itself, as in a batch that is padded on the right.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from trainers.model import attention

NAME = "flat_rows"  # transformers asks more of names with sdpa or flash in them
# What SDPA does not do: the model's own eager attention computes it.
_EAGER = ("softcap", "s_aux", "position_bias")
_MULTIPLE = 32  # of the tokens of a group on a GPU
_CALL = 2400  # pairs of tokens whose attention takes a CPU as long as a call of its own

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # an older torch
    varlen_attn = None  # type: ignore[assignment]
_TAKES = set(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else set()


@dataclass(frozen=True)
class Layout:
    """Where the rows of a flat sequence lie, on the device.

    Attributes:
        lengths: tokens of each row, in order.
        groups: (rows, tokens) of what is attended to together.
        places: for each place in the groups, the token that lies there; None if the groups are the
            sequence itself, cut.
        back: for each token, its place in the groups.
        ends: where each row ends, with a 0 before them, int32, [rows + 1]; None on a CPU.
    """

    lengths: Sequence[int]
    groups: Sequence[tuple[int, int]]
    places: torch.Tensor | None = None
    back: torch.Tensor | None = None
    ends: torch.Tensor | None = None


_now: list[Layout] = []  # the pass that runs: the backward pass on CUDA is another thread's


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Within, a batch of one sequence holds the rows of `layout`."""
    _now.append(layout)
    try:
        yield
    finally:
        _now.pop()


def register() -> None:
    """Register this attention with transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def lay_out(lengths: Sequence[int], device: torch.device) -> Layout:
    """Lay out rows for a device; the host waits for what it sends there."""
    groups, arrays = grouped(lengths, is_cpu=device.type == "cpu")
    there = [torch.from_numpy(each).to(device) for each in arrays]
    return laid(lengths, groups, there)


def laid(
    lengths: Sequence[int], groups: Sequence[tuple[int, int]], there: Sequence[torch.Tensor]
) -> Layout:
    """The layout of what `grouped` gave, once its arrays are on the device."""
    if not there:
        return Layout(lengths, groups)
    places, back, *ends = there
    return Layout(lengths, groups, places, back, ends[0].to(torch.int32) if ends else None)


def grouped(
    lengths: Sequence[int], *, is_cpu: bool
) -> tuple[list[tuple[int, int]], list[np.ndarray[Any, Any]]]:
    """Group rows of similar length: groups, places, back and ends of a Layout.

    On a CPU a call costs as much as attention to some 50 tokens, and short rows are joined; no
    arrays if rows lie as they are attended to. On a GPU groups are few, and their tokens multiples
    of 32, so that there are few shapes.
    """
    multiple = 1 if is_cpu else _MULTIPLE
    joins = _joins_on_cpu if is_cpu else _joins_on_gpu
    groups: list[tuple[int, int]] = []
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for row in order:
        tokens = -(-lengths[row] // multiple) * multiple
        if groups and joins(groups[-1][1], tokens):
            groups[-1] = (groups[-1][0] + 1, groups[-1][1])
        else:
            groups.append((1, tokens))
    if is_cpu and (len(plain := _cut(lengths)) <= len(groups)):
        return plain, []
    ends = np.cumsum([0, *lengths])
    places, back = [], np.empty(ends[-1], dtype=np.int64)
    sizes = [tokens for rows, tokens in groups for _ in range(rows)]
    at = 0
    for row, tokens in zip(order, sizes, strict=True):
        # The last token once more in place of padding: no earlier one sees it, and none reads it.
        places.append(ends[row] + np.minimum(np.arange(tokens), lengths[row] - 1))
        back[ends[row] : ends[row + 1]] = at + np.arange(lengths[row])
        at += tokens
    arrays = [np.concatenate(places), back]
    return groups, arrays if is_cpu else [*arrays, ends]


def _joins_on_cpu(tokens: int, fewer: int) -> bool:
    return tokens * tokens - fewer * fewer <= _CALL


def _joins_on_gpu(tokens: int, fewer: int) -> bool:
    return 2 * fewer >= tokens


def _cut(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a sequence into groups as it is: neighbours of equal length."""
    groups: list[tuple[int, int]] = []
    for length in lengths:
        if groups and groups[-1][1] == length:
            groups[-1] = (groups[-1][0] + 1, length)
        else:
            groups.append((1, length))
    return groups


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # [rows, heads, tokens, head_dim]
    key: torch.Tensor,  # [rows, key_value_heads, tokens, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to earlier tokens of the same row; [rows, tokens, heads, head_dim].

    Raises:
        ValueError: the layer attends to later tokens, too.
    """
    if options.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise ValueError(f"{type(module).__name__} attends to later tokens")

    def within(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return _attend_rows(module, q, k, v, dropout, scaling, options)

    if not _now:
        return within(query, key, value), None
    layout = _now[-1]
    if layout.ends is not None and _has_kernel(query, value, options):
        return _by_kernel(query, key, value, layout, scaling, options.get("sliding_window")), None
    flat = [each.squeeze(0).transpose(0, 1) for each in (query, key, value)]
    if layout.places is None:
        return _by_group(within, flat, layout.groups)[None], None
    flat = [_Taken.apply(each, layout.places, layout.back) for each in flat]
    found = _by_group(within, flat, layout.groups)
    return _Taken.apply(found, layout.back, layout.places, True)[None], None


def _by_group(
    within: Callable[..., torch.Tensor],
    flat: Sequence[torch.Tensor],  # query, key and value, [tokens, heads, head_dim]
    groups: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """Attend group by group; [tokens, heads, head_dim]."""
    sizes = [rows * tokens for rows, tokens in groups]
    cuts = [each.split(sizes) if len(sizes) > 1 else (each,) for each in flat]
    found = [
        within(*(x.unflatten(0, (rows, tokens)).transpose(1, 2) for x in qkv)).flatten(0, 1)
        for *qkv, (rows, tokens) in zip(*cuts, groups, strict=True)
    ]
    return torch.cat(found) if len(found) > 1 else found[0]


class _Taken(torch.autograd.Function):
    """Takes `x[places]`, whose gradient is taken by `back` instead of being added up.

    From the sequence to groups the places that pad are taken from a token that lies elsewhere, too;
    no gradient comes to them. From groups to the sequence (`returns`) they get none: zeros.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, places: torch.Tensor, back: torch.Tensor, returns: bool = False
    ) -> torch.Tensor:
        ctx.save_for_backward(places, back)
        ctx.size, ctx.returns = len(x), returns
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        places, back = ctx.saved_tensors
        if not ctx.returns:
            return grads[0].index_select(0, back), None, None, None
        found = grads[0].new_zeros(ctx.size, *grads[0].shape[1:])
        return found.index_copy_(0, places, grads[0]), None, None, None


def _attend_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend within rows of one length; [rows, tokens, heads, head_dim]."""
    tokens, window = query.shape[2], options.get("sliding_window")
    is_eager = any(options.get(name) is not None for name in _EAGER)
    if not is_eager and (window is None or tokens <= window):
        return attention.attend(module, query, key, value, None, dropout, scaling)[0]
    distance = torch.arange(tokens, device=query.device)
    distance = distance[:, None] - distance
    seen = (distance >= 0) & (distance < (window or tokens))  # [tokens, tokens]
    if is_eager:
        unseen = torch.zeros(tokens, tokens, dtype=query.dtype, device=query.device)
        unseen.masked_fill_(~seen, torch.finfo(query.dtype).min)
        own = sys.modules[type(module).__module__].eager_attention_forward
        given = {"scaling": scaling, "dropout": dropout, **options}
        return own(module, query, key, value, unseen[None, None], **given)[0]  # type: ignore[no-any-return]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    found = scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling
    )
    return found.transpose(1, 2)


def _has_kernel(query: torch.Tensor, value: torch.Tensor, options: dict[str, Any]) -> bool:
    """Whether PyTorch's attention for rows of unlike length does what is asked."""
    return (
        {"scale", "window_size"} <= _TAKES
        and query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and query.shape[-1] == value.shape[-1] <= 192
        and query.shape[-1] % 8 == 0
        and not any(options.get(name) is not None for name in _EAGER)
    )


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    flat = [each.squeeze(0).transpose(0, 1).contiguous() for each in (query, key, value)]
    more: dict[str, Any] = {}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in _TAKES:
        more["enable_gqa"] = True
    elif groups > 1:
        flat[1:] = [each.repeat_interleave(groups, dim=1) for each in flat[1:]]
    longest = max(layout.lengths)
    left = window - 1 if window is not None and window < longest else -1
    kernel: Any = varlen_attn
    found: torch.Tensor = kernel(
        *flat,
        layout.ends,
        layout.ends,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        **more,
    )
    return found[None]
