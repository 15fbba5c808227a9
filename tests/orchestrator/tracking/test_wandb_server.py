"""Tracking over real HTTP: what arrives, and what happens where the server is of no use."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.tracked_sweep import (
    CANARY,
    PUBLIC,
    Driver,
    charted,
    history,
    impatient,
    no_account,
    one,
    records,
    serve,
    wait_for,
    wandb_processes,
    warnings,
)
from support.wandb_stub import ENTITY, Manner, StubRun, WandbStub

from orchestrator.cli import main
from orchestrator.tracking import wandb_process
from orchestrator.tracking.sync import sync
from orchestrator.tracking.tracker import Patience
from orchestrator.tracking.wandb_sweep import sweep_object
from sweeps.ledger import events
from sweeps.ledger.history import History
from sweeps.ledger.ledger import Ledger
from sweeps.storage.lock import Lock
from sweeps.storage.requests import unanswered_requests
from sweeps.storage.run_folder import RunFolder

__all__ = ["impatient", "no_account", "serve"]  # fixtures


@pytest.mark.slow
def test_metrics_config_and_names_arrive(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    assert driver.line == f"W&B: online, {server.url}/{ENTITY}/demo (group lr_grid)"
    driver.report("a", 0, 0, 5.0)  # the base model, before any trial
    driver.trial("a", 0, steps=10)
    driver.trial("b", 1, steps=10)
    page = f"{server.url}/{ENTITY}/demo/sweeps/sweep0"
    assert driver.finish()[0] == f"W&B: {page} (group lr_grid)"
    assert driver.was_never_delayed()

    run: StubRun = one(server.runs, "-b")
    assert [run.said(name) for name in ("displayName", "groupName", "jobType", "tags")] == [
        "lr=2e-4",
        "lr_grid",
        "trial",
        ["nightly"],
    ]
    assert run.config["trainer"] == {"learning_rate": 2e-4, "optim": "adamw_torch"}
    assert run.config["trial"] == {"number": 1, "config": 1, "key": "b"}
    assert charted(run, "train/loss") == [(step, 1 / step) for step in range(1, 11)]
    assert charted(run, "eval/loss") == [(5, 3.0), (10, 2.0)]
    assert run.summary["status"] == "completed"
    assert run.exit_codes == [0]

    whole: StubRun = one(server.runs, "-sweep")
    assert whole.said("jobType") == "sweep"
    assert whole.summary["base_eval_loss"] == 5.0
    assert whole.summary["best_trial"] == {"name": "lr=1e-4", "key": "a"}
    (table,) = [json.loads(text) for path, text in server.files.items() if "ranking" in path]
    assert table["columns"][:5] == ["rank", "number", "key", "status", "eval_loss"]
    assert [row[:5] for row in table["data"]] == [
        [1, 0, "a", "completed", 1.0],
        [2, 1, "b", "completed", 2.0],
    ]

    assert whole.config.keys() - {"_wandb"} == {"sweep"}


@pytest.mark.slow
def test_there_is_one_sweep_object_with_every_trial(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    first = Driver(tmp_path / "run")
    first.trial("done")
    first.half_trial("a", 1, steps=5)
    first.report("a", 1, 5, 1.5)
    first.finish()
    assert {name: sweep.state for name, sweep in server.sweeps.items()} == {"sweep0": "RUNNING"}
    second = Driver(tmp_path / "run")
    second.begin("a", attempt=2, step=4)
    second.rows("a", range(5, 9))
    second.report("a", 2, 8, 2.5)
    second.end("a")
    second.finish()

    (sweep,) = server.sweeps.values()
    assert sweep.state == "FINISHED"
    assert sweep.project == f"{ENTITY}/demo"
    assert sweep.config == {
        "name": "lr_grid",
        "method": "custom",
        "metric": {"name": "best_eval_loss", "goal": "minimize"},
        "parameters": {"trainer": {"parameters": {"learning_rate": {"values": [1e-4, 3e-4]}}}},
    }
    run: StubRun = one(server.runs, "-a")
    assert run.said("sweep") == "sweep0"
    assert [run.summary[name] for name in ("best_eval_loss", "evaluation")] == [1.5, 2]
    assert one(server.runs, "-done").said("sweep") == "sweep0"
    assert one(server.runs, "-sweep").said("sweep") is None


@pytest.mark.long
def test_stop_in_wandb_is_a_request_once(
    tmp_path: Path, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    driver.half_trial("a", steps=20)
    driver.half_trial("b", 1, steps=20)
    wait_for(lambda: any(key.endswith("-b") for key in server.runs))
    server.stopped = {key for key in server.runs if key.endswith(("-a", "-sweep"))}
    driver.rows("a", range(21, 24))
    driver.ask("c", 2)
    wait_for(lambda: len(unanswered_requests(driver.folder)) == 2, timeout_s=40.0)
    found = {request.verb: request for request in unanswered_requests(driver.folder)}
    assert found["stop"].trials == ("a",)
    assert found["finish"].trials == ()
    assert "W&B's stop button, http://" in found["stop"].by
    driver.end("a", "stopped")
    driver.finish()
    said = " ".join(warnings(caplog))
    assert "pressed on the run of trial 0 (lr=1e-4): it is stopped" in said

    again = Driver(tmp_path / "run")  # the server shows the button pressed for ever
    again.begin("b", attempt=2)
    again.rows("b", range(21, 24))
    again.end("b")
    again.finish()
    assert len(unanswered_requests(again.folder)) == 2


def test_the_page_shows_what_may_be_shown_of_the_space() -> None:
    space = {
        "trainer.learning_rate": "tag(log, interval(1e-5, 1e-3))",
        "peft.r": "interval(4, 32)",
        "data.path": "choice(/home/someone/a.jsonl, /home/someone/b.jsonl)",
        "data.format": "choice(auto, text)",
        "recipe": [
            {"peft.lora_alpha": 16, "trainer.optim": "sgd"},
            {"peft.lora_alpha": 32, "trainer.optim": "sgd"},
        ],
    }
    spec = {**PUBLIC, "sweep": {**PUBLIC["sweep"], "space": space}}
    found = sweep_object(History(spec=spec, direction="maximize"), "s")
    assert found["metric"]["goal"] == "maximize"
    parameters = found["parameters"]
    rate = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3}
    optim = {"values": ["sgd"]}
    assert parameters["trainer"]["parameters"] == {"learning_rate": rate, "optim": optim}
    assert parameters["peft"]["parameters"]["r"]["distribution"] == "int_uniform"
    assert parameters["data"]["parameters"]["path"] == {"values": ["a.jsonl", "b.jsonl"]}
    assert "/home/someone" not in str(found)


@pytest.mark.slow
def test_a_resumed_trial_goes_on_in_its_run(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    first = Driver(tmp_path / "run")
    first.trial("done")
    first.half_trial("a", 1, steps=5)
    first.report("a", 1, 5, 3.0)
    first.finish()

    second = Driver(tmp_path / "run")
    second.begin("a", attempt=2, step=4)
    second.rows("a", range(1, 9))
    second.end("a")
    second.finish()

    assert len(server.runs) == 3
    run: StubRun = one(server.runs, "-a")
    assert run.overwritten == []
    assert [step for step, _ in charted(run, "train/loss")] == list(range(1, 9))
    assert charted(run, "eval/loss") == [(5, 3.0)]
    assert [row["_step"] for row in run.rows()] == list(range(9))
    assert run.exit_codes == [130, 0]
    assert len(one(server.runs, "-done").rows()) == 6


@pytest.mark.slow
def test_sync_gives_the_server_what_it_lacks(tmp_path: Path, serve: Any) -> None:
    """Of a sweep that was offline, then online, then cut off; and a second time nothing."""
    server: WandbStub = serve()
    first = Driver(tmp_path / "run", "offline")
    first.trial("done")
    first.half_trial("a", 1, steps=5)
    first.report("a", 1, 5, 3.0)
    first.finish()
    second = Driver(tmp_path / "run", "online")
    second.begin("a", attempt=2, step=4)
    second.rows("a", range(5, 9))
    second.finish()
    second.folder.metrics("done")
    assert len(one(server.runs, "-a").rows()) == 9

    for count in (1, 2):
        assert main(["sync", str(tmp_path / "run"), "--project", "demo"]) == 0
        assert sorted(run_id[9:] for run_id in server.runs) == ["a", "done", "sweep"]
        for key, steps in {"a": 8, "done": 4}.items():
            run: StubRun = one(server.runs, f"-{key}")
            assert [step for step, _ in charted(run, "train/loss")] == list(range(1, steps + 1))
            assert run.overwritten == []
        assert one(server.runs, "-done").summary["status"] == "completed"
        assert one(server.runs, "-done").exit_codes == [0] * count
        whole: StubRun = one(server.runs, "-sweep")
        assert len([row for row in whole.rows() if "ranking" in row]) == 1
        assert len(server.views) == 1


@pytest.mark.parametrize(
    ("manner", "why"),
    [("forbid", "refuses the API key (HTTP 403). Nothing is lost"), ("ok", "is in use by")],
)
def test_sync_says_why_not(
    manner: Manner, why: str, tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(manner)
    folder = RunFolder(tmp_path)
    Ledger(folder.ledger, lambda _: None).append(events.Sweep(name="s", spec=PUBLIC))
    driver = Lock(folder.lock) if manner == "ok" else None
    assert main(["sync", str(tmp_path)]) == (3 if manner == "ok" else 1)
    assert why in capsys.readouterr().err
    if driver is not None:
        driver.release()


@pytest.mark.slow
def test_two_run_folders_never_share_a_run(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    for name in ("one", "two"):
        driver = Driver(tmp_path / name)
        driver.trial("a")
        driver.finish()
    assert len(server.runs) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("manner", "why"),
    [
        pytest.param("refuse", "answers HTTP 500", marks=pytest.mark.slow),
        pytest.param("forbid", "refuses the API key (HTTP 403)", marks=pytest.mark.slow),
        pytest.param("bad_key", "does not know the API key", marks=pytest.mark.slow),
        ("hang", "does not answer within 0.4 s"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_no_use_is_left_alone(
    manner: Manner, why: str, tmp_path: Path, serve: Any
) -> None:
    server: WandbStub = serve(manner)
    driver = Driver(tmp_path / "run", "online")
    assert driver.line.startswith(f"W&B: offline ({server.url} {why}); to upload it later: ")
    driver.trial("a")
    assert driver.was_never_delayed()
    driver.finish()
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 4
    assert server.operations() == ["Viewer"]


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_an_unreachable_server_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    driver = Driver(tmp_path / "run", "online")
    assert "http://127.0.0.1:9 cannot be reached" in driver.line
    driver.finish()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("manner", ["refuse", "forbid", "hang"])
def test_a_server_that_turns_bad_before_the_first_run(
    manner: Manner, tmp_path: Path, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    server.manner = manner
    driver.trial("a", steps=50)
    driver.trial("b", 1, steps=50)
    assert driver.was_never_delayed()
    began = time.monotonic()
    driver.finish()
    assert time.monotonic() - began < 30.0
    assert len(warnings(caplog)) == 1
    assert "Going on offline, in " in warnings(caplog)[0]
    found = records(driver.folder, "offline-run-*")
    assert len(history(one(found, "-a"), "train/loss")) == 50
    assert len(history(one(found, "-b"), "train/loss")) == 50


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("manner", ["dies", "hang", "refuse"])
def test_a_server_that_turns_bad_in_the_middle_and_comes_back(
    manner: Any, tmp_path: Path, serve: Any
) -> None:
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    driver.trial("whole")
    driver.half_trial("a", 1, steps=50)
    wait_for(lambda: any(key.endswith("-a") for key in server.runs))
    server.turn(manner)
    driver.rows("a", range(51, 101))
    driver.report("a", 2, 100, 0.5)
    driver.end("a")
    assert driver.was_never_delayed()
    began = time.monotonic()
    lines = driver.finish(timeout_s=8.0)
    assert time.monotonic() - began < 20.0
    assert wandb_processes() == []
    command = f"python -m orchestrator sync {driver.folder.root}"
    assert lines == [
        f"W&B: not everything was uploaded, but all of it is on disk; to upload it: {command}"
    ]
    on_disk = one(records(driver.folder), "-a")
    assert len(history(on_disk, "train/loss")) == 100
    assert history(on_disk, "eval/loss") == [(100, 0.5)]

    again: WandbStub = serve()  # another server that saw nothing of it: all must come from disk
    sync(driver.folder.root)
    run: StubRun = one(again.runs, "-a")
    assert [step for step, _ in charted(run, "train/loss")] == list(range(1, 101))
    assert run.summary["best_eval_loss"] == 0.5
    assert len(again.runs) == 3


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["dies", "hang", "refuse"])
def test_the_end_does_not_wait_for_a_server_that_is_gone(
    manner: Any, tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for wandb's patience, nor for ours: the server is asked first."""
    monkeypatch.setattr(Driver, "patience", Patience(probe_s=0.4, init_s=60.0, finish_s=60.0))
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    driver.trial("a", steps=50)
    wait_for(lambda: any(key.endswith("-a") for key in server.runs))
    server.turn(manner)
    driver.trial("b", 1, steps=50)
    began = time.monotonic()
    lines = driver.finish(timeout_s=90.0)
    assert time.monotonic() - began < 45.0
    assert "not everything was uploaded, but all of it is on disk" in lines[0]
    for key in ("-a", "-b"):
        assert len(history(one(records(driver.folder), key), "train/loss")) == 50


