"""MLflow: the store in the run folder, read back by MLflow, and a server that may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.mlflow_stub import MlflowStub
from support.tracked_sweep import CANARY, PUBLIC, Driver, no_account, wait_for, warnings

from orchestrator.config.command import Command
from orchestrator.tracking import mlflow_runs
from orchestrator.tracking.tracker import Patience, look_for_server
from sweeps.config.spec import TrackingSpec

pytest.importorskip("mlflow")
__all__ = ["no_account"]  # a fixture that every test here uses

RATE = "trainer.learning_rate"


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowStub]:
    found = MlflowStub()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.url)
    monkeypatch.setattr(Driver, "patience", Patience(probe_s=1.0))
    yield found
    found.die()


def driver(root: Path, public: dict[str, Any] = PUBLIC) -> Driver:
    return Driver(root, public=public, kind="mlflow")


class Store:
    """What is in the store of a run folder, by the run's name."""

    def __init__(self, driver: Driver) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(f"sqlite:///{driver.folder.mlflow}")
        (experiment,) = self.client.search_experiments(filter_string="name = 'demo'")
        found = self.client.search_runs([experiment.experiment_id])
        self.runs = {run.info.run_name: run for run in found}
        assert len(self.runs) == len(found)

    def history(self, name: str, metric: str) -> list[tuple[int, float]]:
        run = self.runs[name].info.run_id
        return [(each.step, each.value) for each in self.client.get_metric_history(run, metric)]


@pytest.mark.slow
def test_a_sweep_is_a_run_with_a_nested_run_for_each_trial(tmp_path: Path) -> None:
    begun = driver(tmp_path / "run")
    line = f"MLflow: mlflow ui --backend-store-uri sqlite:///{begun.folder.mlflow}"
    assert begun.line == line
    begun.report("a", 0, 0, 5.0)  # the base model, before any trial
    begun.trial("a", 0, steps=10)
    for number, state in enumerate(("pruned", "diverged", "stopped"), start=1):
        begun.ask(state, number)
        begun.begin(state)
        begun.end(state, state, kind=state, reason=f"in /home/someone/{CANARY}")
    begun.half_trial("running", 4)
    assert begun.was_never_delayed()
    assert begun.finish(120.0) == [line]
    store = Store(begun)
    whole, first = store.runs["lr_grid"], store.runs["lr=1e-4"]
    assert len(store.runs) == 6
    parents = {run.data.tags.get("mlflow.parentRunId") for run in store.runs.values()}
    assert parents == {None, whole.info.run_id}
    assert first.data.params[RATE] == "0.0001"
    assert first.data.params["model.path"] == "tiny"
    assert first.data.params["trial.number"] == "0"
    assert first.data.tags["nightly"] == "true"
    assert store.history("lr=1e-4", "train/loss") == [(step, 1 / step) for step in range(1, 11)]
    assert store.history("lr=1e-4", "eval/loss") == [(5, 2.0), (10, 1.0)]
    statuses = {name: run.info.status for name, run in store.runs.items()}
    assert statuses == {
        **{"lr_grid": "KILLED", "lr=1e-4": "FINISHED", "lr=2e-4": "FINISHED"},
        **{"lr=3e-4": "FAILED", "lr=4e-4": "KILLED", "lr=5e-4": "KILLED"},
    }
    assert whole.data.metrics["base_eval_loss"] == 5.0
    assert whole.data.metrics["best_eval_loss"] == 1.0
    assert whole.data.tags["best_trial"] == "0"
    written = begun.folder.mlflow.read_bytes()
    assert CANARY.encode() not in written
    assert b"/home/someone" not in written


@pytest.mark.long
def test_a_resumed_trial_goes_on_in_its_run_without_a_point_twice(tmp_path: Path) -> None:
    first = driver(tmp_path / "run")
    first.trial("done", 1)
    first.half_trial("a", steps=5)
    first.report("a", 1, 4, 3.0)
    first.finish(120.0)
    assert Store(first).runs["lr=1e-4"].info.status == "KILLED"
    second = driver(tmp_path / "run")
    second.begin("a", attempt=2, step=4)
    second.rows("a", range(5, 9))
    second.report("a", 2, 8, 2.0)
    second.end("a")
    second.finish(120.0)
    store = Store(second)
    assert len(store.runs) == 3
    assert [step for step, _ in store.history("lr=1e-4", "train/loss")] == list(range(1, 9))
    assert store.history("lr=1e-4", "eval/loss") == [(4, 3.0), (8, 2.0)]
    assert {run.info.status for run in store.runs.values()} == {"FINISHED"}


