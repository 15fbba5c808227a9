"""A driver in small for the tests of tracking, and readers of what W&B's files hold."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from support.wandb_stub import Manner, StubRun, WandbStub

from orchestrator.tracking.tracker import Job, Patience, TrackerProcess
from sweeps.config.spec import TrackingSpec
from sweeps.ledger import events
from sweeps.ledger.ledger import Ledger
from sweeps.storage.run_folder import RunFolder

CANARY = "canary0123456789canary0123456789canary0123456789"
AT_ONCE_S = 0.05
PUBLIC: dict[str, Any] = {
    "name": "lr_grid",
    "run_dir": "/home/someone/outputs/lr_grid",
    "seed": 7,
    "storage": f"s3://key:{CANARY}@bucket",
    "model": {"path": "/home/someone/models/tiny", "dtype": "auto", "cache_dir": "/home/someone"},
    "data": {"source": "file", "path": "./private/train.jsonl", "max_length": 64},
    "peft": {"method": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]},
    "trainer": {"learning_rate": 1e-3, "optim": "adamw_torch", "hub_token": CANARY},
    "sweep": {
        "metric": "eval_loss",
        "direction": "minimize",
        "repeats": 1,
        "space": {"trainer.learning_rate": "choice(1e-4, 3e-4)"},
        "budget": {"examples": 64},
    },
    "cluster": {"kind": "local"},
}


class Driver:
    """Starts the tracker like the driver, and writes the files of a sweep like the Coordinator."""

    living: ClassVar[list[Driver]] = []
    patience: ClassVar[Patience] = Patience()

    def __init__(
        self,
        root: Path,
        mode: str = "auto",
        public: Mapping[str, Any] = PUBLIC,
        **tracking: Any,
    ) -> None:
        self.folder = RunFolder(root)
        root.mkdir(exist_ok=True)
        fresh = not self.folder.ledger.exists()
        self.ledger = Ledger(self.folder.ledger, lambda _: None)
        if fresh:
            self.ledger.append(events.Sweep(name="lr_grid", spec=public))
        self._took_s: list[float] = []
        common = {"mode": mode, "project": "demo", "tags": ("nightly",)}
        spec = TrackingSpec(**{**common, **tracking})
        job = Job(
            tracking=spec, root=root, sweep_name="lr_grid", public=public, patience=self.patience
        )
        began = time.monotonic()
        self.tracker = TrackerProcess(job)
        self._started_s = time.monotonic() - began
        self.living.append(self)
        lines: list[str] = []
        wait_for(lambda: bool(lines.extend(filter(None, [self.tracker.news()])) or lines), 60.0)
        self.line = lines[0]
        self.tell(events.Attempt(number=1))

    def tell(self, event: events.Event) -> None:
        self.ledger.append(event)
        self._look()

    def _look(self) -> None:
        """The one thing that the driver does while trials run."""
        began = time.monotonic()
        self.tracker.news()
        self._took_s.append(time.monotonic() - began)

    def was_never_delayed(self) -> bool:
        """Whether each call returned at once; a busy machine's scheduler may hold up one or two."""
        ordered = [0.0, 0.0, *sorted(self._took_s)]
        return ordered[-3] < AT_ONCE_S and max(ordered[-1], self._started_s) < 10 * AT_ONCE_S

    def rows(self, key: str, steps: range) -> None:
        self.folder.trial(key).mkdir(parents=True, exist_ok=True)
        with open(self.folder.metrics(key), "a", encoding="utf-8") as file:
            for step in steps:
                row = {"step": step, "loss": 1 / step, "learning_rate": 1e-4, "tokens": 100 * step}
                file.write(json.dumps(row) + "\n")
        self._look()

    def ask(self, key: str, number: int = 0, **values: Any) -> None:
        params = values or {"trainer.learning_rate": 1e-4 * (number + 1)}
        common = {"number": number, "config": number, "repeat": 0, "seed": 7, "choices": {}}
        self.tell(events.Ask(trial=key, params=params, **common))

    def begin(self, key: str, *, attempt: int = 1, step: int = 0) -> None:
        self.tell(events.Start(trial=key, attempt=attempt, worker="w", device="cpu", step=step))

    def report(self, key: str, index: int, step: int, loss: float) -> None:
        self.tell(
            events.Report(
                trial=key,
                attempt=1,
                index=index,
                step=step,
                examples=8 * step,
                tokens=100 * step,
                metrics={"eval_loss": loss, "peak_memory_mb": 12.5},
                decision="continue",
            )
        )

    def end(self, key: str, state: str = "completed", **fields: Any) -> None:
        totals = {"seconds": 3.5}
        self.tell(events.End(trial=key, attempt=1, state=state, totals=totals, **fields))

    def half_trial(self, key: str, number: int = 0, steps: int = 4) -> None:
        """A trial that has begun, with a row a step."""
        self.ask(key, number)
        self.begin(key)
        self.rows(key, range(1, steps + 1))

    def trial(self, key: str, number: int = 0, steps: int = 4) -> None:
        """A whole trial with a row a step and a report at its middle and end."""
        self.half_trial(key, number, steps)
        self.report(key, 1, steps // 2, 2.0 + number)
        self.report(key, 2, steps, 1.0 + number)
        self.end(key)

    def finish(self, timeout_s: float = 20.0) -> list[str]:
        self.ledger.close()
        return self.tracker.finish(timeout_s)


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no settings of whoever runs the tests, no question asked, no process left behind."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("asked for a key"))
    yield
    while Driver.living:
        Driver.living.pop().tracker.finish(1.0)  # for a test that failed half-way
    assert wandb_processes() == []
    assert "WANDB_SERVICE" not in os.environ


def wandb_processes() -> list[int]:
    """The living wandb-core processes of this test, by its home folder."""
    return [
        process.pid
        for process in psutil.process_iter(["name", "status", "environ"])
        if process.info["name"].startswith("wandb-core")
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and (process.info["environ"] or {}).get("HOME") == os.environ["HOME"]
    ]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a stub server that the environment points to, with a key."""
    servers: list[WandbStub] = []

    def start(manner: Manner = "ok") -> WandbStub:
        server = WandbStub(manner).__enter__()
        servers.append(server)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", CANARY)
        return server

    yield start
    for server in servers:
        server.die()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "patience", Patience(probe_s=0.4, init_s=1.0, finish_s=1.0))


def records(folder: RunFolder, pattern: str = "*run-*") -> dict[str, list[dict[str, Any]]]:
    """The records of W&B's files by run id, in the order in which the files were begun."""
    from wandb.util import get_core_path

    found: dict[str, list[dict[str, Any]]] = {}
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file"]
    for file in sorted(folder.tracking.glob(f"{pattern}/*.wandb")):
        done = subprocess.run([*command, str(file), "."], capture_output=True, check=True)
        run_id = file.stem.removeprefix("run-")
        found.setdefault(run_id, []).extend(map(json.loads, done.stdout.splitlines()))
    return found


def history(found: list[dict[str, Any]], name: str) -> list[tuple[Any, Any]]:
    """Step and value of each logged row that has `name`."""
    items = [record["history"]["item"] for record in found if record["type"] == "history"]
    return [(item["optimizer_step"], item[name]) for item in items if name in item]


def charted(run: StubRun, name: str) -> list[tuple[Any, Any]]:
    """Step and value of each row with `name` that the server has."""
    return [(row["optimizer_step"], row[name]) for row in run.rows() if name in row]


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for record in found:
        if record["type"] == "summary":
            last |= record["summary"].get("update", {})
    return last


def one(runs: Mapping[str, Any], ending: str) -> Any:
    """The value of the only key that ends so."""
    (found,) = [value for key, value in runs.items() if key.endswith(ending)]
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("orchestrator")]


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
