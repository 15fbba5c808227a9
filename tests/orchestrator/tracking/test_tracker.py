"""Tracking without a server: what lies on disk, and what never happens to the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.tracked_sweep import (
    CANARY,
    Driver,
    history,
    no_account,
    one,
    records,
    summary,
    wait_for,
    wandb_processes,
    warnings,
)

from orchestrator.tracking.tracker import Patience, tracking_problems
from orchestrator.tracking.wandb_login import named
from sweeps.config.spec import TrackingSpec

__all__ = ["no_account"]  # a fixture that every test here uses
CONF = Path(__file__).parents[3] / "conf" / "tracking"


@pytest.mark.parametrize(
    ("name", "mode"), [("wandb", "auto"), ("offline", "offline"), ("off", "off")]
)
def test_each_choice_sets_every_key_of_its_service(name: str, mode: str) -> None:
    choice = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert set(choice) == {field.name for field in fields(TrackingSpec)} - {"uri"}
    assert choice["mode"] == mode


@pytest.mark.parametrize(("mode", "variable"), [("off", "online"), ("auto", "disabled")])
def test_off_needs_no_wandb(
    mode: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_wandb(tmp_path, monkeypatch)
    monkeypatch.setenv("WANDB_MODE", variable)
    driver = Driver(tmp_path / "run", mode)
    assert driver.line == "tracking: off"
    driver.trial("a")
    assert driver.finish() == []
    assert not driver.folder.tracking.exists()


def leave_out_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it raises, in processes that are started from here."""
    (tmp_path / "wandb.py").write_text("raise ImportError")
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.mark.slow
def test_a_missing_package_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out_wandb(tmp_path, monkeypatch)
    driver = Driver(tmp_path / "run")
    assert driver.line == "W&B: off: wandb is not installed (pip install wandb)"
    driver.trial("a")
    driver.finish()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"project": "me/llama"}, "tracking.project = me/llama: a W&B project's name has none of"),
        ({"project": "p" * 129}, "has 1 to 128 letters"),
        ({"tags": ("a" * 65,)}, "a tag of W&B has 1 to 64 letters"),
        ({"project": "mine"}, ""),
        ({"project": "me/llama", "mode": "off"}, ""),
        ({}, "WANDB_PROJECT = a:b"),
    ],
)
def test_names_that_wandb_refuses_are_told_before_anything_runs(
    words: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "a:b")
    found = "; ".join(map(str, tracking_problems(TrackingSpec(**words), "run")))
    assert said in found
    assert bool(found) == bool(said)


def test_a_run_folders_name_is_a_group_of_wandbs() -> None:
    (problem,) = tracking_problems(TrackingSpec(), "r" * 129)
    assert problem.key == "run_dir"


def test_wandbs_variables_count_unless_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_TAGS", "a, b")
    found = named(TrackingSpec())
    assert (found.project, found.entity, found.tags) == ("theirs", None, ("a", "b"))
    found = named(TrackingSpec(project="mine", tags=("c",)))
    assert (found.project, found.tags) == ("mine", ("c",))


@pytest.mark.slow
def test_without_a_key_every_row_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [f"WANDB_{n}" for n in ("SWEEP_ID", "RUN_ID", "RESUME", "NAME", "RUN_GROUP", "JOB_TYPE")]
    for name in own:
        monkeypatch.setenv(name, "never")  # as of an agent; there are four runs here
    monkeypatch.setenv("WANDB_TAGS", "typed, before")
    driver = Driver(tmp_path / "run")
    folder = driver.folder
    assert driver.line == (
        "W&B: offline (no API key: `wandb login` stores one); to upload it later: "
        f"python -m orchestrator sync {folder.root}\n"
        f"W&B: not used, since each trial has a run of its own: {', '.join(own)}"
    )
    for number in range(3):
        driver.trial(f"key{number}", number, steps=20)
    assert driver.was_never_delayed()
    assert driver.finish() == [
        f"W&B: offline; to upload it later: python -m orchestrator sync {folder.root}"
    ]
    found = records(folder)
    assert len(found) == 4
    trial = one(found, "-key1")
    assert history(trial, "train/loss") == [(step, 1 / step) for step in range(1, 21)]
    assert history(trial, "eval/loss") == [(10, 3.0), (20, 2.0)]
    run = trial[1]["run"]
    assert run["display_name"] == "lr=2e-4"
    assert run["run_group"] == "lr_grid"
    assert run["job_type"] == "trial"
    shown = summary(trial)
    assert (shown["status"], shown["best_eval_loss"], shown["best_step"]) == ("completed", 2.0, 20)
    assert summary(one(found, "-sweep"))["best_eval_loss"] == 1.0