@pytest.mark.long
def test_what_a_killed_tracker_or_none_at_all_left_out_is_added(tmp_path: Path) -> None:
    untracked = Driver(tmp_path / "run", "off")
    untracked.trial("before", 1, steps=6)
    untracked.finish()
    killed = driver(tmp_path / "run")
    killed.half_trial("a", steps=5)
    wait_for(killed.folder.mlflow.exists)
    killed.tracker._process.kill()  # type: ignore[union-attr]  # as by kill -9, with rows on its way
    killed.rows("a", range(6, 8))
    killed.end("a")
    killed.finish(120.0)
    last = driver(tmp_path / "run")
    last.finish(120.0)
    store = Store(last)
    assert {run.info.status for run in store.runs.values()} == {"FINISHED"}
    assert [step for step, _ in store.history("lr=1e-4", "train/loss")] == list(range(1, 8))
    assert [step for step, _ in store.history("lr=2e-4", "train/loss")] == list(range(1, 7))


@pytest.mark.slow
def test_a_server_has_the_same_and_no_private_key(server: MlflowStub, tmp_path: Path) -> None:
    begun = driver(tmp_path / "run")
    assert begun.line == f"MLflow: online, {server.url} (run lr_grid)"
    begun.trial("a", 0, steps=10)
    begun.half_trial("b", 1, steps=4)
    assert begun.finish() == [f"MLflow: online, {server.url}/#/experiments/7 (run lr_grid)"]
    second = driver(tmp_path / "run")
    second.begin("b", attempt=2, step=2)
    second.rows("b", range(3, 7))
    second.end("b")
    second.finish()
    assert begun.was_never_delayed()
    assert not begun.folder.mlflow.exists()
    runs = {run["info"]["run_name"]: run for run in server.runs.values()}
    assert len(runs) == len(server.runs) == 3
    assert {run["info"]["status"] for run in runs.values()} == {"FINISHED"}
    for name, steps in {"lr=1e-4": 10, "lr=2e-4": 6}.items():
        metrics = runs[name]["metrics"]
        found = [int(each["step"]) for each in metrics if each["key"] == "train/loss"]
        assert found == list(range(1, steps + 1))
    sent = b"".join(server.bodies)
    for private in (CANARY, "/home/someone", "hub_token", str(tmp_path)):
        assert private.encode() not in sent


@pytest.mark.long
@pytest.mark.parametrize("manner", ["refuse", "dies", "hang"])
def test_a_server_that_is_lost_costs_no_time_and_no_row(
    manner: str, server: MlflowStub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = driver(tmp_path / "run")
    begun.trial("whole", 1)
    begun.half_trial("a", steps=50)
    wait_for(lambda: len(server.runs) == 3)
    if manner == "dies":
        server.die()
    server.manner = manner
    begun.rows("a", range(51, 101))
    begun.report("a", 2, 100, 0.5)
    begun.end("a")
    assert begun.was_never_delayed()
    (line,) = begun.finish(120.0)
    assert line.startswith("MLflow: mlflow ui --backend-store-uri sqlite:///")
    assert f"Going on in {begun.folder.mlflow}" in warnings(caplog)[0]
    store = Store(begun)
    assert [step for step, _ in store.history("lr=1e-4", "train/loss")] == list(range(1, 101))
    assert len(store.history("lr=2e-4", "train/loss")) == 4
    assert {run.info.status for run in store.runs.values()} == {"FINISHED"}


@pytest.mark.long
def test_a_server_that_is_not_there_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Driver, "patience", Patience(probe_s=1.0))
    begun = Driver(tmp_path / "run", kind="mlflow", uri="http://me:secret@127.0.0.1:9")
    assert begun.line.startswith("MLflow: http://***@127.0.0.1:9 is of no use (")
    assert "secret" not in begun.line
    assert f"mlflow ui --backend-store-uri sqlite:///{begun.folder.mlflow}" in begun.line
    begun.trial("a")
    begun.finish(120.0)
    assert len(Store(begun).history("lr=1e-4", "train/loss")) == 4


def test_no_telemetry_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    from mlflow.telemetry.utils import is_telemetry_disabled

    from orchestrator.tracking.tracker import Job

    mlflow_runs.MlflowRuns(Job(tracking=TrackingSpec(kind="mlflow"), root=tmp_path)).connect(())
    assert is_telemetry_disabled()


@pytest.mark.slow
def test_the_plan_says_where_runs_will_go() -> None:
    assert look_for_server(TrackingSpec(kind="mlflow")) == "MLflow: mlflow.db, in the run folder"


def test_the_choice_has_the_keys_of_mlflow_alone() -> None:
    spec = Command.read(["sweep=base", "tracking=mlflow", "tracking.uri=http://host:5000"]).spec
    assert spec is not None
    assert (spec.tracking.kind, spec.tracking.uri) == ("mlflow", "http://host:5000")
    text = Path(__file__).parents[3] / "conf" / "tracking" / "mlflow.yaml"
    assert set(yaml.safe_load(text.read_text())) == {"kind", "uri", "project", "tags"}
