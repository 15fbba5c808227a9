"""Products of lanes with their own matrices: batched, in a loop and grouped, all the same."""

from __future__ import annotations

import pytest
import torch

from trainers.flat.products import Equal, Grouped, Looped, Scales, products

LANES, RANK, INTO, OUT = 3, 4, 16, 24


def made(
    kind: type[Equal], counts: list[int], dtype: torch.dtype, scales: tuple[float, ...]
) -> list[torch.Tensor]:
    """What is added, and the gradients of A, B and x."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    a, b = random(LANES, RANK, INTO), random(LANES, OUT, RANK).transpose(1, 2)
    x, above = random(sum(counts), INTO), random(sum(counts), OUT)
    target = torch.zeros(sum(counts), OUT, dtype=dtype)
    grads_a = torch.zeros(LANES, RANK, INTO)
    grads_b = torch.zeros(LANES, OUT, RANK).transpose(1, 2)
    of = kind(counts, a, b, Scales(scales, a.device), rounds=False)
    if isinstance(of, Grouped):
        of.ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    low = of.add(target, x)
    return [target, grads_a, grads_b, of.back(above, x, low, grads_a, grads_b)]


@pytest.mark.parametrize("scales", [(2.0, 2.0, 2.0), (2.0, 0.5, 1.0)])
@pytest.mark.parametrize(("kind", "dtype"), [(Looped, torch.float32), (Grouped, torch.bfloat16)])
def test_equally_many_tokens(
    kind: type[Equal], dtype: torch.dtype, scales: tuple[float, ...]
) -> None:
    batched, other = (made(each, [8, 8, 8], dtype, scales) for each in (Equal, kind))
    near = 1e-5 if dtype == torch.float32 else 3e-2
    for mine, theirs in zip(other, batched, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=near, atol=near * float(theirs.abs().max()))


@pytest.mark.parametrize("scales", [(2.0, 2.0, 2.0), (2.0, 0.5, 1.0)])
def test_unlike_numbers_of_tokens(scales: tuple[float, ...]) -> None:
    grouped, looped = (made(kind, [5, 1, 11], torch.bfloat16, scales) for kind in (Grouped, Looped))
    for mine, theirs in zip(grouped, looped, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=3e-2, atol=3e-2 * float(theirs.abs().max()))


def test_which_products_are_taken() -> None:
    def taken(counts: list[int], dtype: torch.dtype, device: str) -> type[Equal]:
        a = torch.empty(LANES, RANK, INTO, dtype=dtype, device=device)
        b = torch.empty(LANES, RANK, OUT, dtype=dtype, device=device)
        ends = None if device == "cpu" else torch.empty(LANES, dtype=torch.int32, device=device)
        return type(products(counts, ends, a, b, Scales((1.0,) * LANES, a.device), rounds=False))

    assert taken([4, 4, 4], torch.float32, "cpu") is Equal
    assert taken([4, 4, 5], torch.bfloat16, "cpu") is Looped
    assert taken([4, 4, 5], torch.bfloat16, "meta") is Grouped
    assert taken([4, 4, 5], torch.float32, "meta") is Looped
