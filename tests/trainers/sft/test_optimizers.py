"""Optimizers: every name runs a step here or says why not; what their state weighs is measured."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
from support.training import train_spec
from torch.testing._internal.two_tensor import TwoTensor
from transformers import Adafactor

from orchestrator.config.command import read_command
from orchestrator.workers.trial_loop import TrialLoop
from orchestrator.workers.worker_config import WorkerConfig
from sweeps.core.errors import ConfigError, SweepError
from trainers.sft.optimizers import (
    _trial_step,
    available,
    class_and_kwargs,
    names,
    notes,
    problems,
    state_bytes,
    step_each,
    trained_type,
    unavailable,
)

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


@needs_bitsandbytes
def test_what_has_no_kernel_for_bfloat16_on_a_gpu_is_refused_where_adapters_are_that() -> None:
    """As bitsandbytes' own table of kernels says, which can be read without a GPU."""
    kernels_32bit, kernels_8bit = (
        kernels("str2optimizer32bit"),
        kernels("str2optimizer8bit_blockwise"),
    )

    def steps_by_kernel_of_32_bits(name: str) -> str | None:
        cls, arguments = class_and_kwargs(name, None, {})
        if arguments.get("optim_bits") != 32:
            return None
        optimizer = cls([torch.nn.Parameter(torch.zeros(1))], **arguments)
        return str(optimizer.optimizer_name)

    of_32_bits = {name: steps_by_kernel_of_32_bits(name) for name in available("cuda")}
    without = {
        name
        for name, kernel in of_32_bits.items()
        if kernel is not None and kernels_32bit[kernel] < 3
    }
    assert set(kernels_8bit.values()) == {3}
    assert without == set(available("cuda")) - set(available("cuda", "bfloat16"))
    assert {"rmsprop_bnb", "adamw_bnb_8bit"} - without == {"adamw_bnb_8bit"}
    assert without <= set(available("cpu", "bfloat16"))

    (found,) = problems(["rmsprop_bnb"], device="cuda", dtype="bfloat16")
    assert "has no kernel for a GPU that steps bfloat16 weights" in found.message
    assert problems(["rmsprop_bnb"], device="cuda") == []


def kernels(table: str) -> dict[str, int]:
    """Optimizer -> for how many number types bitsandbytes has a kernel; bfloat16 is the third."""
    (place,) = importlib.util.find_spec("bitsandbytes").submodule_search_locations  # type: ignore[union-attr]
    tree = ast.parse(Path(place, "backends", "cuda", "ops.py").read_text(encoding="utf-8"))
    assigned = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    found = assigned[table]
    assert isinstance(found, ast.Dict)
    return {
        ast.literal_eval(key): len(value.elts)
        for key, value in zip(found.keys, found.values, strict=True)
        if key is not None and isinstance(value, ast.Tuple)
    }


def test_weights_are_trained_in_bfloat16_on_a_quantized_base_and_where_they_are_that() -> None:
    assert trained_type("qlora", "nf4", "auto", "cpu") == "bfloat16"
    assert trained_type("lora", "int8", "float32", "cpu") == "bfloat16"
    assert trained_type("lora", "none", "bfloat16", "cpu") == "float32"
    assert trained_type("full", "none", "bfloat16", "cpu") == "bfloat16"
    assert trained_type("full", "none", "auto", "cpu") == "float32"


def test_on_a_gpu_without_bfloat16_adapters_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.model.precision._has_gpu", lambda: True)
    monkeypatch.setattr("trainers.model.precision._has_bfloat16", lambda: False)
    assert trained_type("qlora", "nf4", "auto", "cuda") == "float32"
    assert trained_type("qlora", "nf4", "auto", "cpu") == "bfloat16"
    assert trained_type("qlora", "nf4", "float16", "cuda") == "float32"
    assert unavailable("rmsprop_bnb", "cuda", dtype="float32") is None


@pytest.mark.parametrize("seen", [True, False])
def test_the_driver_steps_nothing_on_a_gpu(monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    """It would keep a CUDA context there. Here to make anything on "cuda" would raise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    _trial_step.cache_clear()
    try:
        assert set(PLAIN) <= set(available("cuda"))
    finally:
        _trial_step.cache_clear()


def test_a_worker_steps_each_and_says_which_cannot() -> None:
    step_each(PLAIN, "cpu", "bfloat16")
    with pytest.raises(SweepError, match=r"^trainer.optim = lomo: cannot run here: .*sweep.space$"):
        step_each(["sgd", "lomo"], "cpu", "float32")


def test_a_command_line_is_asked_for_the_type_that_its_adapters_have() -> None:
    words = [
        "engine.gpus_per_trial=1",
        "tracking=off",
        "sweep.space.trainer.optim=[sgd,rmsprop_bnb]",
    ]
    for peft, refused in (("qlora", True), ("lora", False)):
        try:
            read_command([*words, f"peft={peft}"])
            found = ""
        except ConfigError as error:
            found = str(error)
        assert ("trainer.optim = rmsprop_bnb: has no kernel for a GPU" in found) is refused


def test_before_the_dry_run_a_worker_steps_what_is_searched(tmp_path: Path) -> None:
    worker_config = WorkerConfig(
        root=tmp_path, examples=1, cpus=1, gpus=0, optimizers=("sgd", "lomo")
    )
    with pytest.raises(SweepError, match=r"trainer\.optim = lomo: cannot run here"):
        TrialLoop(None, worker_config, "worker 0", "here", worker_config.files())._step(
            train_spec()
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@needs_bitsandbytes
def test_on_a_gpu_each_is_stepped_as_the_table_says() -> None:
    fails = []
    for name in available("cuda"):
        try:
            step_each([name], "cuda", "bfloat16")
        except SweepError:
            fails.append(name)
    assert set(available("cuda")) - set(fails) == set(available("cuda", "bfloat16"))


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
