"""What a sweep's tracking sends, keeps on disk, and never does to the driver."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from wandb_stub import ENTITY, Manner, StubRun, WandbStub

from orchestrator import tracked_runs, tracking, wandb_link, wandb_service
from orchestrator.disclosure import clean, sweep_config, trial_config
from orchestrator.inbox import Inbox
from orchestrator.tracked_values import chart_values
from orchestrator.tracking import Tracker
from sweeps.files import RunFolder
from sweeps.ledger import Event, Ledger
from sweeps.spec import TrackingSpec

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
    """Does what the driver does: appends to the ledger, and hands the tracker each event."""

    def __init__(self, root: Path, mode: str = "auto", public: Mapping[str, Any] = PUBLIC) -> None:
        self.folder = RunFolder(root)
        root.mkdir(exist_ok=True)
        fresh = not self.folder.ledger.exists()
        self.ledger = Ledger(self.folder.ledger)
        if fresh:
            self.ledger.append("sweep", name="lr_grid", spec=dict(public))
        self.longest_s = 0.0
        spec = TrackingSpec(mode=mode, project="demo", tags=("nightly",))  # type: ignore[arg-type]
        self.tracker = Tracker(spec, self.folder, sweep_name="lr_grid", public=public)
        self.line = self.tracker.start()
        self.tell("attempt", number=1)

    def tell(self, event: str, **fields: Any) -> Event:
        line = self.ledger.append(event, **fields)
        began = time.monotonic()
        self.tracker.on_event(line)
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        return line

    def rows(self, key: str, steps: range) -> None:
        for step in steps:
            row = {"step": step, "loss": 1 / step, "learning_rate": 1e-4, "tokens": 100 * step}
            began = time.monotonic()
            self.tracker.on_metrics(key, row)
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    def ask(self, key: str, number: int = 0, **values: Any) -> None:
        params = values or {"trainer.learning_rate": 1e-4 * (number + 1)}
        common = {"config": number, "repeat": 0, "seed": 7, "params": params}
        self.tell("ask", trial=key, number=number, **common)

    def begin(self, key: str, *, attempt: int = 1, step: int = 0) -> None:
        self.tell("start", trial=key, attempt=attempt, worker="w", device="cpu", step=step)

    def report(self, key: str, index: int, step: int, loss: float) -> None:
        self.tell(
            "report",
            trial=key,
            attempt=1,
            index=index,
            step=step,
            examples=8 * step,
            tokens=100 * step,
            metrics={"eval_loss": loss, "peak_memory_mb": 12.5},
            decision="continue",
        )

    def end(self, key: str, state: str = "completed", **fields: Any) -> None:
        self.tell("end", trial=key, attempt=1, state=state, totals={"seconds": 3.5}, **fields)

    def trial(self, key: str, number: int = 0, steps: int = 4) -> None:
        """A whole trial with a row a step and a report at its middle and end."""
        self.ask(key, number)
        self.begin(key)
        self.rows(key, range(1, steps + 1))
        self.report(key, 1, steps // 2, 2.0 + number)
        self.report(key, 2, steps, 1.0 + number)
        self.end(key)

    def finish(self, timeout_s: float = 20.0) -> list[str]:
        self.ledger.close()
        return self.tracker.finish({"exit_code": 0}, timeout_s)


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
    hooks = sys.exit, sys.excepthook
    yield
    assert (sys.exit, sys.excepthook) == hooks
    assert wandb_processes() == []


def wandb_processes() -> list[str]:
    """The living wandb-core processes that this process started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, state, parent = parse_stat(stat.read_text())
        except OSError:
            continue  # it ended in between
        if name.startswith("wandb-core") and parent == os.getpid() and state != "Z":
            found.append(stat.parent.name)
    return found


def parse_stat(text: str) -> tuple[str, str, int]:
    head, _, tail = text.rpartition(")")
    state, parent = tail.split()[:2]
    return head.partition("(")[2], state, int(parent)


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
    monkeypatch.setattr(wandb_link, "PROBE_S", 0.4)
    monkeypatch.setattr(wandb_service, "INIT_S", 1.0)
    monkeypatch.setattr(wandb_service, "FINISH_S", 1.0)


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


