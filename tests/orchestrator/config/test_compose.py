"""Command lines: how each override is read, what is refused, and that every file composes."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.checks import read_space
from orchestrator.config.compose import compose_config, differences, flatten, public
from orchestrator.config.config_files import CONF
from orchestrator.config.overrides import sort_overrides, split_top
from sweeps.config.keys import FACTS
from sweeps.config.validation import read_spec
from sweeps.core.errors import ConfigError, Problem
from sweeps.space.parser import parse_space

COMMAND = "python -m orchestrator"
FILES = [CONF / "config.yaml", *sorted(CONF.glob("*/*.yaml"))]


def composed(*argv: str) -> dict[str, Any]:
    return compose_config(argv)[0]


def naming(*argv: str) -> tuple[str, ...]:
    """What the hash in the default folder's name is made of."""
    return tuple(sorted(sort_overrides(argv).naming))


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as error:
        compose_config(argv)
    return str(error.value)


# ---------------------------------------------------------------------- conf/ itself


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_files_head_is_a_command_that_composes_without_problems(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    commands = [shlex.split(line.partition(COMMAND)[2]) for line in head if COMMAND in line]
    assert commands
    own = f"{path.parent.name}={path.stem}"
    if path.parent != CONF and not any(own in words for words in commands):
        commands.append([own])
    for words in commands:
        config, base, name, run_dir = compose_config(words)
        problems: list[Problem] = []
        paths = {"default_name": name, "default_run_dir": run_dir}
        spec = read_spec(config, base=base, public=public(config), problems=problems, **paths)
        assert not problems, words
        assert spec is not None
        parse_space(spec.sweep.space, spec.sweep.when, problems)
        assert not problems, words


def test_a_sweep_without_any_word_is_the_one_to_begin_with() -> None:
    config, base, name, run_dir = compose_config([])
    assert (name, run_dir) == ("lr_grid", "outputs/lr_grid")
    assert list(base) == ["model", "data", "peft", "trainer"]
    assert config["tracking"]["mode"] == "auto"


# ---------------------------------------------------------------------- how overrides are read


def test_a_space_on_the_command_line_replaces_the_files() -> None:
    text = (
        "sweep.space={trainer.optim: choice(sgd, adafactor), 'peft.r': '4,8', b: [{a: 1}, {a: 2}]}"
    )
    sweep = composed("sweep=asha", text)["sweep"]
    assert sweep["space"] == {
        "trainer.optim": "choice(sgd, adafactor)",
        "peft.r": "4,8",
        "b": "[{a: 1}, {a: 2}]",
    }
    assert sweep["when"] == {}  # its condition was about a key that is not searched any more
    problems: list[Problem] = []
    assert len(parse_space(sweep["space"], {}, problems).dimensions) == 3
    assert not problems
    assert composed("sweep=joint", "sweep.space={}")["sweep"]["space"] == {}


def test_a_condition_stays_where_its_key_does() -> None:
    text = "sweep.space={trainer.weight_decay: choice(0, 0.1)}"
    when = composed("sweep=asha", text)["sweep"]["when"]
    assert when == {"trainer.weight_decay": "trainer.optim=adamw_torch"}


@pytest.mark.parametrize(
    "word",
    [
        "sweep.space.peft.r=choice(4, 8)",
        "+sweep.space.peft.r=choice(4, 8)",
        "++sweep.space.peft.r='choice(4, 8)'",
        "peft.r=choice(4, 8)",
        "++peft.r=choice(4, 8)",
    ],
)
def test_one_searched_key_is_added_to_the_files(word: str) -> None:
    space = composed(word)["sweep"]["space"]
    assert list(space) == ["trainer.learning_rate", "trainer.lr_scheduler_type", "peft.r"]
    assert space["peft.r"] == "choice(4, 8)"


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_key_is_set_whichever_sign_of_hydras_it_has(sign: str) -> None:
    trainer = composed(f"{sign}trainer.optim=sgd", f"{sign}trainer.neftune_noise_alpha=5")[
        "trainer"
    ]
    assert (trainer["optim"], trainer["neftune_noise_alpha"]) == ("sgd", 5)


def test_a_searched_key_of_the_file_is_searched_otherwise() -> None:
    space = composed("trainer.learning_rate=1e-4,3e-4")["sweep"]["space"]
    assert space["trainer.learning_rate"] == "1e-4,3e-4"
    assert next(iter(space)) == "trainer.learning_rate"


def test_a_condition_is_set_by_its_whole_key() -> None:
    word = "sweep.when.trainer.weight_decay='trainer.optim=sgd'"
    when = composed("sweep=asha", word)["sweep"]["when"]
    assert when == {"trainer.weight_decay": "trainer.optim=sgd"}


def test_a_condition_on_a_key_that_nobody_sets_is_refused() -> None:
    word = "sweep.when.trainer.weight_decay='trainer.optimm=sgd'"
    problems: list[Problem] = []
    read_space(composed("sweep=asha", word), problems)
    (problem,) = problems
    assert str(problem).startswith("sweep.when.trainer.weight_decay = trainer.optimm=...: ")
    assert "neither searched nor in the config" in str(problem)
    assert problem.nearest == "trainer.optim"


def test_other_overrides_change_the_config_known_or_not() -> None:
    config = composed("trainer.neftune_noise_alpha=5", "~trainer.weight_decay")
    assert config["trainer"]["neftune_noise_alpha"] == 5
    assert "weight_decay" not in config["trainer"]


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        ([], {"examples": 1600, "epochs": None}),
        (["sweep.budget.examples=64"], {"examples": 64, "epochs": None}),
        (["sweep.budget.epochs=2"], {"examples": None, "epochs": 2}),
        (["sweep.budget.epochs=2", "sweep.budget.examples=8"], {"examples": 8, "epochs": 2}),
    ],
)
def test_one_budget_takes_the_other_back(words: list[str], budget: dict[str, Any]) -> None:
    assert composed(*words)["sweep"]["budget"] == budget


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: choice(1, 2), b: {c: 1, d: [2, 3]}", ["a: choice(1, 2)", "b: {c: 1, d: [2, 3]}"]),
        ("a: 'x, y', b: \"(\", c: 1", ["a: 'x, y'", 'b: "("', "c: 1"]),
        ("", []),
    ],
)
def test_a_mapping_is_cut_at_its_own_commas(text: str, parts: list[str]) -> None:
    assert list(split_top(text)) == parts


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m"], "-m: Hydra's multirun is not used: the sweep is ours. Leave it out; key=1,2"),
        (["--multirun"], "multirun is not used"),
        (["hydra.mode=MULTIRUN"], "multirun is not used"),
        (["--config-name=x"], "--config-name: is no option. Overrides are written key=value"),
        (["lr_grid"], "lr_grid: is no override; write key=value."),
        (["tracing"], "Did you mean tracking?"),
        ([""], "'': is no override; write key=value."),
        (["=1"], "=1: is no override; write key=value."),
        (["sweep=lr_gird"], "sweep = lr_gird: is none of its choices: accumulation, asha"),
        (["sweep=lr_gird"], "Did you mean lr_grid?"),
        (["model=null"], "model = null: is none of its choices"),
        (["sweep=random"], "Write sweep.search=random"),
        (['data.columns={"prompt": "q"}'], "It is written 'data.columns={prompt: q}'"),
        (["wandb.project=x"], "Did you mean tracking?"),
        (["~model"], "~model: cannot be left out; choose one of hub"),
        (["~model=tiny"], "~model: cannot be left out"),
        (["peft=lora,full"], "peft = lora,full: whole groups cannot be searched"),
        (["trainr.optim=sgd"], "trainr.optim: is no key of the config; its groups are cluster"),
        (["trainr.optim=sgd"], "Did you mean trainer?"),
        (["trainer.optim=[sgd"], "trainer.optim: cannot be read: "),
        (["trainer.optim=${nope}"], "trainer.optim: Interpolation key 'nope' not found"),
        (["sweep.space=choice(1, 2)"], "sweep.space = choice(1, 2): is written {key: choice(a, b)"),
        (["sweep.space={trainer.optim}"], "is written {key: choice(a, b), ...}"),
        (["data=file"], "data.path: is left open by its file; set it on the command line."),
        (["model=hub"], "model.path: is left open by its file"),
    ],
)
def test_what_cannot_be_read_is_refused(words: list[str], message: str) -> None:
    assert message in refused(*words)


