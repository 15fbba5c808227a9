"""The command line: its verbs, its plan, and all that it refuses before anything is started."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator.cli import VERBS, help_text, main
from orchestrator.config.config_files import CONF, first_comment, groups, sweep_files

QUICK = ("data.limit=120", "data.eval_limit=10", "tracking=off")
RATE = "trainer.learning_rate"
SCHEDULE = "trainer.lr_scheduler_type"

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused: exit code 1, one message, and nothing on disk."""

    def run(*argv: str, verb: str = "") -> str:
        there = tmp_path / "run"
        words = argv if any(word.startswith("run_dir=") for word in argv) else (*argv, _at(there))
        assert main([*([verb] if verb else []), *words]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        assert not there.exists()
        return said.err

    return run


def _at(folder: Path) -> str:
    return f"run_dir={folder}"


def lines(message: str) -> list[str]:
    """The problems, one a line."""
    head, *rest = message.strip().splitlines()
    assert head.startswith(f"{len(rest)} problem")
    return [line.removeprefix("  - ") for line in rest]


# ---------------------------------------------------------------------- verbs


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_names_every_verb_and_choice(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    said = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb}" in said
    for group, choices in groups().items():
        assert f"{group:<10}{', '.join(choices)}" in said
    assert max(map(len, said.splitlines())) <= 120


def test_help_says_what_each_sweep_answers_in_whole_sentences() -> None:
    said = " ".join(help_text().split())
    for path in sweep_files(CONF):
        about = first_comment(path)
        assert about.endswith((".", "?"))
        assert f" {path.stem} {about}" in said


@pytest.mark.parametrize("verb", ["plan", "status", "export"])
def test_each_verb_has_help_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m orchestrator {verb} ")


def test_ctrl_c_ends_a_plan_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.plan.plan", interrupted)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "\nSIGINT: stopped.\n"


def test_an_unknown_verb_is_refused_with_the_nearest(refused: Refused) -> None:
    message = refused("statsu")
    assert "statsu: no such verb" in message
    assert "Did you mean status?" in message


@pytest.mark.parametrize("verb", ["status", "export"])
def test_a_verb_without_its_folder_is_a_usage_error(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb])
    assert left.value.code == 1
    assert f"orchestrator {verb}" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "export"])
def test_a_verb_on_a_folder_without_a_sweep_says_so(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_group_without_a_choice_is_asked_for_one(refused: Refused) -> None:
    assert "Did you mean sweep=CHOICE, one of accumulation, asha" in refused("sweep")
    (said,) = lines(refused("seed=1", "model"))
    assert said.startswith("model: is written model=CHOICE: one of hub, ")


def test_a_verb_takes_its_folder_as_the_others_write_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("status", "export"):
        assert main([verb, f"run_dir={tmp_path / 'absent'}"]) == 1
        assert f"{tmp_path / 'absent'} is no folder" in capsys.readouterr().err


def test_hydras_own_settings_are_refused_not_passed_over(refused: Refused) -> None:
    (said,) = lines(refused("hydra.run.dir=elsewhere"))
    assert said == (
        "hydra.run.dir: Hydra's own settings are not used; run_dir=... says where files go."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1e-4,", "it ends where more should follow"), ("{a", "it makes no sense from {a on")],
)
def test_what_cannot_be_read_is_told_without_a_parsers_words(
    text: str, reason: str, refused: Refused
) -> None:
    (said,) = lines(refused(f"{RATE}={text}"))
    assert said == f"{RATE}: cannot be read: {reason}. Is it whole, and quoted in the shell?"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        *(("lr", RATE), ("learning_rate", RATE), ("trainer.lr", RATE)),
        *(("batch_size", "trainer.per_device_train_batch_size"), ("rank", "peft.r")),
        *(("optimizer", "trainer.optim"), ("trainer.scheduler", SCHEDULE)),
    ],
)
def test_what_people_call_a_key_is_known(word: str, meant: str, refused: Refused) -> None:
    (said,) = lines(refused(f"{word}=1"))
    assert said.endswith(f"Did you mean {meant}?")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["", "plan"])
