"""Attention of rows in one sequence: the numbers and gradients of each row by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2

from trainers.flat.attention import Layout, attend, grouped, laid, laid_out

LENGTHS = (5, 40, 1, 1, 33, 7)
HEADS, KEY_HEADS, WIDTH = 4, 2, 8


class Soft(torch.nn.Module):
    """Attends as Gemma 2 does."""

    num_key_value_groups = HEADS // KEY_HEADS


Soft.__module__ = modeling_gemma2.__name__


def tensors() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return [torch.randn(shape, generator=draw, requires_grad=True) for shape in shapes]


def laid_out_for(is_cpu: bool, lengths: Sequence[int] = LENGTHS) -> Layout:
    groups, arrays = grouped(lengths, is_cpu=is_cpu)
    return replace(laid(lengths, groups, [torch.from_numpy(each) for each in arrays]), ends=None)


@pytest.mark.parametrize(
    "layout",
    [laid_out_for(True), laid_out_for(False), Layout(LENGTHS, [(1, n) for n in LENGTHS])],
)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 6}, {"softcap": 2.0}])
def test_rows_do_not_see_each_other(layout: Layout, options: dict[str, Any]) -> None:
    module = Soft()
    whole, alone = tensors(), tensors()
    with laid_out(layout):
        found, _ = attend(module, *whole, None, scaling=0.3, **options)
    rows = zip(*(each.split(LENGTHS, dim=2) for each in alone), strict=True)
    each = [attend(module, *row, None, scaling=0.3, **options)[0] for row in rows]
    expected = torch.cat(each, dim=1)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(whole, alone, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_groups_of_a_gpu_are_few_and_each_token_has_a_place() -> None:
    lengths = [900, 30, 500, 460, 8, 3, 2]
    groups, (places, back, ends) = grouped(lengths, is_cpu=False)
    assert groups == [(3, 928), (4, 32)]
    assert len(places) == sum(rows * tokens for rows, tokens in groups)
    assert (places[back] == range(1903)).all()
    assert ends.tolist() == [0, 900, 930, 1430, 1890, 1898, 1901, 1903]
    assert grouped([300, 300, 100], is_cpu=True) == ([(2, 300), (1, 100)], [])


def test_attention_to_later_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="SimpleNamespace attends to later tokens"):
        attend(SimpleNamespace(is_causal=False), *tensors(), None)  # type: ignore[arg-type]
