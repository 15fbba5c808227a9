"""SFTConfig's fields: which a sweep may set, and which values each takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from trl import SFTConfig

from trainers.sft.fields import GONE, LIMITS, OWNED, REFUSED, field_problems
from trainers.sft.validation import problems

FIELDS = {field.name for field in dataclasses.fields(SFTConfig)}


def found(
    trainer: Mapping[str, Any] | None = None,
    searched: Mapping[str, Sequence[Any]] | None = None,
    device: str = "cpu",
) -> str:
    return "\n".join(map(str, problems(trainer or {}, searched=searched or {}, device=device)))


def test_every_field_of_sftconfig_that_is_refused_exists() -> None:
    assert set(OWNED) | set(REFUSED) | set(LIMITS) <= FIELDS
    assert not set(OWNED) & set(REFUSED)
    assert not set(GONE) & FIELDS


@pytest.mark.parametrize("name", sorted(FIELDS - set(OWNED) - set(REFUSED)))
def test_the_default_of_every_other_field_is_accepted(name: str) -> None:
    assert field_problems({name: getattr(SFTConfig, name)}) == []


def test_the_eos_token_is_set_for_all_trials() -> None:
    assert found({"eos_token": "<|im_end|>"}) == ""
    assert "which tokens the evaluation counts" in found(
        searched={"trainer.eos_token": ["<|im_end|>", "<|eos|>"]}
    )


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("output_dir", "run_dir"),
        ("pad_token", "model; rows are tokenized"),
        ("max_steps", "sweep.budget.examples"),
        ("num_train_epochs", "sweep.budget.epochs"),
        ("max_length", "data.max_length"),
        ("seed", "seed"),
        ("data_seed", "seed"),
        ("eval_steps", "sweep.evaluations"),
        ("save_total_limit", "sweep.keep"),
        ("report_to", "tracking"),
        ("fp16", "model.dtype"),
        ("hub_model_id", "export"),
        ("resume_from_checkpoint", "the same command"),
        ("packing", "equal data"),
        ("deepspeed", "engine.devices_per_trial"),
        ("warmup_ratio", "below 1 it is a ratio"),
    ],
)
def test_a_field_that_is_not_the_trainers_names_its_owner(name: str, owner: str) -> None:
    assert owner in found({name: 1})
    assert owner in found(searched={f"trainer.{name}": [1, 2]})


def test_an_unknown_field_names_the_nearest() -> None:
    assert "Did you mean trainer.learning_rate?" in found({"learning_rat": 1e-4})
    assert "Did you mean" not in found({"zzzzzz": 1})


@pytest.mark.parametrize("value", ["abc", -1, 0, math.nan, math.inf, None, True, [1e-4]])
def test_a_learning_rate_is_a_finite_number_above_zero(value: object) -> None:
    assert "must be a finite number above 0." in found({"learning_rate": value})
    assert "must be a finite number above 0." in found(searched={"trainer.learning_rate": [value]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_decay", -0.1),
        ("max_grad_norm", -1),
        ("warmup_steps", -1),
        ("warmup_steps", 2.5),
        ("gradient_accumulation_steps", 0),
        ("gradient_accumulation_steps", 1.5),
        ("per_device_train_batch_size", True),
        ("adam_beta1", 1),
        ("adam_epsilon", 0),
        ("logging_steps", 0),
        ("gradient_checkpointing", "yes"),
        ("lr_scheduler_kwargs", "{}"),
        ("optim_args", "momentum"),
        ("loss_type", "mse"),
        ("optim", 3),
    ],
)
def test_a_value_that_its_field_cannot_take_is_refused(name: str, value: object) -> None:
    assert f"trainer.{name} = {value}: must be " in found({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_decay", 0),
        ("max_grad_norm", 0),
        ("warmup_steps", 0.1),
        ("warmup_steps", 10.0),
        ("adam_beta1", 0),
        ("logging_steps", 0.1),
        ("neftune_noise_alpha", None),
        ("neftune_noise_alpha", 5),
        ("pad_to_multiple_of", 8),
        ("gradient_checkpointing_kwargs", {"use_reentrant": False}),
    ],
)
def test_a_value_at_the_edge_of_its_range_is_accepted(name: str, value: object) -> None:
    assert found({name: value}) == ""
