"""From a composed config to a spec: every fault of it found, named, and found at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.config.spec import BudgetSpec, Spec
from sweeps.config.trial_config import trial_config
from sweeps.config.validation import read_spec, read_train, section_problems
from sweeps.core.errors import ConfigError, Problem

CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": None,
    "run_dir": None,
    "accept_changes": False,
    "storage": None,
    "model": {"path": "tiny", "dtype": "auto"},
    "data": {"source": "docstrings", "columns": {}},
    "peft": {"method": "lora", "r": 8},
    "trainer": {"learning_rate": 1e-4},
    "engine": {"kind": "auto", "lanes": "auto"},
    "sweep": {"search": "grid", "budget": {"examples": 64, "epochs": None}},
    "tracking": {"mode": "off", "tags": ["a"]},
    "cluster": {"kind": "local"},
}


def changed(**changes: Any) -> dict[str, Any]:
    """CONFIG with dotted keys, written with __ for a dot, set."""
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        *sections, last = name.split("__")
        part = config
        for section in sections:
            part = part[section]
        part[last] = value
    return config


def read(config: dict[str, Any]) -> tuple[Spec | None, list[str]]:
    problems: list[Problem] = []
    spec = read_spec(
        config,
        base={},
        public={},
        default_name="lr_grid",
        default_run_dir="outputs/lr_grid",
        problems=problems,
    )
    return spec, [str(problem) for problem in problems]


def test_a_config_becomes_a_spec_with_its_defaults() -> None:
    spec, problems = read(changed(seed=3, sweep__keep=5.0, sweep__time_budget_s=60))
    assert problems == []
    assert spec is not None
    assert (spec.name, spec.run_dir, spec.seed) == ("lr_grid", "outputs/lr_grid", 3)
    assert (spec.sweep.keep, spec.sweep.time_budget_s, spec.sweep.evaluations) == (5, 60, 8)
    assert spec.sweep.budget == BudgetSpec(examples=64)
    assert spec.tracking.tags == ("a",)
    assert spec.train.trainer == {"learning_rate": 1e-4}


def test_a_bare_off_in_yaml_is_the_word_off() -> None:
    spec, problems = read(changed(tracking__mode=False))
    assert spec is not None, problems
    assert spec.tracking.mode == "off"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep__pruning": 1}, "sweep.pruning: is no key of the config."),
        ({"sweep__pruner_option": 1}, "Did you mean sweep.pruner_options?"),
        ({"model__pth": "x"}, "model.pth: is no key of the config."),
        ({"trainr": {}}, "trainr: is no key of the config. There are: seed, name"),
        ({"trainr": {}}, "Did you mean trainer?"),
        ({"sweep__budget__examles": 3}, "Did you mean sweep.budget.examples?"),
        ({"sweep__search": "tpr"}, "sweep.search = tpr: must be one of grid, random"),
        ({"sweep__search": "tpr"}, "Did you mean tpe?"),
        ({"sweep__search": "bayes"}, "Did you mean tpe?"),
        ({"sweep__search": "TPE"}, "Did you mean tpe?"),
        ({"tracking__project": 2024}, "must be text. Write 'tracking.project=\"2024\"'"),
        ({"tracking__tags": "a"}, "must be a list of words. Write 'tracking.tags=[a]'"),
        (
            {"tracking__entity": "None"},
            "is a text here; nothing is written null: tracking.entity=n",
        ),
        ({"sweep__direction": "down"}, "must be one of minimize, maximize."),
        (
            {"sweep__direction": "maximize"},
            "sweep.direction = maximize: would rank the worst trial first, since eval_loss is "
            "better when it is lower: leave it out, or set sweep.direction=minimize.",
        ),
        (
            {"sweep__direction": "maximize", "sweep__metric": "train_loss"},
            "since train_loss is better when it is lower",
        ),
        ({"sweep__metric": "eval_los"}, "must be one of eval_loss, train_loss. Did you mean eval_"),
        ({"sweep__trials": "many"}, "sweep.trials = many: must be a whole number or null."),
        ({"sweep__trials": 2.5}, "must be a whole number or null."),
        ({"sweep__trials": True}, "must be a whole number or null."),
        ({"sweep__trials": 0}, "sweep.trials = 0: must be 1 or more."),
        ({"sweep__keep": 0}, "must be 1 or more."),
        ({"sweep__repeats": -1}, "must be 1 or more."),
        ({"sweep__max_retries": -1}, "must be 0 or more."),
        ({"sweep__evaluations": None}, "must be a whole number."),
        ({"sweep__time_budget_s": 0}, "must be above 0."),
        ({"sweep__time_budget_s": float("nan")}, "must be a finite number or null."),
        ({"sweep__budget__examples": 0}, "sweep.budget.examples = 0: must be 1 or more."),
        ({"sweep__budget": 5}, "sweep.budget = 5: must be a mapping of keys."),
        ({"sweep__budget__epochs": 1.0}, "set one of sweep.budget.examples and sweep.budget.epo"),
        ({"sweep__budget": {}}, "set one of sweep.budget.examples and sweep.budget.epochs"),
        ({"sweep__space": "x"}, "sweep.space = x: must be a mapping."),
        ({"engine__lanes": 0}, "must be 1 or more."),
        ({"engine__lanes": "some"}, "must be a whole number or one of auto."),
        ({"engine__gpus_per_trial": -1}, "must be 0 or more."),
        ({"tracking__tags": "a"}, "must be a list of words."),
        ({"cluster__kind": "ray"}, "cluster.address: cluster=ray needs one: auto, or host:port."),
        ({"model": {}}, "model.path: is missing and has no default; set it."),
        ({"model": None}, "model: must be a mapping of keys."),
        ({"peft": None}, "peft: must be a mapping of keys."),
        ({"trainer": 3}, "trainer = 3: must be a mapping of keys."),
        ({"seed": None}, "seed: must be a whole number."),
        ({"seed": -1}, "seed = -1: must be 0 or more."),
        ({"seed": "x"}, "seed = x: must be a whole number."),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(
    change: dict[str, Any], message: str
) -> None:
    spec, problems = read(changed(**change))
    assert spec is None
    assert len(problems) == 1
    assert message in problems[0]


def test_every_problem_is_found_at_once() -> None:
    config = changed(
        seed=-1, sweep__trials=0, sweep__serch="grid", model__dtype="f32", engine__kind="pack"
    )
    del config["trainer"]
    spec, problems = read(config)
    assert spec is None
    keys = [problem.split(":")[0].split(" = ")[0] for problem in problems]
    assert sorted(keys) == sorted(
        ["seed", "sweep.trials", "sweep.serch", "model.dtype", "engine.kind", "trainer"]
    )


@pytest.mark.parametrize(
    "run_dir",
    [
        "../x",
        "a/../b",
        "outputs/..",
        "..",
        "a\nb",
        "a\x00b",
        "a\x1b[2Jb",
        "x" * 300,
        "ok/" + "x" * 201,
    ],
)
def test_a_run_folder_that_could_lie_elsewhere_is_refused(run_dir: str) -> None:
    spec, problems = read(changed(run_dir=run_dir))
    assert spec is None
    assert len(problems) == 1
    assert problems[0].startswith("run_dir = ")
    assert "no part over 200 characters" in problems[0]
    assert len(problems[0]) < 250


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".hidden", "-m", "a b", "x\n", "é", "x" * 101]
)
def test_a_name_that_is_no_folders_name_is_refused(name: str) -> None:
    spec, problems = read(changed(name=name))
    assert spec is None
    assert len(problems) == 1
    assert "it names a folder" in problems[0]


@pytest.mark.parametrize("run_dir", ["out", "/abs/out", "./out..2/a b", "größe"])
def test_plain_folders_are_taken(run_dir: str) -> None:
    spec, problems = read(changed(run_dir=run_dir, name="lr_grid-2.b"))
    assert problems == []
    assert spec is not None
    assert (spec.run_dir, spec.name) == (run_dir, "lr_grid-2.b")


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = [
    f"{section}__{key}"
    for section, keys in CONFIG.items()
    if isinstance(keys, dict)
    for key in [*keys, "budget__epochs" if section == "sweep" else "extra"]
]


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*KEYS, *CONFIG]), LEAVES, max_size=3))
def test_whatever_is_set_gives_a_spec_or_problems(changes: dict[str, Any]) -> None:
    top = {key: value for key, value in changes.items() if "__" not in key}
    nested = {
        key: value
        for key, value in changes.items()
        if "__" in key and key.split("__")[0] not in top
    }
    if "sweep__budget" in nested:
        nested.pop("sweep__budget__epochs", None)
    spec, problems = read(changed(**top, **nested))
    assert (spec is None) == bool(problems)


# ---------------------------------------------------------------------- one trial's config

BASE = {
    "model": {"path": "tiny"},
    "data": {"source": "docstrings"},
    "peft": {"method": "lora", "r": 8, "lora_alpha": "${peft.r}"},
    "trainer": {"learning_rate": 1e-4, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
}
BUDGET = {"examples": 64, "epochs": None}


def test_a_trials_config_is_the_base_with_its_values_and_follows_interpolations() -> None:
    values = {"peft.r": 4, "trainer.optim": "sgd", "trainer.lr_scheduler_kwargs": {"a": 1}}
    config = trial_config(BASE, values, seed=2, budget=BUDGET, evaluations=4)
    assert config["peft"] == {"method": "lora", "r": 4, "lora_alpha": 4}
    assert config["trainer"] == {
        "learning_rate": 1e-4,
        "optim": "sgd",
        "lr_scheduler_kwargs": {"a": 1},
    }
    assert BASE["peft"]["r"] == 8
    train = read_train(config)
    assert (train.seed, train.evaluations, train.budget) == (2, 4, BudgetSpec(examples=64))
    assert train.steps(64) == 8


def test_a_searched_value_that_does_not_fit_is_named() -> None:
    config = trial_config(BASE, {"model.dtype": "f32"}, seed=0, budget=BUDGET, evaluations=4)
    with pytest.raises(ConfigError, match=r"model\.dtype = f32: must be one of auto, float32"):
        read_train(config)


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63, [1, {"a": 10**30}]])
def test_numbers_that_no_float_holds_are_refused_at_any_depth(value: Any) -> None:
    (found,) = section_problems({**CONFIG, "trainer": {"learning_rate": value}})
    assert found.key.startswith("trainer.learning_rate")
    assert "digits: at most 64 bits fit." in str(found)
    assert section_problems({**CONFIG, "seed": 2**63 - 1}) == []


def test_a_long_value_is_cut_where_it_is_shown() -> None:
    assert len(str(Problem(key="a", value="9" * 5000, message="is too long."))) < 250
