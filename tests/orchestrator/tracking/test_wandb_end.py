"""What W&B is sent at the end of a sweep, and in which order it is sent anything at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tracked_sweep import PUBLIC, Driver, no_account, serve, warnings
from support.wandb_stub import ENTITY, Manner, WandbStub

from orchestrator.cli import main
from orchestrator.config.command import read_command
from orchestrator.tracking.chart_metrics import chart_name, ending, standstill
from orchestrator.tracking.wandb_sweep import sweep_view
from sweeps.config.spec import METRICS
from sweeps.core.errors import ConfigError
from sweeps.ledger import events
from sweeps.ledger.history import History, Record

__all__ = ["no_account", "serve"]  # fixtures
_BESIDE = ("Viewer", "CreateRunFiles", "ArtifactType", "CreateArtifact", "ServerFeaturesQuery")


def test_the_end_in_words() -> None:
    history = History()
    history.apply(events.Sweep(name="s", spec=PUBLIC, time=10.0))
    common: dict[str, Any] = {"config": 0, "repeat": 0, "seed": 7, "choices": {}}
    history.apply(events.Ask(trial="a", number=0, params={"trainer.optim": "sgd"}, **common))
    common = {"trial": "a", "attempt": 1}
    report: dict[str, Any] = {"examples": 8, "tokens": 8, "decision": "continue"}

    def name_of(record: Record) -> str:
        return f"trial of seed {record.seed}"

    history.apply(events.End(state="failed", **common))
    assert ending(history, name_of) == "No trial has completed. 1 trial (1 failed)."
    history.apply(events.Report(index=0, step=0, metrics={"eval_loss": 2.5}, **common, **report))
    history.apply(events.Report(index=1, step=4, metrics={"eval_loss": 2.0}, **common, **report))
    history.apply(events.End(state="completed", time=3675.4, **common))
    assert ending(history, name_of) == (
        "Best: trial 0 (trial of seed 7), eval_loss 2, 0.5 better than the base model. "
        "1 trial (1 completed) in 1:01:05."
    )


@pytest.mark.parametrize(
    ("cause", "how", "words"),
    [
        ("TIME_BUDGET", "stopped", "Stopped, since the time budget is spent; the same command"),
        ("DISK_FULL", "stopped", "Stopped, since it could not go on; the same command"),
        ("SIGNAL", "", ""),
        ("CANCELLED", "", ""),
        ("OF_A_NEWER_VERSION", "", ""),
        (None, "", ""),
    ],
)
def test_who_stopped_a_sweep_need_not_be_told(cause: str | None, how: str, words: str) -> None:
    history = History()
    history.apply(events.Sweep(name="s", spec=PUBLIC, time=10.0))
    params = {"trainer.optim": "sgd"}
    ask = events.Ask(trial="a", number=0, params=params, config=0, repeat=0, seed=7, choices={})
    history.apply(ask)
    assert standstill(history) == ""
    history.apply(events.Interrupt(reason="/home/someone: no space left", cause=cause))
    assert standstill(history) == how
    if how:
        text = ending(history, lambda record: record.key)
        assert words in text
        assert "/home" not in text
    history.apply(events.End(trial="a", attempt=1, state="stopped"))
    assert standstill(history) == "ended"
    assert "Stopped, since" not in ending(history, lambda record: record.key)


@pytest.mark.parametrize("kind", ["mlflow", "tensorboard"])
def test_another_tracker_refuses_an_alert(kind: str) -> None:
    words = ["sweep=lr_grid", f"tracking={kind}", "tracking.alert=true", "run_dir=out"]
    with pytest.raises(ConfigError, match=r"tracking.alert = True: \w+ sends no alerts"):
        read_command(words)


def told(server: WandbStub) -> list[str]:
    """Every request that W&B's server was sent, in order, as `operation of-which-run`.

    Questions who we are are left out, and what follows on the one before: the files of a run, the
    artifact of a table.
    """
    found = []
    for (path, operation), body in zip(
        server.requests, map(json.loads, server.bodies), strict=True
    ):
        variables = body.get("variables") or {}
        if stream := re.search("/([^/]+)/file_stream$", path):
            what = "end" if body.get("complete") else "rows"
            found.append(f"{what} {stream[1].partition('-')[2]}")
        elif operation in ("RunResumeStatus", "UpsertBucket"):
            found.append(f"{operation} {variables['name'].partition('-')[2]}")
        elif operation == "UpsertSweep":
            found.append(f"{operation} {variables.get('state') or 'new'}")
        elif operation not in _BESIDE:
            found.append(operation)
    return found


@pytest.mark.slow
def test_every_request_of_a_sweep_in_order(tmp_path: Path, serve: Any) -> None:
    """The sweep before the runs in it, each run once, then its alert and view, the end last."""
    server: WandbStub = serve()
    space = {
        "trainer.learning_rate": "tag(log, interval(1e-5, 1e-3))",
        "trainer.optim": "choice(sgd, adamw_torch)",
        "trainer.hub_token": "choice(hub-0123456789, hub-9876543210)",
        "cluster.address": "choice(a, b)",
    }
    public = {**PUBLIC, "sweep": {**PUBLIC["sweep"], "repeats": 2, "space": space}}
    driver = Driver(tmp_path / "run", public=public, alert=True)
    driver.report("a", 0, 0, 5.0)
    driver.trial("a")
    driver.trial("b", 1)
    page, view = driver.finish()

    found = told(server)
    runs = ("sweep", "a", "b")
    assert [each for each in found if each.startswith("RunResumeStatus")] == [
        f"RunResumeStatus {run}" for run in runs
    ]
    for run in runs:  # wandb itself upserts a run once more at its end, with its own version
        first, *others = [at for at, each in enumerate(found) if each == f"UpsertBucket {run}"]
        ends = [at for at, each in enumerate(found) if each == f"end {run}"]
        assert len(others) == 1
        assert len(ends) == 1
        assert first < others[0] < ends[0]
    order = [each for each in found if not each.startswith(("rows", "RunResumeStatus"))]
    assert order.index("UpsertBucket sweep") < order.index("UpsertSweep new")
    assert order[order.index("UpsertSweep new") + 1] == "UpsertBucket a"
    assert order[-6:] == [
        *("NotifyScriptableRunAlert", "UpsertBucket sweep", "end sweep"),
        *("UpsertView2", "SweepWithRuns", "UpsertSweep FINISHED"),
    ]

    ((name, sent),) = server.views.items()
    assert page == f"W&B: {server.url}/{ENTITY}/demo/sweeps/sweep0 (group lr_grid)"
    address = f"{server.url}/{ENTITY}/demo?nw={name.removeprefix('nw-').removesuffix('-v')}"
    assert view == f"W&B: {address} (curves, importance, costs)"
    assert (sent["entityName"], sent["projectName"]) == (ENTITY, "demo")
    assert (sent["displayName"], sent["type"]) == ("lr_grid", "project-view")
    assert_shows_the_sweep(json.loads(sent["spec"])["section"])


def assert_shows_the_sweep(shown: dict[str, Any]) -> None:
    """The panels of a saved view, and the runs in it."""
    (runs,) = shown["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["op"], only["value"]) == ("sweep", "=", "sweep0")
    assert runs["sort"]["keys"][0]["key"] == {"section": "summary", "name": "best_eval_loss"}
    panels = [each for part in shown["panelBankConfig"]["sections"] for each in part["panels"]]
    config = [each["config"] for each in panels]
    assert [each["viewType"] for each in panels] == [
        *("Run History Line Plot", "Run History Line Plot"),
        *("Parallel Coordinates Plot", "Parameter Importance"),
        *("Scatter Plot", "Scatter Plot"),
    ]
    for curve, metric in zip(config, ("eval/loss", "train/loss"), strict=False):
        assert (curve["xAxis"], curve["metrics"]) == ("examples", [metric])
        assert (curve["groupBy"], curve["groupAgg"]) == ("trial.value.config", "mean")
    assert "smoothingWeight" not in config[0]
    assert (config[1]["smoothingType"], config[1]["smoothingWeight"]) == (
        "exponentialTimeWeighted",
        0.6,
    )
    assert config[2]["columns"] == [
        {"accessor": "config:trainer.value.learning_rate", "log": True},
        {"accessor": "config:trainer.value.optim"},
        {"accessor": "summary:best_eval_loss"},
    ]
    assert config[3]["targetKey"] == "best_eval_loss"
    costs = ["summary:tokens_per_second", "summary:peak_memory_mb"]
    assert [each["xAxis"] for each in config[4:]] == costs
    assert {each["yAxis"] for each in config[4:]} == {"summary:best_eval_loss"}


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["forbid", pytest.param("hang", marks=pytest.mark.long)])
def test_a_server_that_refuses_the_view_costs_a_line(
    manner: Manner, tmp_path: Path, serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server: WandbStub = serve()
    server.manners["UpsertView2"] = manner
    driver = Driver(tmp_path / "run")
    driver.trial("a")
    lines = driver.finish()
    assert lines == [f"W&B: {server.url}/{ENTITY}/demo/sweeps/sweep0 (group lr_grid)"]
    (said,) = warnings(caplog)
    assert said.startswith("W&B: there is no saved view of the sweep: ")
    assert server.sweeps["sweep0"].state == "FINISHED"


@pytest.mark.slow
def test_without_its_package_there_is_no_view(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb_workspaces.py").write_text("")
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    driver.trial("a")
    assert len(driver.finish()) == 1
    assert warnings(caplog) == []
    assert server.views == {}


def test_a_views_name_has_no_symbols() -> None:
    spec = {**PUBLIC, "sweep": {**PUBLIC["sweep"], "metric": "train_loss"}}
    common = {"entity": "e", "project": "p", "sweep_id": "s"}
    view = sweep_view(History(spec=spec, metric="train_loss"), name="lr=1 ☂ été", **common)
    assert view.name == "lr-1 - été"


def test_the_chart_of_each_metric() -> None:
    assert [chart_name(metric) for metric in METRICS] == ["eval/loss", "train/loss"]


@pytest.mark.slow
def test_one_alert_when_all_trials_have_ended(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    folder = tmp_path / "run"
    secret = {"trainer.hub_token": "hub-0123456789", "trainer.optim": "/home/someone/sgd"}
    driver = Driver(folder, alert=True)
    driver.report("a", 0, 0, 1.5)
    driver.ask("a", **secret)
    driver.begin("a")
    driver.report("a", 1, 4, 1.25)
    driver.tell(events.Interrupt(reason="SIGINT", cause="SIGNAL"))
    driver.finish()
    assert server.alerts == []  # it waits, as somebody wanted

    driver = Driver(folder, alert=True)
    driver.begin("a", attempt=2)
    driver.end("a")
    driver.finish()
    (alert,) = server.alerts
    assert alert["runName"] == next(key for key in server.runs if key.endswith("-sweep"))
    assert alert["title"] == "The sweep lr_grid has ended"
    best = "Best: trial 0 (hub_token=*** sgd), eval_loss 1.25, 0.25 better than the base model. "
    assert alert["text"].startswith(f"{best}1 trial (1 completed) in 0:00:")


@pytest.mark.slow
def test_a_sweep_that_its_budget_stops_tells_so_once_and_then_its_end(
    tmp_path: Path, serve: Any
) -> None:
    server: WandbStub = serve()
    for number in (1, 2):
        driver = Driver(tmp_path / "run", alert=True)
        if number == 1:
            driver.half_trial("a")
        driver.tell(events.Interrupt(reason="the time budget is spent", cause="TIME_BUDGET"))
        driver.finish()
    (alert,) = server.alerts
    assert alert["title"] == "The sweep lr_grid has stopped"
    assert alert["text"].endswith(
        "Stopped, since the time budget is spent; the same command goes on."
    )

    driver = Driver(tmp_path / "run", alert=True)
    driver.begin("a", attempt=2)
    driver.end("a")
    driver.finish()
    assert [alert["title"] for alert in server.alerts][1:] == ["The sweep lr_grid has ended"]


@pytest.mark.long
def test_a_sweep_that_ended_tells_no_second_time(tmp_path: Path, serve: Any) -> None:
    """Unless it has been given more trials; nor does `sync` after it."""
    server: WandbStub = serve()
    for count, key in ((1, "a"), (1, None), (2, "b")):
        driver = Driver(tmp_path / "run", alert=True)
        if key is not None:
            driver.trial(key)
        driver.finish()
        assert len(server.alerts) == count
    assert main(["sync", str(tmp_path / "run"), "--project", "demo"]) == 0
    assert len(server.alerts) == 2
    assert len(server.views) == 1


@pytest.mark.long
def test_an_alert_of_an_offline_sweep_is_sent_by_either_sync(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    for name in ("one", "two"):
        driver = Driver(
            tmp_path / name, "offline", PUBLIC | {"tracking": {"alert": True}}, alert=True
        )
        driver.trial("a")
        driver.finish()
    assert server.alerts == []
    command = [
        sys.executable,
        "-m",
        "wandb",
        "sync",
        *map(str, driver.folder.tracking.glob("off*")),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert len(server.alerts) == 1
    for _ in range(2):
        assert main(["sync", str(tmp_path / "one"), "--project", "demo"]) == 0
        assert len(server.alerts) == 2
