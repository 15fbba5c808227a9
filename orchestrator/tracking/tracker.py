"""Defines what a tracker does, and runs one in a process of its own.

The process reads the ledger and the trials' metrics files, as `status` does. Neither the driver nor
a worker hands it anything, so nothing that it waits for can delay them.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from orchestrator.tracking.allow_list import clean
from sweeps.config.spec import TrackingSpec
from sweeps.core.commands import in_a_shell
from sweeps.core.errors import Problem
from sweeps.core.naming import trial_name
from sweeps.core.trial import fingerprint
from sweeps.core.versions import installed
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.ledger.ledger import Tail
from sweeps.storage.run_folder import RunFolder

log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "orchestrator.tracking.follower")
_OURS = "sft-sweeps"  # the name that this project is installed under
_OFF = "tracking: off"
_LOOK_S = 30.0  # for `look_for_server`: imports, and a server that does not answer
_KILL_S = 1.0  # for killed processes to end


class Tracker(Protocol):
    """A service that shows sweeps. Its methods may wait and may raise; one thread calls them.

    `follower.main` creates the one that `tracker_class` names.

    Attributes:
        name: begins each of its lines.
        package: what pip installs for it.
    """

    name: str
    package: str

    def __init__(self, job: Job) -> None: ...

    def connect(self, past: Iterable[Event]) -> str:
        """Look for the server; returns one line for the user.

        Args:
            past: the ledger's events of earlier drivers, which were tracked by them.

        Raises:
            ImportError: the service's package is not installed.
        """
        ...

    def on_event(self, event: Event) -> None:
        """Follow a ledger event."""
        ...

    def on_row(self, key: str, row: Mapping[str, Any]) -> None:
        """Log a row of a trial's metrics file: `step`, and numbers under SFTTrainer's names."""
        ...

    def tick(self) -> None:
        """Do what is due; called several times a second."""
        ...

    def close(self, timeout_s: float) -> None:
        """End all runs, in about `timeout_s`."""
        ...

    def last_lines(self, *, cut_short: bool) -> list[str]:
        """Lines for the summary: where the runs are, how to upload what was not.

        Args:
            cut_short: `close` did not come to its end.
        """
        ...

    def leave(self) -> None:
        """End the service's own processes; called last."""
        ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a tracker waits, in seconds."""

    probe_s: float = 3.0  # for the server to say who we are
    init_s: float = 10.0  # for the server to accept a run
    finish_s: float = 10.0  # for the rest of a run to be uploaded
    linger_s: float = 5.0  # for a trial's last rows, which may be read after its end


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the process is to track.

    Attributes:
        root: the run folder, where a tracker has a file or folder of its own.
        sweep_name: the group of the trials' runs.
        public: the whole resolved config without secrets; `allow_list` says which part is sent.
        tracked: file -> bytes that were there before, and were tracked by an earlier driver;
            TrackerProcess looks.
        only_look: connect, say what came of it, and end.
    """

    tracking: TrackingSpec
    root: Path
    sweep_name: str = ""
    public: Mapping[str, Any] = field(default_factory=dict)
    tracked: Mapping[Path, int] = field(default_factory=dict)
    patience: Patience = Patience()
    only_look: bool = False

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root)

    @property
    def repeats(self) -> int:
        """Seeds of each config."""
        return int((self.public.get("sweep") or {}).get("repeats", 1))

    def shown_name(self, record: Record) -> str:
        """A trial's name as it may be shown: what varies."""
        name = str(clean("", trial_name(record.values)))
        return f"{name} seed={record.seed}" if self.repeats > 1 else name


@dataclass(frozen=True, kw_only=True)
class Message:
    """A message from the process to the driver.

    Attributes:
        text: a line for the user now; may be empty.
        last_lines: what the summary says if no later message comes.
    """

    text: str = ""
    is_warning: bool = False
    last_lines: Sequence[str] = ()


