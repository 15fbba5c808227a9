"""What W&B is sent at the end of a sweep, and in which order it is sent anything at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tracked_sweep import PUBLIC, Driver, no_account, one, serve
from support.wandb_stub import WandbStub

from orchestrator.cli import main
from orchestrator.config.command import read_command
from orchestrator.tracking.chart_metrics import ending
from sweeps.core.errors import ConfigError
from sweeps.ledger import events
from sweeps.ledger.history import History, Record

__all__ = ["no_account", "serve"]  # fixtures


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


@pytest.mark.parametrize("kind", ["mlflow", "tensorboard"])
def test_another_tracker_refuses_an_alert(kind: str) -> None:
    words = ["sweep=lr_grid", f"tracking={kind}", "tracking.alert=true", "run_dir=out"]
    with pytest.raises(ConfigError, match=r"tracking.alert = True: \w+ sends no alerts"):
        read_command(words)


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
    driver.finish()
    assert server.alerts == []  # it waits

    for _ in range(2):
        driver = Driver(folder, alert=True)
        driver.begin("a", attempt=2)
        driver.end("a")
        driver.finish()
        (alert,) = server.alerts
    assert alert["runName"] == next(key for key in server.runs if key.endswith("-sweep"))
    assert alert["title"] == "The sweep lr_grid has ended"
    assert alert["text"].startswith(
        "Best: trial 0 (hub_token=*** sgd), eval_loss 1.25, 0.25 better"
    )
    assert one(server.runs, "-sweep").exit_codes[-1] == 0


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
