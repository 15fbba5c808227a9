"""Run folders that commit ccb4d6b began and left unfinished go on with this code."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.real_sweeps import REPOSITORY, Command, clearing_up

from orchestrator.config.command import read_command
from sweeps.config.trial_config import config_of, trial_key
from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.trial import Decision, Report
from sweeps.storage.run_folder import RunFolder

BEGUN = REPOSITORY / "tests" / "support" / "begun_by_ccb4d6b"
FOLDERS = ("lr_grid-solo", "lr_grid-packed", "asha-solo", "asha-packed")
TRIALS = {"lr_grid": 6, "asha": 12}


def lines_of(name: str) -> list[bytes]:
    return (BEGUN / name / "ledger.jsonl").read_bytes().splitlines(keepends=True)


def words_of(name: str) -> tuple[str, ...]:
    """The command that began the folder, without the run folder that it was given."""
    command = json.loads(lines_of(name)[1])["command"]
    words = shlex.split(command.removeprefix("python -m orchestrator"))
    return tuple(word for word in words if not word.startswith("run_dir="))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_keys_of_an_older_folders_trials_are_still_theirs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(BEGUN / "rows.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BEGUN / name, tmp_path / "run")
    spec, space = read_command([*words_of(name), "run_dir=run"])
    trials = Coordinator(spec, space, RunFolder(tmp_path / "run")).history.trials
    assert len(trials) >= 4
    for key, record in trials.items():
        assert trial_key(config_of(spec, record.values, record.repeat)) == key


@pytest.mark.parametrize("name", [name for name in FOLDERS if name.startswith("asha")])
def test_every_report_of_an_older_ledger_is_decided_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(BEGUN / "rows.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    options = "sweep.pruner_options={min_resource: 1, reduction_factor: 2}"  # asha's, back then
    spec, space = read_command([*words_of(name), options])
    lines = lines_of(name)
    told, decided = [], []
    for number, line in enumerate(lines):
        event = json.loads(line)
        if event["event"] != "report" or event["index"] == 0:
            continue
        root = tmp_path / str(number)
        root.mkdir()
        (root / "ledger.jsonl").write_bytes(b"".join(lines[:number]))
        coordinator = Coordinator(spec, space, RunFolder(root))
        told.append(Decision(event["decision"]))
        decided.append(
            coordinator.report(event["trial"], event["attempt"], Report.from_json(event))
        )
        coordinator.close()
    assert decided == told
    assert set(told) == {Decision.CONTINUE, Decision.PRUNE}


@pytest.mark.long
@pytest.mark.parametrize("name", FOLDERS)
def test_an_older_folder_goes_on_and_trains_no_finished_trial_again(
    name: str, tmp_path: Path
) -> None:
    command = Command(words_of(name), tmp_path)
    shutil.copytree(BEGUN / name, command.run_dir)
    (tmp_path / "cwd").mkdir()
    shutil.copy(BEGUN / "rows.jsonl", tmp_path / "cwd")
    before = b"".join(lines_of(name))
    with clearing_up([command]):
        assert command.run() == 0, command.output
    assert (command.run_dir / "ledger.jsonl").read_bytes().startswith(before)
    events = command.events()
    count = before.count(b"\n")
    ended = of_kind(events[:count], "end")
    assert ended
    assert not ended & of_kind(events[count:], "start")
    asked = of_kind(events[:count], "ask")
    assert asked - ended <= of_kind(events[count:], "end")
    assert of_kind(events, "ask") == of_kind(events, "end")
    assert len(of_kind(events, "end")) == TRIALS[name.split("-")[0]]
    assert (command.run_dir / "best" / "trial.yaml").is_file()


def of_kind(events: list[dict[str, Any]], kind: str) -> set[str]:
    """Keys of the trials that have an event of this kind."""
    return {event["trial"] for event in events if event["event"] == kind and event["trial"]}
