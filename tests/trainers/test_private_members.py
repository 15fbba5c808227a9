"""The private members of libraries that we use are there: a release that renames one fails here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from transformers import (
    Adafactor,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from trl import SFTTrainer

from trainers.model.attention import NEEDS
from trainers.packed.optimizer_layout import StackedAdafactor
from trainers.sft import trainer as sft_trainer


def overridden() -> list[tuple[type, str]]:
    """The private methods of the Trainer that our trainer overrides."""
    ours = next(
        each
        for each in vars(sft_trainer).values()
        if isinstance(each, type) and issubclass(each, SFTTrainer) and each is not SFTTrainer
    )
    private = [name for name in vars(ours) if name.startswith("_") and not name.startswith("__")]
    return [(ours, name) for name in private if name != "_commit"]


@pytest.mark.parametrize(
    ("ours", "name"), [*overridden(), (StackedAdafactor, "_rms")], ids=lambda each: str(each)
)
def test_what_is_overridden_is_there_and_is_called_alike(ours: type, name: str) -> None:
    theirs = next(getattr(base, name) for base in ours.__mro__[1:] if hasattr(base, name))
    if name != "_rms":  # a static method, called by place
        known = inspect.signature(theirs).parameters
        assert set(inspect.signature(getattr(ours, name)).parameters) <= set(known)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Trainer, "_save_scaler"),
        (SFTTrainer, "_prepare_dataset"),
        (Adafactor, "_rms"),
        (AutoModelForCausalLM, "_model_mapping"),
        (PreTrainedModel, "_no_split_modules"),
        (PreTrainedModel, "_can_set_attn_implementation"),
        (PretrainedConfig, "_attn_implementation"),
        (PartialState, "_shared_state"),
        (torch, "_fused_dropout"),
        *((LlamaForCausalLM, flag) for flag in (*NEEDS, "_supports_flash_attn")),
    ],
    ids=str,
)
def test_what_is_read_or_called_is_there(owner: Any, name: str) -> None:
    assert hasattr(owner, name)


def test_what_is_set_or_passed_is_known() -> None:
    assert "_internal_call" in inspect.signature(Trainer.save_model).parameters
    assert "_n_gpu" in inspect.getsource(TrainingArguments)
    assert "self._tr_loss" in inspect.getsource(Trainer)
