"""Real sweeps for tests: the command in a process of its own, watched by its ledger."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[2]
LR = "trainer.learning_rate"
SCHEDULE = "trainer.lr_scheduler_type"
GRID = f"sweep.space={{{LR}: choice(1e-4,1e-2), {SCHEDULE}: choice(cosine,constant)}}"
# 16 steps a trial, a report and a checkpoint at every fourth.
SMALL = (
    *("sweep=lr_grid", "sweep.budget.examples=128", "sweep.evaluations=4"),
    *("data.limit=300", "data.eval_limit=20", "trainer.warmup_steps=0"),
)
PATIENCE_S = 300  # far more than any wait takes, on a machine that does other things as well

Events = list[dict[str, Any]]


@dataclass
class Command:
    """One command line on one run folder; `start` may be called again."""

    words: tuple[str, ...]
    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    @property
    def output(self) -> str:
        """What the last start printed, stdout and stderr."""
        return (self.root / "output.txt").read_text()

    def start(self, *more: str) -> None:
        """Start it in an empty folder and an empty home, as the head of a process group."""
        for name in ("home", "cwd"):
            (self.root / name).mkdir(exist_ok=True)
        there = os.environ.get("PYTHONPATH", "")  # some environments keep their packages there
        environment = {
            **os.environ,
            "HOME": str(self.root / "home"),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), there))),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            **self.environment,
        }
        with open(self.root / "output.txt", "wb") as output:
            self.process = subprocess.Popen(
                self.words_to_run(*more),
                cwd=self.root / "cwd",
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def words_to_run(self, *more: str) -> list[str]:
        run_dir = f"run_dir={self.run_dir}"
        return [sys.executable, "-m", "orchestrator", *self.words, run_dir, *more]

    def run(self, *more: str) -> int:
        self.start(*more)
        return self.wait()

    def wait(self) -> int:
        """The exit code; a process that does not end is killed, and that is an error."""
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.clear_up()

    def clear_up(self) -> None:
        """End what is left of the process group, Ray's processes included."""
        assert self.process is not None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def processes(self) -> list[psutil.Process]:
        """All that live of this command: Ray's, too, which inherit its home."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.root / "home"):
                    found.append(process)
        return found

    def listens_on(self) -> set[str]:
        """The addresses at which it can be reached."""
        connections = [
            one for process in self.processes() for one in process.net_connections("tcp")
        ]
        there = [one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN]
        return {address.removeprefix("::ffff:") for address in there}  # IPv4, in words of IPv6

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        assert self.process is not None
        (os.killpg if group else os.kill)(self.process.pid, number)

    def events(self) -> Events:
        """The ledger so far, whole lines only."""
        path = self.run_dir / "ledger.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def wait_until(self, condition: Callable[[Events], Any]) -> Any:
        """What `condition` says of the ledger as soon as it says something; the command runs on."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = condition(self.events())
            if found:
                return found
            assert self.process.poll() is None, f"it ended before that:\n{self.output}"
            time.sleep(0.01)
        raise AssertionError(f"it did not come to that:\n{self.output}")

    def rows(self) -> list[dict[str, str]]:
        with open(self.run_dir / "trials.csv", newline="") as file:
            return list(csv.DictReader(file))


@contextmanager
def clearing_up(made: Sequence[Command]) -> Iterator[None]:
    """End, on leaving, what is left of the processes of these commands."""
    try:
        yield
    finally:
        for one in made:
            if one.process is not None:
                one.clear_up()


def of(events: Events, kind: str, trial: str | None = None) -> Events:
    """The events of one kind, of one trial where it is named."""
    return [
        event
        for event in events
        if event["event"] == kind and (trial is None or event["trial"] == trial)
    ]


def under_way(events: Events) -> str | None:
    """A trial of the last start that has committed a checkpoint and has not ended."""
    last = max((i for i, event in enumerate(events) if event["event"] == "attempt"), default=0)
    ended = {event["trial"] for event in of(events, "end")}
    committed = [event["trial"] for event in of(events[last:], "checkpoint")]
    return next((trial for trial in committed if trial not in ended), None)


def losses(events: Events) -> dict[str, list[float]]:
    """Trial key -> its eval_loss at each report, in order."""
    found: dict[str, dict[int, float]] = {}
    for event in of(events, "report"):
        if event["index"]:
            found.setdefault(event["trial"], {})[event["index"]] = event["metrics"]["eval_loss"]
    return {trial: [values[i] for i in sorted(values)] for trial, values in found.items()}


def other_rank(group: Command) -> int:
    """The process of the running trial's group that does not speak for it."""
    speaker = int(of(group.events(), "start")[-1]["worker"].rpartition(":")[2])
    ours = {pid for pid in children(parent(speaker)) if "TrainWorker" in command_of(pid)}
    (other,) = ours - {speaker}
    return other


def children(pid: int) -> set[int]:
    return {int(p.name) for p in Path("/proc").glob("[0-9]*") if parent(int(p.name)) == pid}


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
