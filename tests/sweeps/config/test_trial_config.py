"""A trial's own config: the base with the searched values, and the key made of it."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.config.trial_config import trial_config, trial_key

BASE: dict[str, Any] = {
    "model": {"path": "tiny", "dtype": "auto"},
    "data": {"columns": {"prompt": "question"}},
    "peft": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "trainer": {"learning_rate": 1e-4, "optim_args": None, "kwargs": {"deep": {"er": 1}}},
}


def made(values: dict[str, Any], base: dict[str, Any] = BASE) -> dict[str, Any]:
    return trial_config(base, values, seed=1, budget={"examples": 8}, evaluations=2)


def test_without_searched_values_it_is_the_base_with_what_each_trial_has() -> None:
    assert made({}) == BASE | {"seed": 1, "budget": {"examples": 8}, "evaluations": 2}


@pytest.mark.parametrize(
    ("values", "section", "changed"),
    [
        ({"peft.r": 4, "model.dtype": "float32"}, "peft", {"r": 4}),
        ({"peft.target_modules": ["o_proj"]}, "peft", {"target_modules": ["o_proj"]}),
        ({"peft.target_modules[0]": "k_proj"}, "peft", {"target_modules": ["k_proj", "v_proj"]}),
        (
            {"trainer.kwargs.deep.er": [1, {"a": None}]},
            "trainer",
            {"kwargs": {"deep": {"er": [1, {"a": None}]}}},
        ),
        (
            {"trainer.new": True, "trainer.kwargs": {"other": "1e-4"}},
            "trainer",
            {"new": True, "kwargs": {"other": "1e-4"}},
        ),
        ({"trainer.fresh.deep": 1}, "trainer", {"fresh": {"deep": 1}}),
        ({"trainer.optim_args.x": 1}, "trainer", {"optim_args": {"x": 1}}),
    ],
)
def test_a_searched_value_takes_the_place_of_the_bases(
    values: dict[str, Any], section: str, changed: dict[str, Any]
) -> None:
    assert made(values)[section] == BASE[section] | changed


def test_interpolations_follow_what_was_searched() -> None:
    base = BASE | {"peft": {"r": 8, "lora_alpha": "${peft.r}"}}
    assert made({"peft.r": 32}, base)["peft"] == {"r": 32, "lora_alpha": 32}


def test_a_trials_config_is_its_own() -> None:
    changed = {"trainer.kwargs": {"list": [1]}}
    one = trial_config(BASE, changed, seed=0, budget={}, evaluations=1)
    one["peft"]["target_modules"].append("mine")
    one["trainer"]["kwargs"]["list"].append("mine")
    assert BASE["peft"]["target_modules"] == ["q_proj", "v_proj"]
    assert changed == {"trainer.kwargs": {"list": [1]}}


def test_a_folder_that_an_older_version_began_finds_its_trials() -> None:
    assert trial_key(made({"trainer.learning_rate": 3e-4, "peft.r": 4})) == "446dc80f73"
