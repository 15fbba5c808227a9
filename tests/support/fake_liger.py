"""A liger-kernel of torch functions, for machines without a GPU or Triton.

It patches as liger-kernel 0.8.5 does: the modules of the model that is given, by instance, and the
classes in transformers' module; gradients are written over what comes in, as its kernels do.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        whole = x.float()
        scale = torch.rsqrt((whole * whole).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return (whole * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        whole, above = x.float(), grad.float() * weight.float()
        inner = (above * whole).mean(-1, keepdim=True)
        return grad.copy_(scale * (above - scale * scale * inner * whole)), None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate.float()).to(up.dtype) * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        whole, above = gate.float(), grad.float()
        share = torch.sigmoid(whole)
        for_gate = above * up.float() * share * (1 + whole * (1 - share))
        up.data.copy_(above * whole * share)
        gate.data.copy_(for_gate)
        return gate, up


class LigerRMSNorm(torch.nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


class LigerSwiGLUMLP(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))


def _bind(module: torch.nn.Module, name: str, method: Any) -> None:
    module.__dict__[name] = method.__get__(module, type(module))


def _patch_norm(module: Any) -> None:
    module.offset, module.in_place, module.row_mode = 0.0, True, None
    _bind(module, "forward", LigerRMSNorm.forward)
    _bind(module, "_get_name", lambda self: LigerRMSNorm.__name__)


def apply_liger_kernel_to_llama(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    model: Any = None,
) -> None:
    assert (rope, cross_entropy, fused_linear_cross_entropy) == (False, False, False)
    from transformers.models.llama import modeling_llama

    if rms_norm:
        modeling_llama.LlamaRMSNorm = LigerRMSNorm
    if swiglu:
        modeling_llama.LlamaMLP = LigerSwiGLUMLP
    if model is None:
        return
    base = getattr(model, model.base_model_prefix, model)
    if rms_norm:
        _patch_norm(base.norm)
    for layer in base.layers:
        if swiglu:
            _bind(layer.mlp, "forward", LigerSwiGLUMLP.forward)
        if rms_norm:
            _patch_norm(layer.input_layernorm)
            _patch_norm(layer.post_attention_layernorm)


SIGNATURE = inspect.signature(apply_liger_kernel_to_llama)


def installed(monkeypatch: pytest.MonkeyPatch, **patchers: Any) -> None:
    """Let liger-kernel and Triton be there; `patchers` are further functions by model type."""
    package, ours = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    found = {"llama": apply_liger_kernel_to_llama, **patchers}
    for kind, patcher in found.items():
        setattr(ours, f"apply_liger_kernel_to_{kind}", patcher)
    for module in (package, ours, ModuleType("triton")):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the packages not be installed."""
    there = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name in names else there(name, package)

    monkeypatch.setattr("trainers.model.kernels.find_spec", find)