@pytest.mark.parametrize("below", ["", "/run"])
def test_a_run_dir_that_cannot_be(
    verb: str, below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert main([*([verb] if verb else []), *QUICK, _at(Path(f"{taken}{below}"))]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"run_dir = {taken}")
    assert "Choose " in said
    assert taken.read_text() == "mine"


@pytest.mark.slow
def test_a_plan_asks_whether_the_cluster_is_there(refused: Refused) -> None:
    words = (
        "cluster=ray",
        "cluster.address=127.0.0.1:1",
        "data=file",
        "data.path=https://a/b.json",
    )
    first, second = refused(*words, verb="plan").strip().split("\n")
    assert first.startswith("1. cluster.address = 127.0.0.1:1: no Ray cluster answers")
    assert second.startswith("2. data.path = https://a/b.json: data is read from files on this")


def test_target_modules_that_are_not_there_are_told_once(refused: Refused) -> None:
    (said,) = lines(refused("peft.target_modules=[nope]", *QUICK, verb="plan"))
    assert said.startswith("peft.target_modules = nope: the model has no module of this name")


def test_options_are_no_overrides(refused: Refused) -> None:
    assert "--trials" in refused("--trials=5")
    assert "multirun" in refused("-m", f"{RATE}=1e-4,1e-3")


# ---------------------------------------------------------------------- plan


@pytest.mark.slow
def test_a_plan_says_what_would_run_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "run"
    assert main(["plan", *QUICK, "sweep.repeats=2", "sweep.budget.examples=64", _at(there)]) == 0
    said = capsys.readouterr().out
    for part in (
        "sweep lr_grid: 8 trials x 2 seeds by grid",
        f"searched: {RATE}, {SCHEDULE}",
        f"folder: {there}",
        "model: tiny, lora; float32",
        "rows to train on",
        "budget: 64 examples a trial",
        "the first rows to train on, as the model sees them; what it learns is in [[ ]]",
        '"""<|eos|>]]',
        "more of them: python -m orchestrator show data.limit=120",
        "nothing was started",
    ):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_a_plan_warns_of_what_a_setting_leaves_unused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*QUICK, f"{SCHEDULE}=constant", "sweep=base", _at(tmp_path / "run")]
    assert main(["plan", *words]) == 0
    assert "constant has no warmup" in capsys.readouterr().out


# ---------------------------------------------------------------------- searched keys


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("trainer.learing_rate=1e-4,1e-3", RATE),
        ("sweep.space={trainer.lr_schedule_type: choice(linear,cosine)}", SCHEDULE),
        ("learning_rate=1e-4,1e-3", RATE),
        ("peft.lora_alhpa=8,16", "lora_alpha"),
    ],
)
def test_a_searched_key_that_is_not_in_the_config(word: str, near: str, refused: Refused) -> None:
    problems = lines(refused(word))
    assert problems[0].endswith(f"Did you mean {near}?")
    assert len({problem.split(" = ")[0].split(":")[0] for problem in problems}) == 1


def test_a_key_that_changes_what_is_measured_is_not_searched(refused: Refused) -> None:
    assert "one sweep for each value" in refused("data.max_length=64,128")
    assert "sweep.repeats" in refused("seed=1,2")
    assert "cannot be searched" in refused("peft=lora,full")


# ---------------------------------------------------------------------- values


@pytest.mark.slow
@pytest.mark.parametrize("value", ["abc", "-1", "0", "nan", "inf"])
@pytest.mark.parametrize("searched", [False, True], ids=["fixed", "searched"])
def test_a_learning_rate_that_cannot_be(value: str, searched: bool, refused: Refused) -> None:
    text = f"choice(1e-4,{value})" if searched else value
    (problem,) = lines(refused(f"{RATE}={text}"))
    assert problem.startswith(f"{RATE} = ") or problem.startswith(f"sweep.space.{RATE}")
    assert value in problem
    assert "above 0" in problem or "nan and inf are no values" in problem


def test_everything_that_is_wrong_is_shown_at_once(refused: Refused) -> None:
    message = refused(
        f"sweep.space={{{RATE}: interval(1e-2,1e-4), trainer.weight_decay: choice(), "
        "trainer.adam_beta2: tag(log,interval(0,0.9)), peft.r: choice(4,4)}",
        "trainer.optim=adamw_troch",
        "trainer.lr_scheduler_type=cosin",
    )
    found = lines(message)
    assert len(found) == 6
    for part in (RATE, "trainer.weight_decay", "trainer.adam_beta2", "peft.r"):
        assert any(problem.startswith(f"sweep.space.{part}") for problem in found), part
    assert "Did you mean adamw_torch?" in message
    assert "Did you mean cosine?" in message


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("interval(1e-2,1e-4)", "low"),
        ("tag(log,interval(0,1))", "above 0"),
        ("interval(1e-4,nan)", "finite"),
        ("choice()", "nothing to try"),
        ("choice(1e-4,1e-3,1e-4)", "twice"),
        ("choice(1e-4,", "cannot be read|Write"),
        ("glob(*)", "Write"),
    ],
)
def test_an_expression_that_cannot_be_searched(
    expression: str, said: str, refused: Refused
) -> None:
    message = refused(f"sweep.space={{{RATE}: '{expression}'}}", "sweep.search=random")
    assert any(word in message for word in said.split("|")), message