@pytest.mark.slow
def test_a_broken_key_is_said_without_showing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "tooshort")
    driver = Driver(tmp_path / "run", "online")
    assert driver.line.startswith("W&B: offline (WANDB_API_KEY invalid: API key must have 40+")
    assert "tooshort" not in driver.line
    driver.finish()


@pytest.mark.slow
def test_when_the_process_is_stuck_the_driver_is_not_and_no_row_is_lost(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run", "offline")
    process = psutil.Process().children()[0]
    process.suspend()
    driver.trial("a", steps=1000)
    time.sleep(0.5)
    assert driver.was_never_delayed()
    process.resume()
    driver.finish()
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 1000


@pytest.mark.slow
def test_a_process_that_stays_stuck_is_killed_in_time(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run", "offline")
    (process,) = psutil.Process().children()
    process.suspend()
    began = time.monotonic()
    (line,) = driver.finish(timeout_s=0.5)
    assert line.startswith("W&B: offline; to upload it later: ")
    assert time.monotonic() - began < 20.0  # it would be stuck for ever
    assert not process.is_running()


@pytest.mark.slow
def test_the_process_ends_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys, time; from support.tracked_sweep import Driver;"
        "driver = Driver(pathlib.Path(sys.argv[1]), 'offline'); driver.trial('a'); time.sleep(60)"
    )
    tests = Path(__file__).parents[2]
    path = os.pathsep.join([str(tests), str(tests.parent)])
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path},
    )
    wait_for(lambda: bool(wandb_processes()))
    (process,) = psutil.Process(other.pid).children()
    other.kill()
    other.wait()
    psutil.wait_procs([process], timeout=3.0)
    assert not process.is_running()
    wait_for(lambda: wandb_processes() == [])