# What may be sent


def test_charts_keep_the_names_of_trainer_and_take_numbers_only() -> None:
    row = {"loss": 1.5, "grad_norm": 0.1, "tokens": 3, "eval_loss": 2.0, "note": "x", "done": True}
    assert chart_values(row) == {
        "train/loss": 1.5,
        "train/grad_norm": 0.1,
        "tokens": 3,
        "eval/loss": 2.0,
    }


def test_a_trials_config_is_the_base_with_its_values_and_nothing_unlisted() -> None:
    values = {
        "trainer.learning_rate": 3e-4,
        "batching": {"trainer.per_device_train_batch_size": 2, "peft.r": 4},
    }
    assert trial_config(PUBLIC, values) == {
        "model": {"path": "tiny", "dtype": "auto"},
        "data": {"source": "file", "path": "train.jsonl", "max_length": 64},
        "peft": {"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {
            "learning_rate": 3e-4,
            "optim": "adamw_torch",
            "per_device_train_batch_size": 2,
        },
        "budget": {"examples": 64},
        "seed": 7,
    }
    assert PUBLIC["peft"]["r"] == 8  # the base stays as it was


def test_the_sweeps_config_says_what_was_searched() -> None:
    shown = sweep_config(PUBLIC)["sweep"]
    assert shown["space"] == {"trainer.learning_rate": "choice(1e-4, 3e-4)"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/someone/models/tiny/", "tiny"),
        ("~/data.jsonl", "data.jsonl"),
        ("../shards/*.parquet", "*.parquet"),
        ("file:///srv/x.csv", "x.csv"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("https://me:pw@host/x?token=abc", "https://***@host/x?token=***"),
        (["/a/b", 1], ["b", 1]),
    ],
)
def test_local_folders_and_logins_are_taken_out(value: object, shown: object) -> None:
    assert clean("trainer.some_key", value) == shown


# The queue


def test_a_full_inbox_drops_the_oldest_rows_and_no_event() -> None:
    inbox: Inbox[str] = Inbox(most_rows=2)
    inbox.put("start")
    for row in ("row 1", "row 2", "row 3"):
        inbox.put_row(row)
    inbox.put("end")
    inbox.put_row("row 4")
    taken = [inbox.take(0.0) for _ in range(5)]
    assert taken == ["start", "row 3", "end", "row 4", None]
    assert inbox.dropped == 2


def test_rows_that_were_taken_make_room() -> None:
    inbox: Inbox[int] = Inbox(most_rows=2)
    for row in range(10):
        inbox.put_row(row)
        assert inbox.take(0.0) == row
    assert inbox.dropped == 0


# Without a server


@pytest.mark.parametrize(("mode", "variable"), [("off", "online"), ("auto", "disabled")])
def test_off_needs_no_wandb(
    mode: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    monkeypatch.setenv("WANDB_MODE", variable)
    driver = Driver(tmp_path / "run", mode)
    assert driver.line == "W&B: off"
    driver.trial("a")
    assert driver.finish() == []
    assert not driver.folder.tracking.exists()


def test_a_missing_package_is_said_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    driver = Driver(tmp_path / "run")
    assert driver.line == "W&B: off: wandb is not installed (pip install wandb)"
    driver.trial("a")
    driver.finish()


def test_without_a_key_every_row_is_on_disk(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run")
    folder = driver.folder
    assert driver.line == (
        "W&B: offline (no API key: `wandb login` stores one); to upload it later: "
        f"wandb sync {folder.tracking}/offline-run-*"
    )
    for number in range(3):
        driver.trial(f"key{number}", number, steps=20)
    assert driver.longest_s < AT_ONCE_S
    assert driver.finish() == [
        f"W&B: offline; to upload it later: wandb sync {folder.tracking}/offline-run-*"
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


def test_a_broken_key_is_said_without_showing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "tooshort")
    driver = Driver(tmp_path / "run", "online")
    assert driver.line.startswith("W&B: offline (WANDB_API_KEY invalid: API key must have 40+")
    assert "tooshort" not in driver.line
    driver.finish()


def test_when_the_thread_is_stuck_the_driver_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "MOST_ROWS", 10)
    monkeypatch.setattr(
        tracked_runs.SweepRuns, "_on_start", lambda *_: time.sleep(0.5)
    )
    driver = Driver(tmp_path / "run", "offline")
    driver.ask("a")
    driver.begin("a")
    with caplog.at_level(logging.WARNING):
        driver.rows("a", range(1, 101))
    assert driver.longest_s < AT_ONCE_S
    driver.end("a")
    lines = driver.finish()
    assert [record.message for record in caplog.records] == [
        "W&B is slow: training rows are dropped, evaluations are kept"
    ]
    assert any("training rows were dropped" in line for line in lines)
    kept = history(one(records(driver.folder), "-a"), "train/loss")
    assert 10 <= len(kept) < 100
    assert kept[-1] == (100, 0.01)  # the newest rows are the ones kept


def test_rows_come_late_twice_and_before_any_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path / "run", "offline")
    driver.ask("a")
    driver.rows("a", range(1, 3))  # no start: an attempt long gone
    driver.begin("a", attempt=2, step=4)
    driver.rows("a", range(3, 7))  # 3 and 4 were logged by the attempt before
    driver.end("a")
    driver.rows("a", range(7, 9))  # read after the end was told
    driver.finish()
    steps = [step for step, _ in history(one(records(driver.folder), "-a"), "train/loss")]
    assert steps == [5, 6, 7, 8]