# ---------------------------------------------------------------------- optimizers, schedules


@pytest.mark.slow
def test_an_unknown_optimizer_names_those_that_work_here(refused: Refused) -> None:
    message = refused("trainer.optim=adamw,sgd")
    assert "trainer.optim = adamw" in message
    for name in ("adamw_torch", "adafactor", "sgd"):
        assert name in message


@pytest.mark.slow
@pytest.mark.skipif(bool(find_spec("grokadamw")), reason="grokadamw is installed")
def test_an_optimizer_whose_package_is_missing(refused: Refused) -> None:
    message = refused("trainer.optim=sgd,grokadamw")
    assert "trainer.optim = grokadamw: cannot run here" in message
    assert "pip install grokadamw" in message
    assert "What would work here: adamw_torch" in message


@pytest.mark.slow
def test_an_unknown_schedule_names_the_known_ones(refused: Refused) -> None:
    message = refused(f"{SCHEDULE}=linear,sawtooth")
    assert f"{SCHEDULE} = sawtooth" in message
    assert "cosine" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "argument"),
    [("cosine_with_min_lr", "min_lr"), ("warmup_stable_decay", "num_decay_steps")],
)
def test_a_schedule_without_its_argument(schedule: str, argument: str, refused: Refused) -> None:
    message = refused(f"{SCHEDULE}=linear,{schedule}")
    assert f"needs {argument}" in message or argument in message


@pytest.mark.slow
def test_what_a_message_suggests_is_accepted(refused: Refused, tmp_path: Path) -> None:
    words = [f"{SCHEDULE}=warmup_stable_decay", "sweep=base"]
    suggested = refused(*words).split("'")[1]
    assert main(["plan", *QUICK, *words, suggested, _at(tmp_path / "run")]) == 0


# ---------------------------------------------------------------------- the sweep itself


@pytest.mark.slow
def test_a_grid_over_a_continuous_range_names_the_ways_out(refused: Refused) -> None:
    message = refused(f"{RATE}=interval(1e-5,1e-2)", "sweep.search=grid")
    assert "sweep.search=random" in message or "random" in message
    assert "choice" in message


@pytest.mark.slow
def test_a_pruner_without_evaluations_to_prune_on(refused: Refused) -> None:
    message = refused("sweep.pruner=asha", "sweep.evaluations=1")
    assert "sweep.evaluations" in message


@pytest.mark.slow
def test_a_search_that_cannot_do_the_space(refused: Refused) -> None:
    assert "cmaes" in refused("sweep.search=cmaes", "sweep.trials=4")


@pytest.mark.parametrize(
    "word",
    [
        "run_dir=out/../../elsewhere",
        "'run_dir=a\tb'",
        f"run_dir={'x' * 300}",
        "name=../x",
        "name=a/b",
    ],
)
def test_a_folder_or_a_name_that_leads_elsewhere(word: str, refused: Refused) -> None:
    (word,) = shlex.split(word)
    assert word.split("=")[0] in refused(word)


def test_a_budget_of_both_kinds_or_none(refused: Refused) -> None:
    assert "sweep.budget" in refused("sweep.budget.examples=null", "sweep.budget.epochs=null")
    assert "sweep.budget.examples" in refused("sweep.budget.examples=0")


def test_a_misspelt_choice_is_refused_with_the_nearest(refused: Refused) -> None:
    assert "Did you mean lr_grid?" in refused("sweep=lrgrid")
    assert "sweep.trails" in refused("sweep.trails=3")


# ---------------------------------------------------------------------- devices


@pytest.mark.slow
@pytest.mark.parametrize("value", ["1.5", "2"])
def test_more_than_one_gpu_for_a_trial(value: str, refused: Refused) -> None:
    assert "a trial trains on one device" in refused(f"engine.gpus_per_trial={value}")


@pytest.mark.slow
def test_more_gpus_than_this_machine_has(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.gpus.usable", lambda: 2)
    message = refused("cluster.gpus=8", "engine.gpus_per_trial=1")
    assert "cluster.gpus = 8: this machine has 2" in message


def test_a_secret_in_a_refused_override_is_not_shown(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz012345")
    message = refused("tracking.api_key=hf_abcdefghijklmnopqrstuvwxyz012345")
    assert "hf_abc" not in message
    assert "tracking.api_key" in message
