"""Optimizers: every name runs a step here or says why not; what their state weighs is measured."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from transformers import Adafactor

from trainers.optimizers import available, names, notes, problems, state_bytes, unavailable

SIDE = 128  # 16,384 elements: enough for bitsandbytes to quantize

PLAIN = ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def stepped(cls: type[torch.optim.Optimizer], **kwargs: object) -> torch.optim.Optimizer:
    """An optimizer after one step on a weight of SIDE x SIDE and a bias of SIDE."""
    linear = torch.nn.Linear(SIDE, SIDE)
    optimizer = cls(linear.parameters(), **kwargs)  # type: ignore[call-arg]
    linear(torch.ones(1, SIDE)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", names())
def test_an_optimizer_runs_or_says_what_is_missing(name: str) -> None:
    reason = unavailable(name, "cpu")
    found = problems([name], device="cpu")
    if reason is None:
        assert found == []
        assert name in available("cpu")
    else:
        assert [problem.key for problem in found] == ["trainer.optim"]
        assert "install" in reason or "import" in reason or "inside the backward pass" in reason
        assert "What would work here: adamw_torch, " in str(found[0])


def test_torchs_own_optimizers_always_run() -> None:
    assert set(PLAIN) <= set(available("cpu"))


@needs_bitsandbytes
def test_quantized_optimizers_run_on_a_cpu_and_paged_ones_are_noted() -> None:
    assert {"adamw_8bit", "lion_8bit", "paged_adamw_8bit"} <= set(available("cpu"))
    assert "unpaged" in notes(["adamw_8bit", "paged_adamw_8bit"], "cpu")[0]
    assert notes(["paged_adamw_8bit"], "cuda") == []


def test_stepping_inside_backward_is_refused_whatever_is_installed() -> None:
    for name in ("lomo", "galore_adamw_layerwise", "apollo_adamw_layerwise"):
        assert "neither accumulated" in str(unavailable(name, "cpu"))


@pytest.mark.parametrize(
    ("typed", "meant"), [("adam", "adamw_torch"), ("adamw_tourch", "adamw_torch"), ("zzz", None)]
)
def test_unknown_names_come_with_the_nearest_and_with_what_works(
    typed: str, meant: str | None
) -> None:
    (problem,) = problems([typed], device="cpu")
    assert problem.nearest == meant
    assert "adafactor" in problem.message


def test_what_works_is_listed_once() -> None:
    found = problems(["adam", "lomo"], device="cpu")
    assert len(found) == 2
    assert sum("What would work here" in str(problem) for problem in found) == 1


def test_optim_args_reach_the_optimizer_or_are_refused() -> None:
    assert problems(["sgd"], device="cpu", optim_args=["momentum=0.9,nesterov=true"]) == []
    (ignored,) = problems(["sgd", "adamw_torch"], device="cpu", optim_args=["momentun=0.9"])
    assert "would ignore momentun" in ignored.message
    (refused,) = problems(["sgd"], device="cpu", optim_args=["momentum=high"])
    assert refused.key == "trainer.optim_args"
    assert "could not convert string to float" in refused.message


def test_probing_draws_no_random_numbers_and_leaves_gradients_alone() -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        assert unavailable("rmsprop", "cpu", "alpha=0.98") is None
    assert torch.equal(torch.get_rng_state(), before)


def test_state_of_adamw_is_eight_bytes_a_parameter() -> None:
    parameters = SIDE * SIDE + SIDE
    step_counters = 2 * 4
    assert state_bytes(stepped(torch.optim.AdamW)) == 8 * parameters + step_counters


def test_state_of_sgd_is_nothing_and_with_momentum_four_bytes() -> None:
    assert state_bytes(stepped(torch.optim.SGD, lr=0.1)) == 0
    with_momentum = stepped(torch.optim.SGD, lr=0.1, momentum=0.9)
    assert state_bytes(with_momentum) == 4 * (SIDE * SIDE + SIDE)


def test_state_of_adafactor_is_a_row_and_a_column() -> None:
    optimizer = stepped(Adafactor, lr=1e-3, scale_parameter=False, relative_step=False)
    row_column_bias_and_two_scales = 4 * (SIDE + SIDE + SIDE + 2)
    assert state_bytes(optimizer) == row_column_bias_and_two_scales


@needs_bitsandbytes
def test_quantized_state_is_about_two_bytes_and_shared_tables_count_once() -> None:
    from bitsandbytes.optim import AdamW8bit

    weights = [torch.nn.Parameter(torch.zeros(SIDE, SIDE)) for _ in range(4)]
    optimizer = AdamW8bit(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    elements = 4 * SIDE * SIDE
    tables = 2 * 256 * 4  # one signed, one unsigned code book for all parameters
    scales = 2 * 4 * elements // 256
    assert state_bytes(optimizer) == 2 * elements + tables + scales


def test_tensors_that_wrap_several_count_their_parts() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    wrapped = TwoTensor(torch.zeros(10), torch.zeros(10))
    optimizer.state["any"] = {"nested": [wrapped, torch.zeros(5, dtype=torch.uint8)], "step": 3}
    assert state_bytes(optimizer) == 2 * 40 + 5