@pytest.mark.slow
def test_signals_meant_for_the_driver_do_not_end_the_process(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run", "offline")
    (process,) = psutil.Process().children()
    assert os.getsid(process.pid) != os.getsid(0)  # a terminal's Ctrl-C does not reach it
    process.terminate()  # a batch system's signal does
    driver.trial("a")
    driver.finish()
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 4


@pytest.mark.slow
def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run", "offline")
    psutil.Process().children()[0].kill()
    driver.trial("a")
    assert driver.was_never_delayed()
    lines = driver.finish()
    assert lines[0] == "W&B: tracking stopped early: its process ended with code -9"
    wait_for(lambda: wandb_processes() == [])


@pytest.mark.slow
def test_rows_that_come_late_or_twice_are_shown_once_and_in_order(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run", "offline")
    driver.ask("a")
    driver.rows("a", range(1, 3))  # no start: an attempt long gone
    driver.begin("a", attempt=2, step=4)
    driver.rows("a", range(3, 7))
    driver.rows("a", range(5, 7))  # of an attempt that began at step 4
    driver.end("a")
    driver.rows("a", range(7, 9))  # read after the end was told
    driver.finish()
    steps = [step for step, _ in history(one(records(driver.folder), "-a"), "train/loss")]
    assert steps == list(range(1, 9))


@pytest.mark.slow
def test_a_trial_has_one_history_however_often_the_sweep_was_interrupted(tmp_path: Path) -> None:
    first = Driver(tmp_path / "run", "offline")
    first.trial("done")
    first.half_trial("a", 1, steps=5)
    first.report("a", 1, 5, 3.0)
    first.half_trial("late", 2)
    first.finish()

    (closed,) = first.folder.tracking.glob("*run-*-a")
    second = Driver(tmp_path / "run", "offline")
    second.begin("a", attempt=2, step=4)
    second.rows("a", range(5, 9))
    wait_for(lambda: not closed.exists())
    kill_all(second)  # as the machine would, if it went down: no run is closed

    third = Driver(tmp_path / "run", "offline")
    third.begin("late", attempt=2, step=4)
    third.rows("late", range(5, 7))
    third.end("late")
    third.finish()

    folders = list(third.folder.tracking.glob("*run-*"))
    assert len(folders) == 4
    found = records(third.folder)
    assert charted_steps(found, "-a") == list(range(1, 9))
    assert history(one(found, "-a"), "eval/loss") == [(5, 3.0)]
    assert charted_steps(found, "-late") == list(range(1, 7))
    assert summary(one(found, "-a"))["status"] == "interrupted"
    assert exit_codes(third) == {"done": 0, "a": 130, "late": 0, "sweep": 130}
    (whole,) = [records for key, records in found.items() if key.endswith("-sweep")]
    items = [each["history"]["item"] for each in whole if each["type"] == "history"]
    assert [item["trials_ended"] for item in items] == [1, 2, 2]


def charted_steps(found: dict[str, list[dict[str, Any]]], ending: str) -> list[int]:
    return [step for step, _ in history(one(found, ending), "train/loss")]


def kill_all(driver: Driver) -> None:
    (process,) = psutil.Process().children()
    processes = [process, *process.children(recursive=True)]
    for each in processes:
        each.kill()
    psutil.wait_procs(processes, timeout=3.0)
    driver.finish()


@pytest.mark.slow
def test_a_run_is_closed_soon_after_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "patience", Patience(linger_s=0.0))
    driver = Driver(tmp_path / "run", "offline")
    driver.trial("a")
    wait_for(lambda: exit_codes(driver) == {"a": 0})
    driver.rows("a", range(5, 6))  # too late: must not open it again
    driver.finish()
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 4


@pytest.mark.slow
def test_what_cannot_be_tracked_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(tmp_path / "run", "offline")
    driver.end("never-asked-for")
    driver.trial("a")
    assert driver.finish()[0] == "W&B: not everything was tracked: KeyError: 'never-asked-for'"
    assert warnings(caplog) == ["W&B: something could not be tracked: KeyError: 'never-asked-for'"]
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 4


@pytest.mark.slow
def test_the_end_of_wandbs_process_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver(tmp_path / "run", "offline")
    driver.ask("a")
    driver.begin("a")
    wait_for(lambda: driver.folder.tracking.exists())
    (process,) = wandb_processes()
    os.kill(process, signal.SIGKILL)
    driver.rows("a", range(1, 21))
    driver.end("a")
    assert driver.was_never_delayed()
    told = ("W&B: tracking stopped early: ", "W&B: not everything was tracked: ")
    assert driver.finish()[0].startswith(told)  # by when it was noticed
    assert warnings(caplog)[0].startswith("W&B: something could not be tracked: ")


@pytest.mark.slow
def test_exit_codes_say_how_a_trial_ended(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run", "offline")
    for number, (key, state) in enumerate(
        {"a": "completed", "b": "pruned", "c": "diverged", "d": "failed"}.items()
    ):
        driver.ask(key, number)
        driver.begin(key)
        kind = {"c": "diverged", "d": "oom"}.get(key, "")
        driver.end(key, state, kind=kind, reason=f"in /home/someone/{CANARY}")
    driver.ask("e", 4)
    driver.begin("e")  # still running
    driver.finish()
    assert exit_codes(driver) == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 130, "sweep": 130}
    assert summary(one(records(driver.folder), "-d"))["failure"] == "oom"


def exit_codes(driver: Driver) -> dict[str, int]:
    """Of the runs that were closed, by the last part of their ids."""
    return {
        run_id.rpartition("-")[2]: record["exit"].get("exit_code", 0)
        for run_id, run in records(driver.folder).items()
        for record in run
        if record["type"] == "exit"
    }


@pytest.mark.slow
def test_eight_runs_of_a_hundred_rows_cost_little(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run", "offline")
    began = time.monotonic()
    for number in range(8):
        driver.trial(f"key{number}", number, steps=100)
    handed_over_s = time.monotonic() - began
    driver.finish()
    took_s = time.monotonic() - began
    print(f"handed over in {handed_over_s:.3f} s, on disk in {took_s:.2f} s")
    assert took_s < 10.0
    found = records(driver.folder)
    assert sum(len(history(run, "train/loss")) for run in found.values()) == 800