def test_a_run_is_closed_soon_after_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked_runs, "LINGER_S", 0.0)
    driver = Driver(tmp_path / "run", "offline")
    driver.trial("a")
    driver.rows("a", range(5, 6))  # too late: must not open it again
    deadline = time.monotonic() + 5.0
    while not any(r["type"] == "exit" for r in one_or_none(records(driver.folder), "-a")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.finish()
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 4


def one_or_none(runs: Mapping[str, list[Any]], ending: str) -> list[Any]:
    return next((value for key, value in runs.items() if key.endswith(ending)), [])


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
    found = records(driver.folder)
    codes = {
        run_id[-1]: record["exit"].get("exit_code", 0)
        for run_id, run in found.items()
        for record in run
        if record["type"] == "exit"
    }
    assert codes == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 130, "p": 130}
    assert summary(one(found, "-d"))["failure"] == "oom"


# A server


def test_metrics_config_and_names_arrive(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    assert driver.line == f"W&B: online, {server.url}/{ENTITY}/demo (group lr_grid)"
    driver.report("a", 0, 0, 5.0)  # the base model, before any trial
    driver.trial("a", 0, steps=10)
    driver.trial("b", 1, steps=10)
    assert driver.finish() == [f"W&B: {server.url}/{ENTITY}/demo (group lr_grid)"]
    assert driver.longest_s < AT_ONCE_S

    run: StubRun = one(server.runs, "-b")
    assert [run.said(name) for name in ("displayName", "groupName", "jobType", "tags")] == [
        "lr=2e-4",
        "lr_grid",
        "trial",
        ["nightly"],
    ]
    assert run.config["trainer"] == {"learning_rate": 2e-4, "optim": "adamw_torch"}
    assert run.config["trial"] == {"number": 1, "key": "b"}
    losses = [(row["optimizer_step"], row["train/loss"]) for row in run.rows() if "tokens" in row]
    assert losses == [(step, 1 / step) for step in range(1, 11)] or len(losses) == 12
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


def test_a_resumed_trial_goes_on_in_its_run(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    first = Driver(tmp_path / "run")
    first.trial("done")
    first.ask("a", 1)
    first.begin("a")
    first.rows("a", range(1, 6))
    first.report("a", 1, 5, 3.0)
    first.finish()

    second = Driver(tmp_path / "run")
    for event in list(second.ledger.events):
        second.tracker.on_event(event)  # told again: must not be logged again
    second.begin("a", attempt=2, step=4)
    second.rows("a", range(1, 9))
    second.end("a")
    second.finish()

    assert len(server.runs) == 3
    run: StubRun = one(server.runs, "-a")
    assert run.overwritten == []
    steps = [row["optimizer_step"] for row in run.rows() if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert [row["_step"] for row in run.rows()] == list(range(10))
    assert [row["eval/loss"] for row in run.rows() if "eval/loss" in row] == [3.0]
    assert run.exit_codes == [130, 0]
    assert len(one(server.runs, "-done").rows()) == 6


def test_two_run_folders_never_share_a_run(tmp_path: Path, serve: Any) -> None:
    server: WandbStub = serve()
    for name in ("one", "two"):
        driver = Driver(tmp_path / name)
        driver.trial("a")
        driver.finish()
    assert len(server.runs) == 4


@pytest.mark.parametrize(
    ("manner", "why"),
    [
        ("refuse", "answers HTTP 500"),
        ("forbid", "refuses the API key (HTTP 403)"),
        ("bad_key", "does not know the API key"),
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
    assert driver.longest_s < AT_ONCE_S
    driver.finish()
    assert len(history(one(records(driver.folder), "-a"), "train/loss")) == 4
    assert server.operations() == ["Viewer"]


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
    assert driver.longest_s < AT_ONCE_S
    began = time.monotonic()
    driver.finish()
    assert time.monotonic() - began < 12.0
    warnings = [record.message for record in caplog.records if "Going on offline" in record.message]
    assert len(warnings) == 1
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
    driver.ask("a", 1)
    driver.begin("a")
    driver.rows("a", range(1, 51))
    wait_for(lambda: any(key.endswith("-a") and run.rows() for key, run in server.runs.items()))
    if manner == "dies":
        server.die()
    else:
        server.manner = manner
    driver.rows("a", range(51, 101))
    driver.report("a", 2, 100, 0.5)
    driver.end("a")
    assert driver.longest_s < AT_ONCE_S
    began = time.monotonic()
    lines = driver.finish(timeout_s=8.0)
    assert time.monotonic() - began < 9.0
    assert wandb_processes() == []
    command = f"wandb sync --include-online {driver.folder.tracking}/*run-*"
    assert lines == [
        f"W&B: not everything was uploaded, but all of it is on disk; to upload it: {command}"
    ]
    on_disk = one(records(driver.folder), "-a")
    assert len(history(on_disk, "train/loss")) == 100
    assert history(on_disk, "eval/loss") == [(100, 0.5)]

    again: WandbStub = serve()  # another server that saw nothing of it: all must come from disk
    done = subprocess.run(
        f"{sys.executable} -m {command}", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    run: StubRun = one(again.runs, "-a")
    steps = [row["optimizer_step"] for row in run.rows() if "train/loss" in row]
    assert steps == list(range(1, 101))
    assert run.summary["best_eval_loss"] == 0.5
    assert len(again.runs) == 3


@pytest.mark.slow
def test_finish_keeps_its_time_whatever_hangs(tmp_path: Path, serve: Any) -> None:
    """With wandb's patience of 10 s and ours of 1 s: wandb-core is killed, the files stay."""
    server: WandbStub = serve()
    driver = Driver(tmp_path / "run")
    driver.ask("a")
    driver.begin("a")
    driver.rows("a", range(1, 21))
    wait_for(lambda: any(key.endswith("-a") for key in server.runs))
    server.manner = "hang"
    driver.rows("a", range(21, 41))
    driver.end("a")
    time.sleep(2 * wandb_service.FLUSH_S)
    began = time.monotonic()
    driver.finish(timeout_s=1.0)
    assert time.monotonic() - began < 5.0
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
    driver.ask("a", 0, **{"trainer.hub_token": CANARY, "trainer.optim": "sgd"})
    driver.begin("a")
    driver.rows("a", range(1, 5))
    driver.end("a", "failed", kind="bug", reason=CANARY)
    driver.ledger.close()
    driver.tracker.finish({"note": CANARY, "where": "/home/someone/outputs"}, 20.0)

    places = [driver.folder.tracking, tmp_path / "home"]
    written = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    leaks = [path for path in written if CANARY.encode() in path.read_bytes()]
    assert leaks == []
    sent = b"".join([*server.bodies, *server.files.values()])
    assert (b"sgd" in sent) == (mode == "online")
    for private in (CANARY, "/home/someone", str(tmp_path), os.uname().nodename):
        assert private.encode() not in sent


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


def wait_for(condition: Any, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
