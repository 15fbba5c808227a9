"""What libraries refuse of models of other shapes is found before the start, with a way out."""

from __future__ import annotations

import shlex

import pytest
from support.config_reading import read
from support.tiny_archs import tiny
from support.training import train_spec

from orchestrator.config.prepare import adapter_problems
from trainers.dry_run import failed_step
from trainers.model.loading import adapter_refusal
from trainers.model.source import beyond_the_loss, load_config

LORA = {"method": "lora", "r": 4}


def problems(name: str, *words: str) -> list[str]:
    path = tiny(name).path
    spec, space = read("sweep=base", "model=hub", f"model.path={path}", *words)
    return [str(problem) for problem in adapter_problems(spec, space)]


def test_experts_take_no_dropout() -> None:
    (problem,) = problems("qwen3_moe", "peft.lora_dropout=0.0,0.1")
    assert "does not work with lora_dropout" in problem
    assert "(The trial with peft.lora_dropout=0.1.)" in problem
    word = "peft.target_modules=[q_proj, v_proj]"
    assert shlex.quote(word) in problem
    assert problems("qwen3_moe", "peft.lora_dropout=0.0,0.1", word) == []
    linked = "[{peft.lora_dropout: 0.1, peft.target_modules: [q_proj]},"
    linked += "{peft.lora_dropout: 0, peft.target_modules: all-linear}]"
    assert problems("qwen3_moe", f"sweep.space.both={linked}") == []


def test_what_a_mamba_cannot_adapt_is_left_out_by_what_is_told() -> None:
    model = tiny("mamba2")
    said = adapter_refusal(model, LORA)
    assert said is not None
    assert "'out_proj' is incompatible" in said
    assert said.endswith("write 'peft.exclude_modules=[out_proj]'")
    assert adapter_refusal(model, {**LORA, "exclude_modules": ["out_proj"]}) is None


@pytest.mark.parametrize("word", ["peft.r=4,8", "trainer.learning_rate=1e-4,1e-3"])
def test_nothing_is_built_for_what_no_adapter_depends_on(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.model.loading.skeleton", None)
    spec, space = read("sweep=base", word)
    assert adapter_problems(spec, space) == []


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (AttributeError("no attribute 'num_experts'"), "trainer.router_aux_loss_coef=0.0 leaves"),
        (IndexError("tuple index out of range"), "trainer.router_aux_loss_coef=0.0 leaves"),
        (AttributeError("'tuple' object has no attribute 'dtype'"), "'peft.exclude_modules=[rout"),
    ],
)
def test_what_libraries_trip_over_in_experts_is_answered(error: Exception, word: str) -> None:
    assert word in failed_step(error, train_spec(model=tiny("granitemoe")))[0]
    assert word not in failed_step(error, train_spec())[0]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("recurrent_gemma", "logits_soft_cap=5"),
        ("modernbert_decoder", "a layer before its head"),
        ("gemma2", None),
        ("granite", None),
    ],
)
def test_a_loss_that_is_not_the_models_is_said(name: str, what: str | None) -> None:
    found = beyond_the_loss(load_config(tiny(name)))
    assert (found or "").startswith(what or "")
    assert bool(found) == bool(what)
