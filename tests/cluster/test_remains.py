"""What a test leaves is ended, however deep it lies; what another run has started is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import remains
from support.network import Network

pytestmark = pytest.mark.cluster

# A daemon: in a session of its own, with its parent gone.
_DAEMON = "setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $!"


def daemon(run: int) -> int:
    """Start one in the name of a run; its pid."""
    environment = {**os.environ, remains.RUN: str(run)}
    done = subprocess.run(
        ["sh", "-c", _DAEMON], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ended_run() -> int:
    """The pid of a run that is over."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_daemon_of_this_run_is_ended() -> None:
    pid = daemon(os.getpid())
    wait_for(lambda: lives(pid))
    remains.end_own()
    assert not lives(pid)


def test_a_dead_runs_daemon_is_ended_and_a_living_ones_is_not() -> None:
    of_the_dead, of_the_living = daemon(ended_run()), daemon(os.getppid())
    try:
        wait_for(lambda: lives(of_the_dead) and lives(of_the_living))
        remains.end_of_dead_runs()
        assert not lives(of_the_dead)
        assert lives(of_the_living)
    finally:
        os.kill(of_the_living, 9)


def test_a_dead_runs_namespace_goes_with_all_that_runs_in_it(network: Network) -> None:
    machine = network.add("one")
    inside = subprocess.Popen(machine.words(["sleep", "300"]), env={"PATH": os.environ["PATH"]})
    wait_for(lambda: inside.pid in remains.processes_in(machine.namespace))
    assert machine.namespace in remains.namespaces()

    remains.end_of_dead_runs()  # at its start, a run has none: one that bears its pid is old
    assert machine.namespace not in remains.namespaces()
    assert inside.wait(20) != 0
