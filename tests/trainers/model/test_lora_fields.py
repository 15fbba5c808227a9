"""`peft.*`: each field of LoraConfig against its type, and names against the model's modules."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from support.config_reading import read

from orchestrator.config.checks import training_problems
from orchestrator.config.compose import compose_config
from sweeps.config.spec import ModelSpec
from sweeps.core.errors import Problem
from sweeps.space.parser import space_of
from trainers.model.loading import target_problems
from trainers.model.lora import lora_config, peft_problems

TINY = ModelSpec(path="tiny")


def said(*words: str) -> list[str]:
    """What is wrong with a command line's training, fixed and searched."""
    config = compose_config(("sweep=base", *words))[0]
    found = training_problems(config, space_of(config), "cpu")
    return [str(problem) for problem in found]


def absent(peft: dict[str, Any], **searched: list[Any]) -> list[Problem]:
    values = {f"peft.{name}": each for name, each in searched.items()}
    return target_problems(TINY, {"method": "lora", **peft}, values)


@pytest.mark.parametrize("field", ["use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"])
@pytest.mark.parametrize("word", ["no", "off", "yes", "0", "'false'"])
def test_a_word_that_is_no_boolean_turns_nothing_on(field: str, word: str) -> None:
    (problem,) = said(f"peft.{field}={word}")
    assert problem.startswith(f"peft.{field} = ")
    assert problem.endswith("must be true or false.")


def test_searched_words_are_checked_as_fixed_ones_are() -> None:
    no, yes = said("peft.use_rslora=no,yes")
    assert "'no': must be true or false" in no
    assert "'yes': must be true or false" in yes
    assert said("peft.use_rslora=true,false") == []


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("peft.modules_to_save=lm_head", "Write 'peft.modules_to_save=[lm_head]'"),
        ("peft.exclude_modules=3", "must be text or a list or null"),
        ("peft.layers_to_transform=first", "must be a whole number or a list or null"),
        ("peft.rank_pattern={q_proj: many}", "must be a mapping of module names to ranks"),
        ("peft.rank_pattern=8", "must be a mapping of module names to ranks"),
        ("peft.alpha_pattern={q_proj: 0}", "must be a mapping of module names to numbers above 0"),
        ("peft.qalora_group_size=0", "must be a whole number, 1 or more"),
        ("peft.layer_replication=[1]", "must be a list or null"),
        ("peft.loftq_config=x", "must be a mapping"),
        ("peft.r='8'", "must be a whole number, 1 or more"),
        ("peft.lora_alpha=sixteen", "must be a number above 0"),
        ("peft.revision=1", "must be text or null"),
    ],
)
def test_each_field_is_held_against_its_type(word: str, words: str) -> None:
    (problem,) = said(word)
    assert words in problem


def test_what_a_hint_tells_to_type_is_taken() -> None:
    (problem,) = said("peft.modules_to_save=lm_head")
    word = shlex.split(problem.partition("Write ")[2])[0]
    assert said(word) == []


def test_a_value_hides_behind_no_method() -> None:
    (problem,) = said("peft.method=full,lora", "peft.use_dora=no,true")
    assert "peft.use_dora = 'no'" in problem


@pytest.mark.parametrize(
    "peft",
    [
        {"lora_alpha": 12.5, "layers_to_transform": 1, "target_modules": ["q_proj"]},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers", "target_modules": ["q_proj"]},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.0.self_attn.q_proj": 2.5}},
        {"modules_to_save": ["lm_head"], "use_dora": True, "revision": None},
        {"target_modules": r".*\.(q|v)_proj", "exclude_modules": ["o_proj"]},
        {"target_modules": ["self_attn.q_proj"], "init_lora_weights": "gaussian"},
    ],
)
def test_what_peft_takes_is_taken(peft: dict[str, Any]) -> None:
    assert peft_problems(peft) == []
    assert absent(peft) == []
    assert lora_config(peft) is not None


def test_bare_names_that_are_searched_are_told_how_to_mean_both() -> None:
    found = absent({}, target_modules=["q_proj", "v_proj"])
    assert [problem.value for problem in found] == ["q_proj", "v_proj"]
    word = shlex.split(found[0].message.partition("names write ")[2])[0]
    spec, _ = read("sweep=base", word)
    assert spec.train.peft["target_modules"] == ["q_proj", "v_proj"]


def test_one_bare_name_is_told_how_to_be_a_list() -> None:
    (problem,) = absent({"target_modules": "q_proj"})
    assert "write 'peft.target_modules=[q_proj]'" in problem.message


def test_each_searched_list_is_looked_for_in_the_model() -> None:
    found = absent({}, target_modules=[["q_proj", "v_proj"], ["query_key_value"], "all-linear"])
    assert [problem.value for problem in found] == ["query_key_value"]
    assert "q_proj" in found[0].message


@pytest.mark.parametrize(
    ("peft", "key", "near"),
    [
        ({"modules_to_save": ["lm_heads"]}, "modules_to_save", "lm_head"),
        ({"exclude_modules": ["q_porj"]}, "exclude_modules", "q_proj"),
        ({"exclude_modules": "v_prj"}, "exclude_modules", "v_proj"),
        ({"layers_pattern": "layer"}, "layers_pattern", "layers"),
        ({"layers_to_transform": [0, 99]}, "layers_to_transform", None),
        ({"rank_pattern": {"q_porj": 4}}, "rank_pattern", "q_proj"),
        (
            {"target_modules": "all-linear", "alpha_pattern": {"kproj": 4}},
            "alpha_pattern",
            "k_proj",
        ),
        ({"rank_pattern": {"o_proj": 4}}, "rank_pattern", "q_proj"),  # there, without an adapter
    ],
)
def test_names_that_the_model_lacks_are_named(
    peft: dict[str, Any], key: str, near: str | None
) -> None:
    (problem,) = absent({"target_modules": ["q_proj"], **peft})
    assert (problem.key, problem.nearest) == (f"peft.{key}", near)


def test_a_fixed_value_that_no_trial_has_is_not_looked_for() -> None:
    assert absent({"target_modules": ["nope"]}, target_modules=[["q_proj"], ["v_proj"]]) == []
    assert absent({"target_modules": ["nope"]}, method=["full"]) == []