@pytest.mark.slow
def test_finish_keeps_its_time_whatever_hangs(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With wandb's patience of 60 s and ours of 1 s: wandb-core is killed, the files stay."""
    monkeypatch.setattr(Driver, "patience", Patience(finish_s=60.0))
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    driver.half_trial("a", steps=20)
    wait_for(lambda: any(key.endswith("-a") for key in server.runs))
    server.manner = "hang"
    driver.rows("a", range(21, 41))
    driver.end("a")
    time.sleep(2 * wandb_process.FLUSH_S)
    began = time.monotonic()
    driver.finish(timeout_s=1.0)
    assert time.monotonic() - began < 30.0
    assert wandb_processes() == []
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 40


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_no_secret_reaches_a_file_or_the_server(
    mode: str, tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: WandbStub = serve()
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setattr(sys, "argv", ["orchestrator", f"trainer.hub_token={CANARY}"])
    public = {**PUBLIC, "model": {"path": f"https://me:{CANARY}@host/m?token={CANARY}"}}
    driver = Driver(tmp_path / "run", mode, public)
    searched = {"trainer.hub_token": f"hub-{CANARY[::-1]}", "trainer.optim": "sgd"}
    driver.ask("a", 0, **searched)  # that one is in no environment variable
    driver.begin("a")
    driver.rows("a", range(1, 5))
    driver.end("a", "failed", kind="bug", reason=CANARY)
    driver.ledger.close()
    driver.tracker.finish(20.0)

    places = [driver.folder.tracking, tmp_path / "home"]
    written = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    secrets = [CANARY.encode(), CANARY[::-1].encode()]
    assert [path for path in written if any(s in path.read_bytes() for s in secrets)] == []
    sent = b"".join([*server.bodies, *server.files.values()])
    assert (b"sgd" in sent) == (mode == "online")
    for private in (*secrets, b"/home/someone", str(tmp_path).encode()):
        assert private not in sent
    assert not any(run.said("host") or run.said("program") for run in server.runs.values())
