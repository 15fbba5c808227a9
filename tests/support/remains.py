"""What a run of these tests leaves behind, however it ended: processes and network namespaces.

Whatever a test starts inherits a variable that names the run, so that its processes are found where
their parents are gone: daemons, and what a batch job has started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

RUN = "SWEEPS_CLUSTER_TEST"  # of a run: the pid of its pytest
NAMESPACE = "sweeps"  # sweepsPID for a switch, sweepsPIDnN for its machines
_PATIENCE_S = 20.0


def end_own() -> None:
    """End what the tests of this run have started and not ended."""
    _end({os.getpid()})


def end_of_dead_runs() -> None:
    """The same for runs that were killed. Those that are alive are left alone."""
    # A namespace that bears our pid is from before us, since we have made none yet.
    gone = {run for run in _runs() if run != os.getpid() and not Path(f"/proc/{run}").exists()}
    _end(gone)
    for name in namespaces():
        run = _number(name.removeprefix(NAMESPACE).partition("n")[0])
        if run == os.getpid() or not Path(f"/proc/{run}").exists():
            remove_namespace(name)


def namespaces() -> list[str]:
    try:
        found = sorted(os.listdir("/run/netns"))
    except OSError:
        return []
    return [name for name in found if name.startswith(NAMESPACE)]


def remove_namespace(name: str) -> None:
    """End what runs in it, too; it does not matter whether it is still whole."""
    deadline = time.monotonic() + _PATIENCE_S
    while (inside := processes_in(name)) and time.monotonic() < deadline:
        _kill(inside)
        time.sleep(0.05)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=_PATIENCE_S)


def processes_in(namespace: str) -> set[int]:
    found = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, timeout=_PATIENCE_S
    )
    return {int(word) for word in found.stdout.split()} - {os.getpid()}


def _end(runs: set[int]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    clear = 0
    # A process that is about to become another program has no environment for a moment: look twice.
    while clear < 2 and time.monotonic() < deadline:
        found = {pid for run, pids in _runs().items() if run in runs for pid in pids}
        found.discard(os.getpid())
        _kill(found)
        clear = 0 if found else clear + 1
        time.sleep(0.05)


def _runs() -> dict[int, set[int]]:
    """Run -> the processes that bear its name and live."""
    found: dict[int, set[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes().split(b"\0")
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (OSError, IndexError):
            continue  # it has ended, or is not ours to look at
        for word in words:
            name, _, value = word.partition(b"=")
            if name == RUN.encode() and not ended:
                found.setdefault(_number(value.decode()), set()).add(int(process.name))
    return found


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else -1


def _kill(processes: set[int]) -> None:
    for number in processes:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
