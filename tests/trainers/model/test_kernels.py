"""liger-kernel's kernels in the base of a pack, with torch functions in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fake_liger
from support.packs import Pack, distance, pack, small, small_base, unlike_rows
from support.tiny_archs import tiny
from transformers.models.llama import modeling_llama

from sweeps.config.spec import Kernels, ModelSpec
from trainers.model import kernels
from trainers.model.loading import load_base
from trainers.packed.compatibility import settings
from trainers.packed.frozen_base import Base

ALL = {"target_modules": "all-linear"}


def base(model: ModelSpec | None = None, *, kind: Kernels = "liger", **more: Any) -> Base:
    spec = small(model=model or small_base(), peft=ALL, **more)
    return Base(spec, settings(spec), "cpu", pads=False, kernels=kind)


def own_forwards(model: torch.nn.Module) -> bool:
    """Whether every module computes by its class."""
    return not any("forward" in vars(module) for module in model.modules())


def trained(root: Path, kind: Kernels, **more: Any) -> Pack:
    specs = [
        small(peft=ALL | {"r": rank, "lora_dropout": drop}, seed=rank, learning_rate=1e-3, **more)
        for rank, drop in ((4, 0.0), (4, 0.1), (8, 0.1))
    ]
    return pack(root, specs, data=unlike_rows(), kernels=kind).finish()


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
def test_lanes_with_them_train_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recomputes: bool
) -> None:
    fake_liger.installed(monkeypatch)
    ours = trained(tmp_path / "liger", "liger", gradient_checkpointing=recomputes)
    theirs = trained(tmp_path / "torch", "torch", gradient_checkpointing=recomputes)
    layer = ours.engine._base.model.model.layers[0]
    assert "forward" in vars(layer.mlp)
    assert "forward" in vars(layer.input_layernorm)
    assert own_forwards(theirs.engine._base.model)
    for place, (mine, other) in enumerate(zip(ours.seen, theirs.seen, strict=True)):
        assert mine.losses == pytest.approx(other.losses, rel=1e-6)
        for report, its in zip(mine.measured, other.measured, strict=True):
            assert report == pytest.approx(its, rel=1e-6)
        step = other.commits[-1][0]
        assert distance(ours.checkpoint(place, step), theirs.checkpoint(place, step)) < 1e-5


@pytest.mark.parametrize("outcome", ["used", "fails"])
def test_later_models_of_the_process_are_transformers_own(
    monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    def failing(model: Any = None, **switches: bool) -> None:
        fake_liger.apply_liger_kernel_to_llama(model=model, **switches)
        if model is not None:
            raise RuntimeError("no kernel image")

    failing.__signature__ = fake_liger.SIGNATURE  # type: ignore[attr-defined]
    fake_liger.installed(monkeypatch, **({"llama": failing} if outcome == "fails" else {}))
    names = dict(vars(modeling_llama))
    made = base()
    assert own_forwards(made.model) == (outcome == "fails")
    assert vars(modeling_llama) == names
    again = load_base(small_base(), "cpu")
    assert own_forwards(again)
    assert type(again.model.norm) is modeling_llama.LlamaRMSNorm is not fake_liger.LigerRMSNorm


def wrong_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return fake_liger._Norm.apply(x, 1 + self.weight, self.variance_epsilon)


def wrong_gate(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.down_proj(torch.nn.functional.gelu(self.gate_proj(x)) * self.up_proj(x))


def wrong_backward(self: Any, x: torch.Tensor) -> torch.Tensor:
    found = fake_liger._Norm.apply(x, self.weight, self.variance_epsilon)
    return found.detach() + 0.9 * (found - found.detach())


def overflows(self: Any, x: torch.Tensor) -> torch.Tensor:
    return fake_liger._Norm.apply(x, self.weight, self.variance_epsilon) * float("inf")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", [wrong_norm, wrong_gate, wrong_backward, overflows])
def test_a_kernel_that_computes_something_else_is_found_and_taken_back(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[..., torch.Tensor],
    dtype: Any,
) -> None:
    fake_liger.installed(monkeypatch)
    where = fake_liger.LigerSwiGLUMLP if wrong is wrong_gate else fake_liger.LigerRMSNorm
    monkeypatch.setattr(where, "forward", wrong)
    model = load_base(ModelSpec(path=small_base().path, dtype=dtype), "cpu")
    model.requires_grad_(False).eval()
    before = [dict(vars(module)) for module in model.modules()]
    found = kernels.give(model, is_half=dtype != "float32")
    assert "with them a row differs by" in found
    assert [dict(vars(module)) for module in model.modules()] == before
    assert own_forwards(model)
    if dtype == "float32":
        with caplog.at_level(logging.WARNING):
            base()
        assert "engine.kernels=liger is not used: with them a row differs" in caplog.text


def test_half_precision_rounds_and_is_not_taken_for_another_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_liger.installed(monkeypatch)
    made = base(ModelSpec(path=small_base().path, dtype="bfloat16"), bf16=True)
    assert not own_forwards(made.model)


def test_a_model_for_which_there_are_none_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_liger.installed(monkeypatch)
    with caplog.at_level(logging.WARNING):
        made = base(tiny("gpt_neox"))
    assert made.note == "engine.kernels=liger is not used: liger-kernel has none for gpt_neox"
    assert made.note in caplog.text
    assert own_forwards(made.model)


def test_rotary_embeddings_losses_and_experts_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, bool]] = []

    def patch(
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        layer_norm: bool = True,
        model: Any = None,
    ) -> None:
        if model is not None:
            asked.append({name: on for name, on in locals().items() if on is True})

    fake_liger.installed(monkeypatch, llama=patch, mixtral=patch)
    for name in ("llama_tied", "mixtral"):
        model = load_base(tiny(name), "cpu").requires_grad_(False).eval()
        assert "liger-kernel has none for the norms and gated" in kernels.give(model, is_half=False)
    assert asked == [{"rms_norm": True, "swiglu": True}, {"rms_norm": True}]
