"""Gives the norms and gated layers of one model liger-kernel's kernels, if they compute the same.

liger-kernel gives them to the modules of a model, and to the classes in transformers' module, too,
from which every later model of the process would be built: those names are put back at once.
Whether a model computes as before is tried on itself, forward and backward, when it is loaded.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trainers.model.source import has_experts

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

EXTRA = "pip install 'sft-sweeps[gpu]'"
_PACKAGES = {"liger_kernel": "liger-kernel", "triton": "triton"}
_NORMS, _GATED = "rms_norm", ("swiglu", "geglu")  # liger-kernel's names for what it patches
_LENGTHS = (21, 1, 30, 5)  # of the rows that are tried
# The largest relative distance of a row's hidden states, or of the gradient of its embeddings.
# Measured with torch's functions in place of the kernels, on random Llamas of 2 to 32 layers: in
# float32, where they add up in another order, 1.2e-6, and GELU by tanh from GELU by erf 9e-5 to
# 9e-4; in bfloat16, where each layer rounds by up to 0.4%, 0.022, and SiLU from GELU 0.11 to 0.57.
_ALIKE = 3e-5
_ALIKE_IN_HALF = 0.06


def lacking() -> list[str]:
    """The packages that these kernels need and that are not installed; none is imported."""
    return [package for name, package in _PACKAGES.items() if find_spec(name) is None]


def obstacle(config: PretrainedConfig) -> str:
    """Why liger-kernel has nothing for a model, by its config; empty if it has."""
    if _patcher(config) is None:
        return f"liger-kernel has none for {config.model_type}"
    return ""


def give(model: Any, *, is_half: bool) -> str:
    """Give a model's norms and gated layers liger-kernel's kernels; or say why they are not used.

    In the second case the model is as it was. Its weights are frozen, and it evaluates (`eval()`).

    Args:
        is_half: the model computes in half precision.

    Raises:
        What the device raises if its memory is too small.
    """
    import torch

    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    found = "they could not be tried"
    try:
        found = obstacle(model.config) or _tried(model, _ALIKE_IN_HALF if is_half else _ALIKE)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        found = f"with them it fails: {str(error)[:100] or repr(error)}"
    finally:
        if found:
            for now, own in before:
                now.clear()
                now.update(own)
    return found


def _tried(model: Any, alike: float) -> str:
    """Patch a model; how it then differs from what it was, empty if it does not."""
    own = _passed(model)
    own_forward = {id(module): module.forward for module in model.modules()}
    _patch(model)
    if all(module.forward == own_forward[id(module)] for module in model.modules()):
        return f"liger-kernel has none for the norms and gated layers of {model.config.model_type}"
    pairs = zip(_passed(model), own, strict=True)
    worst = max(float((now - was).norm() / was.norm()) for now, was in pairs)
    if worst < alike:
        return ""
    return f"with them a row differs by {worst:.2g} of itself, more than {alike:g}"


def _patcher(config: PretrainedConfig) -> Callable[..., None] | None:
    """liger-kernel's own function for models of this type, if it has one."""
    liger = importlib.import_module("liger_kernel.transformers")
    kind = str(config.model_type)
    names = (f"apply_liger_kernel_to_{name}" for name in (kind, kind.removesuffix("_text")))
    return next((found for name in names if (found := getattr(liger, name, None))), None)


def _patch(model: Any) -> None:
    """Patch the norms and gated layers of a model, and nothing else.

    Rotary embeddings and losses would be those of the whole process. With experts, norms alone:
    liger-kernel's gated layers are then fused experts, which lanes were not tried with.
    """
    patcher = _patcher(model.config)
    assert patcher is not None
    wanted = (_NORMS,) if has_experts(model.config) else (_NORMS, *_GATED)
    arguments = inspect.signature(patcher).parameters
    switches = [name for name, given in arguments.items() if isinstance(given.default, bool)]
    patcher(**dict.fromkeys(switches, False))  # patches nothing: imports what it would patch
    with _names_kept():
        patcher(**{name: name in wanted for name in switches}, model=model)


@contextmanager
def _names_kept() -> Iterator[None]:
    """After it, transformers' modules of models have the classes and functions that they had."""
    modules = [module for name, module in sys.modules.items() if _is_of_a_model(name)]
    before = [(vars(module), dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for now, own in before:
            now.update(own)


def _is_of_a_model(name: str) -> bool:
    return name.startswith("transformers.models.") and ".modeling_" in name


def _passed(model: Any) -> list[torch.Tensor]:
    """The last hidden states of each row, and the gradients of its embeddings, each [tokens, n]."""
    import torch

    embeddings = model.get_input_embeddings()
    weight, inputs = embeddings.weight, []

    def keep(_: Any, __: Any, embedded: torch.Tensor) -> None:
        inputs.append(embedded.requires_grad_())

    draw = torch.Generator().manual_seed(0)
    found, first = [], 3
    hook = embeddings.register_forward_hook(keep)
    try:
        for length in _LENGTHS:
            ids = torch.arange(first, first + length, device=weight.device) % weight.shape[0]
            first += length
            with torch.enable_grad():
                given = model.base_model(input_ids=ids[None], use_cache=False)
                hidden = given.last_hidden_state[0].float()
                weights = torch.randn(hidden.shape, generator=draw).to(hidden.device)
                (grad,) = torch.autograd.grad((hidden * weights).sum(), inputs[-1])
            found += [hidden.detach(), grad[0].float()]
    finally:
        hook.remove()
    return found