def test_every_word_that_cannot_be_read_is_shown_at_once() -> None:
    said = refused("-m", "lr_grid", "model=x", "foo.bar=1", "trainer.optim=sgd")
    assert said.startswith("4 problems in the config:")
    said = refused("data=hub", "model=hub")
    assert said.startswith("2 problems in the config:")


def test_unknown_keys_are_left_for_the_reading_that_knows_their_section() -> None:
    config, base, name, run_dir = compose_config(["sweep.trails=3", "sede=1"])
    problems: list[Problem] = []
    paths = {"default_name": name, "default_run_dir": run_dir}
    assert read_spec(config, base=base, public={}, problems=problems, **paths) is None
    said = "\n".join(map(str, problems))
    assert "Did you mean sweep.trials?" in said
    assert "Did you mean seed?" in said


SECRET = "hf_secretsecret"


@pytest.mark.parametrize(
    "words",
    [
        [f"trainer.hub_token=[{SECRET}"],
        [f"--token={SECRET}"],
        [f"sweep.space.trainer.hub_token={SECRET}", "foo.bar=1"],
        [f"trainer.hub_token={SECRET}", "data=file"],
        [f"model=https://me:{SECRET}@host"],
        [f"sweep.space={{trainer.hub_token={SECRET}}}"],
    ],
)
def test_a_refusal_shows_no_secret(words: list[str]) -> None:
    assert SECRET not in refused(*words)