class TrackerProcess:
    """Tracks one sweep in a process of its own. No method waits but `finish`, and none raises."""

    def __init__(self, job: Job) -> None:
        self._messages: deque[Message] = deque()
        self._last_lines: Sequence[str] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._name = _name(job.tracking)
        if is_off(job.tracking):
            self._messages.append(Message(text=_OFF))
            return
        # A session of its own: Ctrl-C is for the driver. It ends when its stdin does.
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        _send(self._process, replace(job, tracked=_sizes(job.folder)))

    def news(self) -> str | None:
        """The next line for the user, if there is one; warnings are logged."""
        while self._messages:
            message = self._messages.popleft()
            self._last_lines = message.last_lines
            if message.is_warning:
                log.warning("%s", message.text)
            elif message.text:
                return message.text
        return None

    def finish(self, timeout_s: float) -> list[str]:
        """End all runs; kill the process after `timeout_s`. Returns lines for the summary."""
        process, self._process = self._process, None
        if process is None:
            return []
        _send(process, timeout_s)
        died = []
        try:
            if code := process.wait(timeout_s):
                died = [f"{self._name}: tracking stopped early: its process ended with code {code}"]
        except subprocess.TimeoutExpired:
            _kill_tree(process)
        self._reader.join(_KILL_S)
        while self.news() is not None:
            pass
        return [*died, *self._last_lines]

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with suppress(EOFError, pickle.UnpicklingError):
            while True:
                self._messages.append(pickle.load(process.stdout))


def look_for_server(tracking: TrackingSpec) -> str:
    """Whether the server can be used, in one line; takes some seconds at most, and never fails."""
    if is_off(tracking):
        return _OFF
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(tracking=tracking, root=Path(scratch), only_look=True)
        try:
            done = subprocess.run(
                _COMMAND, input=pickle.dumps(job), capture_output=True, timeout=_LOOK_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"{_name(tracking)}: off: {type(error).__name__}: {error}"
    message: Message = pickle.loads(done.stdout)
    return message.text


def is_off(tracking: TrackingSpec) -> bool:
    """Whether nothing shall be tracked."""
    mode = mode_of(tracking) if tracking.kind == "wandb" else tracking.mode
    return mode in ("off", "disabled")


def tracker_class(tracking: TrackingSpec) -> type[Tracker]:
    """The class for `tracking.kind`; its package is imported as it connects."""
    match tracking.kind:
        case "mlflow":
            from orchestrator.tracking.mlflow_runs import MlflowRuns

            return MlflowRuns
        case "tensorboard":
            from orchestrator.tracking.tensorboard_runs import TensorboardRuns

            return TensorboardRuns
        case "wandb":
            from orchestrator.tracking.wandb_runs import WandbRuns

            return WandbRuns


def tracking_problems(tracking: TrackingSpec, group: str = "") -> list[Problem]:
    """What keeps the chosen service from being used: its package is an extra of ours.

    W&B's is none of them, and a sweep runs without it; but it refuses some names.

    Args:
        group: the name of the run folder.
    """
    if is_off(tracking):
        return []
    if tracking.kind == "wandb":
        from orchestrator.tracking.wandb_login import name_problems

        return name_problems(tracking, group)
    found = []
    if tracking.alert:
        message = f"{_name(tracking)} sends no alerts: leave it out, or choose tracking=wandb"
        found.append(Problem(key="tracking.alert", value=True, message=message))
    package = tracker_class(tracking).package
    if package not in installed([package]):
        command = in_a_shell(f"{_OURS}[{tracking.kind}]")
        message = f"needs {package}, which is not installed: pip install {command}"
        found.append(Problem(key="tracking.kind", value=tracking.kind, message=message))
    return found


def _name(tracking: TrackingSpec) -> str:
    return tracker_class(tracking).name


def mode_of(tracking: TrackingSpec) -> str:
    """The configured mode of W&B; its own variable decides if that is auto."""
    if tracking.mode != "auto":
        return tracking.mode
    mode = os.environ.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline"}.get(mode, mode)


def identity(job: Job, history: History) -> str:
    """The same for every driver of the run folder, another one for every other folder.

    Not the path: `outputs/lr_grid` is on many machines, and is made anew after being removed.
    """
    began = history.began
    origin = began if began is not None else str(job.folder.root.resolve())
    return fingerprint([history.name or job.sweep_name, origin], 8)


def chart_rows(folder: RunFolder, key: str) -> list[dict[str, Any]]:
    """A trial's training rows, one for each step: what an attempt trained again counts."""
    rows = Tail(folder.metrics(key)).read()
    by_step = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def _sizes(folder: RunFolder) -> dict[Path, int]:
    """The ledger and the metrics files that are there, and their sizes in bytes."""
    found = [folder.ledger, *folder.trials.glob("*/metrics.jsonl")]
    return {path: path.stat().st_size for path in found if path.exists()}


def _send(process: subprocess.Popen[bytes], value: object) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # the process has ended
        pickle.dump(value, process.stdin)
        process.stdin.flush()


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its descendants: wandb-core has a session of its own."""
    with suppress(psutil.NoSuchProcess):
        killed = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        kill(killed)
    process.wait()


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kill processes, and wait for their end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_KILL_S)
