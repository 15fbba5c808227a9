"""A trial's own config: the short way to it, where nothing is interpolated, leads to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.command import read_command
from sweeps.config import trial_config as config_trial_config
from sweeps.config.trial_config import config_of, trial_config, trial_key

SWEEPS = sorted(p.stem for p in (Path(__file__).parents[3] / "conf" / "sweep").glob("*.yaml"))
BASE: dict[str, Any] = {
    "model": {"path": "tiny", "dtype": "auto"},
    "data": {"columns": {"prompt": "question"}},
    "peft": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "trainer": {"learning_rate": 1e-4, "optim_args": None, "kwargs": {"deep": {"er": 1}}},
}


def both(
    base: dict[str, Any], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Any]:
    budget = {"examples": 8, "epochs": None}
    short = trial_config(base, values, seed=1, budget=budget, evaluations=2)
    monkeypatch.setattr(config_trial_config, "_set_plainly", lambda *_: None)
    long = trial_config(base, values, seed=1, budget=budget, evaluations=2)
    monkeypatch.undo()
    return short, long


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"peft.r": 4, "trainer.learning_rate": 3e-4},
        {"peft.target_modules": ["o_proj"], "trainer.kwargs.deep.er": [1, {"a": None}]},
        {"trainer.new": True, "trainer.kwargs": {"other": "1e-4"}},
        {"trainer.fresh.deep": 1},  # there is no trainer.fresh yet
        {"trainer.optim_args.x": 1},
        {"peft.target_modules[0]": "k_proj"},
    ],
)
def test_the_short_way_leads_to_the_same(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = both(BASE, values, monkeypatch)
    assert short == long
    assert trial_key(short) == trial_key(long)


def test_interpolations_follow_what_was_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BASE | {"peft": {"r": 8, "lora_alpha": "${peft.r}"}}
    short, long = both(base, {"peft.r": 32}, monkeypatch)
    assert short == long
    assert short["peft"]["lora_alpha"] == 32


def test_a_trials_config_is_its_own() -> None:
    changed = {"trainer.kwargs": {"list": [1]}}
    one = trial_config(BASE, changed, seed=0, budget={}, evaluations=1)
    one["peft"]["target_modules"].append("mine")
    one["trainer"]["kwargs"]["list"].append("mine")
    assert BASE["peft"]["target_modules"] == ["q_proj", "v_proj"]
    assert changed == {"trainer.kwargs": {"list": [1]}}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_sweeps_that_ship_keep_their_trials(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _ = read_command([f"sweep={name}"])
    values = {"trainer.learning_rate": 3e-4, "trainer.optim": "sgd"}
    short = config_of(spec, values)
    monkeypatch.setattr(config_trial_config, "_set_plainly", lambda *_: None)
    assert trial_key(config_of(spec, values)) == trial_key(short)
