"""The base model that a worker keeps: loaded once, and after any trial what it was before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import LORA, TINY, run, train_spec

from sweeps.config.spec import TrainSpec
from trainers.model import cache
from trainers.model.loading import load_base

VARIANTS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "lora": ({"lora_dropout": 0.1}, {}),
    "dora": ({"use_dora": True}, {}),
    "whole modules too": ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, {}),
    "noise": ({}, {"neftune_noise_alpha": 5.0}),
    "checkpointing": ({}, {"gradient_checkpointing": True}),
}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TrainSpec]]:
    """Nothing is kept at first; what is loaded from now on."""
    cache.release()
    loaded: list[Any] = []

    def load(spec: Any, device: str, **more: Any) -> Any:
        loaded.append(spec)
        return load_base(spec, device, **more)

    monkeypatch.setattr(cache, "load_base", load)
    monkeypatch.setattr("trainers.sft.trainer.load_base", load)
    yield loaded
    cache.release()


def variant(name: str) -> TrainSpec:
    peft, trainer = VARIANTS[name]
    return train_spec(peft={**LORA, **peft}, **trainer)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lora", *(pytest.param(n, marks=pytest.mark.long) for n in VARIANTS if n != "lora")]
)
def test_what_a_trial_leaves_is_what_it_found(
    loads: list[TrainSpec], tmp_path: Path, name: str
) -> None:
    spec = variant(name)
    first = run(tmp_path / "first", spec).seen
    before = weights(load_base(TINY, "cpu"))
    assert cache._kept is not None
    model = cache._kept[2]
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())

    run(tmp_path / "between", variant("lora"))
    again = run(tmp_path / "again", spec).seen
    assert len(loads) == 1
    assert again.trained == first.trained
    assert again.measured == first.measured


CHANGING = {
    "full": train_spec(peft={"method": "full"}),
    "pissa": train_spec(peft={**LORA, "init_lora_weights": "pissa"}),
    "biases": train_spec(peft={**LORA, "bias": "all"}),
    "quantized": train_spec(
        peft={**LORA, "method": "qlora"}, model=replace(TINY, quantization="nf4")
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("spec", CHANGING.values(), ids=CHANGING)
def test_a_trial_that_changes_the_base_gets_its_own(
    loads: list[TrainSpec], tmp_path: Path, spec: TrainSpec
) -> None:
    run(tmp_path / "lora", variant("lora"))
    run(tmp_path / "one", spec)
    assert cache.held_mb() == 0
    run(tmp_path / "two", spec)
    assert len(loads) == 3


def test_another_model_takes_the_place_of_the_first(loads: list[TrainSpec]) -> None:
    half = replace(TINY, dtype="bfloat16")
    for model in (TINY, TINY, half, half, TINY):
        cache.base_for(train_spec(model=model), "cpu")
    assert loads == [TINY, half, TINY]


def test_modules_are_a_trials_own_and_weights_are_not(loads: list[TrainSpec]) -> None:
    one, other = (cache.base_for(variant("lora"), "cpu") for _ in range(2))
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert one.config is not other.config
    assert len({id(p) for p in one.parameters()}) == len(pairs), "tied weights stay tied"
    one.requires_grad_(False)
    assert all(weight.requires_grad for weight in other.parameters())