def test_the_config_as_it_is_written_down_holds_no_secret_and_fits_json() -> None:
    words = [f"trainer.hub_token={SECRET}", f"'data.path=\"https://x?token={SECRET}\"'"]
    config = composed(words[0], shlex.split(words[1])[0], "trainer.max_grad_norm=inf")
    assert config["trainer"]["hub_token"] == SECRET
    shown = public(config)
    assert SECRET not in str(shown)
    assert shown["trainer"]["hub_token"] == "***"
    assert shown["trainer"]["max_grad_norm"] == "inf"
    assert shown["trainer"]["learning_rate"] == config["trainer"]["learning_rate"]


# ---------------------------------------------------------------------- the folder


def test_what_changes_the_training_changes_the_folder() -> None:
    changes = [
        ["seed=1"],
        ["seed=2"],
        ["trainer.optim=sgd", "seed=1"],
        ["~trainer.optim"],
        ["trainer.optim="],
        ["sweep.space={}"],
        ["sweep.space.peft.r=4,8"],
        ["sweep.repeats=2"],
        ["model=hub", "model.path=a/b"],
    ]
    assert len({naming(*words) for words in changes} | {()}) == len(changes) + 1
    name, run_dir = compose_config(["sweep=joint", "seed=1"])[2:]
    assert name == "joint"
    assert re.fullmatch(r"outputs/joint-[0-9a-f]{8}", run_dir)


def test_order_and_hydras_prefixes_do_not_change_the_folder() -> None:
    assert naming("trainer.optim=sgd", "seed=1") == naming("seed=1", "++trainer.optim=sgd")


@pytest.mark.parametrize(
    "words",
    [
        ["sweep=joint"],
        ["sweep.trials=3", "sweep.keep=1", "sweep.time_budget_s=60"],
        ["sweep.max_concurrent=1", "sweep.max_retries=0"],
        ["tracking=offline", "+tracking.x=1", "tracking.project=other"],
        ["cluster.cpus=1", "engine=solo", "engine.cpus_per_trial=2"],
    ],
)
def test_what_may_change_on_a_folder_leaves_its_name(words: list[str]) -> None:
    assert naming(*words) == ()


def test_a_name_names_the_folder() -> None:
    assert compose_config(["name=mine", "sweep.keep=1"])[2:] == ("mine", "outputs/mine")


def test_differences_are_shown_but_for_the_keys_that_may_change() -> None:
    written = public(composed())
    now = public(composed("trainer.optim=sgd", "sweep.trials=9", "engine.lanes=2", "seed=4"))
    changes = differences(now, written)
    assert changes == [("seed", 0, 4), ("trainer.optim", "adamw_torch", "sgd")]
    del written["trainer"]["weight_decay"]
    changes = differences(public(composed()), written)
    assert changes == [("trainer.weight_decay", None, 0.0)]


def test_every_key_with_facts_is_in_conf() -> None:
    leaves = dict(flatten(composed("data=hub", "data.path=x")))
    leaves |= dict(flatten(composed("tracking=mlflow")))
    for key in FACTS:
        assert any(leaf == key or leaf.startswith(f"{key}.") for leaf in leaves), key


KEYS = [
    *("sweep", "sweep.space", "sweep.space.x", "sweep.when.x", "sweep.budget.epochs", "model"),
    *("~peft", "trainer.optim", "++trainer.a.b", "seed", "+x", "hydra.x", "a@b"),
]


@settings(max_examples=120, deadline=None)
@given(
    argv=st.lists(
        st.one_of(
            st.text(max_size=12),
            st.tuples(
                st.sampled_from(KEYS),
                st.text(alphabet="ab1,.:=(){}[]'\"$~+-\\ \n", max_size=8),
            ).map("=".join),
        ),
        max_size=3,
    )
)
def test_whatever_is_typed_is_sorted_or_refused(argv: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        taken = sort_overrides(argv)
        assert len(taken.naming) <= len(argv)
