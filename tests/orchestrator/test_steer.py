"""The verbs that steer a sweep, as a user or a program types them, while no driver runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.driving import drive, make, open_sweep
from support.sweep_events import Sweep

from orchestrator.cli import main
from orchestrator.config.command import read_command
from sweeps.core.errors import Problem
from sweeps.core.trial import Report, State
from sweeps.ledger.events import End
from sweeps.storage.requests import Request, unanswered_requests
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"


@pytest.fixture
def waiting(tmp_path: Path) -> RunFolder:
    """A sweep of 4 trials whose driver is gone: one has ended, one is unfinished."""
    coordinator = open_sweep(make(trials=4), tmp_path)
    drive(coordinator, 1)
    coordinator.ask()
    coordinator.close()
    return RunFolder(tmp_path)


def requests(folder: RunFolder) -> list[Request]:
    found = unanswered_requests(folder)
    assert all(isinstance(each, Request) for each in found)
    return [each for each in found if isinstance(each, Request)]


@pytest.mark.parametrize("by", ["number", "key", "name"])
def test_a_trial_is_named_as_the_tables_show_it(
    by: str, waiting: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    from sweeps.core.naming import trial_name
    from sweeps.ledger.history import read_history

    record = list(read_history(waiting.ledger).trials.values())[1]
    word = {"number": "1", "key": record.key, "name": trial_name(record.values)}[by]
    assert main(["stop", str(waiting.root), word]) == 0
    assert "no driver runs; the next start of the sweep reads this first" in capsys.readouterr().out
    (request,) = requests(waiting)
    assert (request.verb, request.trials) == ("stop", (record.key,))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["stop", "{}", "0"], "trial 0 has ended already: it is completed."),
        (["stop", "{}", "9"], "9: no such trial; {} has 0 to 1."),
        (["stop", "{}", "lr=7"], "lr=7: no such trial; {} has 0 to 1."),
        (["stop", "{}"], "the following arguments are required: trial."),
        (["stop", "{}/nowhere", "1"], "{}/nowhere is no folder"),
        (["cancel", "{}"], "no driver runs the sweep in {}: there is nothing to cancel."),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    words: list[str], why: str, waiting: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word.format(waiting.root) for word in words]
    assert main(argv) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert why.format(waiting.root) in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert main([*argv, "--json"]) == 1
    told = capsys.readouterr()
    assert told.err == ""
    (error,) = json.loads(told.out).items()
    assert error[0] == "error"
    assert why.format(waiting.root) in error[1]
    assert not requests(waiting)


def test_a_pause_that_no_driver_has_read_can_be_taken_back(
    waiting: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pause", str(waiting.root)]) == 0
    assert main(["resume", str(waiting.root)]) == 0
    assert [each.verb for each in requests(waiting)] == ["pause", "resume"]
    capsys.readouterr()
    assert main(["resume", str(waiting.root)]) == 1
    assert "is not paused." in capsys.readouterr().err


@pytest.mark.parametrize("words", [["stop", "0"], ["finish"], ["cancel"]], ids=lambda w: w[0])
def test_a_verb_on_an_ended_sweep(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep({LR: "choice(1e-3)"})
    sweep.trial({LR: 1e-3}, [1.0])
    sweep.write(tmp_path)
    verb, *trials = words
    assert main([verb, str(tmp_path), *trials]) == 1
    assert "has ended already." in capsys.readouterr().err


def test_json_has_the_fields_of_the_page_in_their_order(
    waiting: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", str(waiting.root), "1", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    answer = json.loads(told.out)
    assert list(answer) == ["verb", "run_dir", "request", "done", "said", "trials"]
    assert (answer["verb"], answer["done"], answer["trials"]) == ("stop", False, [1])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["add", "{}", "trainer.learnin_rate=1"], "Did you mean trainer.learning_rate?"),
        (["add", "{}", "trainer.learning_rate=fast"], "trainer.learning_rate = fast:"),
        (["add", "{}", "trainer.learning_rate=1,2"], "one value for a key is written key=value"),
        (["add", "{}", "data.max_length=3"], "data.max_length:"),
        (["clone", "{}", "0"], "give a key=value that the clone is to have, or --warm."),
        (["clone", "{}", "7", "trainer.learning_rate=1"], "7: no such trial"),
        (["resume", "{}", "1"], "trial 1 has not ended: it is waiting."),
        (["resume", "{}", "0"], "trial 0 has spent its budget: it is completed."),
        (["resume", "{}"], "the sweep in {} is not paused."),
        (["set", "{}", "sweep.max_concurent=2"], "Did you mean sweep.max_concurrent?"),
        (["set", "{}", "sweep.max_concurrent=0"], "must be 1 or more."),
        (["set", "{}", "engine.lanes=2"], "its next start takes it: engine.lanes=2"),
        (
            ["set", "{}", "sweep.first=[]"],
            "sweep.first cannot be set while a sweep runs; its next start takes it: 'sweep",
        ),
        (["set", "{}", "sweep.space={{a: 1}}"], "its next start takes more of it: "),
        (["set", "{}", "cluster.price_per_device_hour=cheap"], "must be a finite number"),
        (["set", "{}", "sweep.evaluations=2"], ", and may not change. These can: sweep.trials, "),
        (["set", "{}", "trainer.learning_rate=2"], "`add` and `clone` train a config with"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_way_out(
    words: list[str], why: str, asked_of: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(asked_of.root) for word in words]) == 1
    assert why.format(asked_of.root) in capsys.readouterr().err
    assert not requests(asked_of)


@pytest.fixture
def asked_of(tmp_path: Path) -> RunFolder:
    """The same, with the whole config of a real sweep in the ledger."""
    spec, space = read_command(["sweep=lr_grid", "sweep.trials=2", f"run_dir={tmp_path}"])
    coordinator = open_sweep((spec, space), tmp_path)
    coordinator.ask()
    for record in coordinator.history.trials.values():
        attempt = coordinator.start(record.key, worker="a:1", device="cpu", step=0)
        assert attempt is not None
        last = Report(index=8, step=8, examples=8, tokens=8, metrics={"eval_loss": 1.0})
        coordinator.report(record.key, attempt, last)
        coordinator.end(End(trial=record.key, attempt=attempt, state=State.COMPLETED))
    coordinator.ask()
    coordinator.close()
    return RunFolder(tmp_path)


def test_an_ended_sweep_names_the_command_that_reopens_it_for_a_new_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep({LR: "choice(1e-3)"})
    sweep.spec |= {"peft": {"method": "lora"}, "model": {"dtype": "auto", "quantization": "none"}}
    sweep.trial({LR: 1e-3}, [1.0])
    sweep.write(tmp_path)
    assert main(["add", str(tmp_path), "trainer.learning_rate=2e-3"]) == 1
    assert "once the command that reopens it is run: " in capsys.readouterr().err
    (request,) = requests(RunFolder(tmp_path))
    assert (request.verb, request.values) == ("add", {LR: 2e-3})


def test_a_sweep_that_ends_while_a_verb_is_checked_is_said_to_have_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep({LR: "choice(1e-3)"})
    key = sweep.trial({LR: 1e-3}, [1.0], state=None)
    sweep.write(tmp_path)

    def checked(*_: object) -> list[Problem]:
        sweep.end(key, "completed")
        sweep.write(tmp_path)
        return []

    monkeypatch.setattr("orchestrator.steer.trial_problems", checked)
    assert main(["add", str(tmp_path), "trainer.learning_rate=2e-3"]) == 1
    assert "once the command that reopens it is run: " in capsys.readouterr().err


def test_status_for_programs(asked_of: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(asked_of.root), "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    found = json.loads(told.out)
    page = (Path(__file__).parents[2] / "docs" / "steer.md").read_text()
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]+)\|", page, re.MULTILINE)))
    assert set(found) <= set(named)
    assert (found["state"], found["ended"], found["planned"]) == ("stopped", 1, 2)
    assert found["best"]["number"] == 0
    assert [trial["status"] for trial in found["trials"]] == ["completed", "waiting"]
    assert found["trials"][0]["eval_loss"] == 1.0


def test_follow_prints_a_line_for_each_event(
    asked_of: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    events = asked_of.ledger.read_text().splitlines()
    assert main(["status", str(asked_of.root), "--follow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(events)
    assert any(line.endswith("trial 0 completed") for line in lines)
    assert main(["status", str(asked_of.root), "--follow", "--json"]) == 0
    assert capsys.readouterr().out.splitlines() == events


def test_errors_of_status_and_plan_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["status", f"{tmp_path}/nowhere"], ["plan", "sweep=nope"]):
        assert main([*words, "--json"]) == 1
        told = capsys.readouterr()
        assert told.err == ""
        assert list(json.loads(told.out)) == ["error"]
