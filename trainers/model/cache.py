"""Keeps the base model that the solo trials of one process start from, so that it is loaded once.

Every trial gets modules of its own, which the trainer may patch and wrap, over the same weights in
memory: training an adapter changes none of them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from sweeps.config.spec import ModelSpec, TrainSpec
from trainers.model.loading import load_base
from trainers.model.lora import INITS_FROM_BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_kept: tuple[ModelSpec, str, PreTrainedModel] | None = None


def base_for(train: TrainSpec, device: str) -> PreTrainedModel:
    """Get the base of a trial that trains alone on one device; raises what `load_base` does."""
    global _kept
    if not may_share(train):
        release()
        return load_base(train.model, device, trains_base=train.trains_base)
    if _kept is None or _kept[:2] != (train.model, device):
        release()  # before the next one is loaded, since both may not fit
        _kept = (train.model, device, load_base(train.model, device))
    return _with_own_modules(_kept[2])


def may_share(train: TrainSpec) -> bool:
    """Whether training leaves the base's weights as they are, so that two models can share them."""
    peft = train.peft
    return (
        peft.get("method", "lora") == "lora"
        and train.model.quantization == "none"  # its layers keep more than weights
        and peft.get("bias", "none") == "none"
        and peft.get("init_lora_weights") not in INITS_FROM_BASE
    )


def release() -> None:
    """Free the kept model's memory."""
    global _kept
    _kept = None


def held_mb() -> float:
    """MiB of the kept model's weights."""
    if _kept is None:
        return 0.0
    return sum(weight.nbytes for weight in _kept[2].parameters()) / 2**20


def _with_own_modules(model: PreTrainedModel) -> PreTrainedModel:
    # Another Parameter each, so that one that is frozen, or given other data, is not so in the kept
    # model; the data is the same memory.
    memo: dict[int, Any] = {
        id(weight): torch.nn.Parameter(weight.data, requires_grad=weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo)
