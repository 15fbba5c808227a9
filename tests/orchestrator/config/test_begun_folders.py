"""A sweep that began before something was refused, or decided otherwise, goes on as it began."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from orchestrator.config import compose
from orchestrator.config.command import Command
from orchestrator.config.decisions import Decisions
from orchestrator.config.prepare import prepare_training
from sweeps.core.errors import ConfigError
from sweeps.ledger.history import History
from sweeps.storage.run_folder import RunFolder
from trainers.model.lora import lora_config

AS_BEGUN = "this sweep goes on as it began; a new one would differ: "


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A folder, which the command `words` began when nothing was decided of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return RunFolder(tmp_path / "run")


def began(folder: RunFolder, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(Decisions, "settle", lambda self: None)
        config = compose.compose_config(words)[0]
    folder.root.mkdir()
    config = {**config, "run_dir": None}
    folder.spec.write_text(yaml.safe_dump(compose.public(config)))
    folder.ledger.write_text("{}\n")


@pytest.mark.parametrize(
    ("words", "searched", "note"),
    [
        (
            ("sweep=lr_grid", "trainer.learning_rate=5e-5"),
            ["trainer.learning_rate", "trainer.lr_scheduler_type"],
            "trainer.learning_rate is 5e-05, as typed: no longer searched",
        ),
        (("sweep=base", "peft=full", "peft.r=4,8"), ["peft.r"], "peft.r: no trial reads it"),
        (("sweep=base", "data.path=x.jsonl"), [], "is not read by data=docstrings"),
        (
            ("sweep=accumulation", "trainer.per_device_train_batch_size=16"),
            ["batching"],
            "whose rows have 8, 4, 2, 1",
        ),
    ],
)
def test_what_was_not_decided_then_is_not_decided_now(
    words: tuple[str, ...],
    searched: list[str],
    note: str,
    begin: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began(begin, words, monkeypatch)
    command = Command.read([*words, "run_dir=run"])
    assert not command.problems
    assert [each.name for each in command.space.dimensions] == searched
    assert command.space.notes[0].startswith(AS_BEGUN)
    assert note in command.space.notes[0]
    assert command.spec is not None
    with (begin.root / "sweep.yaml").open() as file:
        assert compose.differences(command.spec.public, yaml.safe_load(file)) == []


def test_a_sweep_that_is_decided_now_goes_on_too(
    begin: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sweep=lr_grid", "trainer.learning_rate=5e-5"]
    config = {**compose.compose_config(words)[0], "run_dir": None}
    begin.root.mkdir()
    begin.spec.write_text(yaml.safe_dump(compose.public(config)))
    begin.ledger.write_text("{}\n")
    command = Command.read([*words, "run_dir=run"])
    assert [each.name for each in command.space.dimensions] == ["trainer.lr_scheduler_type"]
    assert command.spec is not None
    assert compose.differences(command.spec.public, yaml.safe_load(begin.spec.read_text())) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "note"),
    [
        (("peft.use_rslora=no",), "peft.use_rslora = 'no': must be true or false."),
        (("peft.modules_to_save=lm_head",), "must be a list or null"),
        (
            (
                *("sweep.search=random", "sweep.trials=2", "trainer.warmup_steps=interval(0, 90)"),
                "trainer.learning_rate=1e-4",
            ),
            "gives fractions",
        ),
        (
            ("sweep.pruner=median", "sweep.pruner_options={n_warmup_steps: 50}"),
            "no trial would ever be stopped",
        ),
    ],
)
def test_what_is_refused_by_now_is_noted(
    words: tuple[str, ...], note: str, begin: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sweep=base", *words)
    with pytest.raises(ConfigError) as refused:
        Command.read([*words, "run_dir=run"]).check()
    assert note in str(refused.value)
    began(begin, words, monkeypatch)
    _, space = Command.read([*words, "run_dir=run"]).check()
    assert any(note in each and "goes on as it is" in each for each in space.notes)
    with pytest.raises(ConfigError):  # another sweep is judged as a new one
        Command.read([*words, "run_dir=run", "seed=3"]).check()


def test_what_no_machine_can_do_is_refused_all_the_same(
    begin: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sweep=base", "trainer.tf32=true")
    began(begin, words, monkeypatch)
    with pytest.raises(ConfigError, match="is a number format of GPUs"):
        Command.read([*words, "run_dir=run"]).check()


def test_an_adapter_that_was_not_held_against_types_is_made_as_it_was() -> None:
    made = lora_config({"use_rslora": "no", "modules_to_save": "lm_head"})
    assert made is not None
    assert made.use_rslora == "no"


@pytest.mark.slow
def test_modules_and_schedules_that_do_not_fit_are_noted(
    begin: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sweep=base", "trainer.warmup_steps=500", "sweep.budget.examples=400"]
    words += ["data.limit=120", "data.eval_limit=10", "peft.modules_to_save=[lm_heads]"]
    began(begin, words, monkeypatch)
    spec, space = Command.read([*words, "run_dir=run"]).check()
    ready = prepare_training(spec, space, begin, History(), words)
    assert any("warms up for 500 steps and the trial has 50" in each for each in ready.lines)
    assert any("the model has no module of this name" in each for each in ready.lines)


def test_a_home_in_a_path_stays_as_it_was_written(
    begin: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose.compose_config(["sweep=base", "model=hub", "model.path=a/b"])[0]
    config["model"]["path"] = "~/m"
    begin.root.mkdir()
    begin.spec.write_text(yaml.safe_dump(compose.public({**config, "run_dir": None})))
    begin.ledger.write_text("{}\n")
    words = ["sweep=base", "model=hub", "model.path=~/m"]
    command = Command.read([*words, "run_dir=run"])
    assert command.spec is not None
    assert command.spec.train.model.path == "~/m"
    assert Command.read([*words, "run_dir=other"]).config["model"]["path"].endswith("/home/m")


def test_the_options_of_a_begun_sweeps_pruner_stay_though_its_file_has_others_now(
    begin: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sweep=asha", "run_dir=run"]
    began(begin, words, monkeypatch)
    there = yaml.safe_load(begin.spec.read_text())
    there["sweep"]["pruner_options"] = then = {"min_resource": 1, "reduction_factor": 3}
    begin.spec.write_text(yaml.safe_dump(there))
    again = Command.read(words).spec
    assert again is not None
    assert again.sweep.pruner_options == then
    typed = Command.read([*words, "sweep.pruner_options.min_resource=2"]).spec
    assert typed is not None
    assert typed.sweep.pruner_options == {"min_resource": 2, "reduction_factor": 2}
