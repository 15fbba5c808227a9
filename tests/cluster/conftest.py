"""`make test-cluster`: whole sweeps over machines of a network, under Slurm, on object storage.

What a test needs and does not find is said in its skip, and in the list at the end. No test takes
longer than its limit, and none leaves a process or a namespace behind, whether it passes, fails or
is stopped at its limit; what a run that was killed has left, the next one ends.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import remains
from support.network import Network, obstacle
from support.objects import ObjectServer, no_server
from support.one_sweep import WORDS, Undisturbed, last_losses
from support.real_sweeps import Command
from support.slurm import Slurm, SlurmRefusesError, no_slurm

# Three times and more what each takes on two cores that do nothing else.
LIMITS_S = {"setup": 240, "call": 600, "teardown": 180}


class OverLimitError(Exception):
    """A part of a test has taken too long; the traceback says where it waits."""


@contextmanager
def within(part: str) -> Iterator[None]:
    limit_s = LIMITS_S[part]

    def stop(*_: object) -> None:
        raise OverLimitError(f"its {part} has taken {limit_s} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    with within("setup"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    with within("call"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    with within("teardown"):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _a_run() -> Iterator[None]:
    os.environ["PATH"] += (
        ":/usr/sbin:/sbin"  # where daemons lie, whether a shell looks there or not
    )
    remains.end_of_dead_runs()
    os.environ[remains.RUN] = str(os.getpid())
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("SIGTERM", returncode=143))
    yield
    signal.signal(signal.SIGTERM, before)
    del os.environ[remains.RUN]


@pytest.fixture(autouse=True)
def _nothing_remains(_a_run: None) -> Iterator[None]:
    yield
    remains.end_own()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    if why := obstacle():
        pytest.skip(why)
    with Network(tmp_path) as made:
        yield made


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    if why := no_slurm():
        pytest.skip(why)
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Slurm(tmp_path / "slurm"))
        except SlurmRefusesError as error:
            pytest.skip(f"Slurm does not run here: {error}")
        yield made


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A bucket on a server of our own; the environment leads to it."""
    if why := no_server():
        pytest.skip(why)
    with ObjectServer(tmp_path / "server.txt") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The one sweep where nothing gets in its way, run when it is asked for; its last_losses."""

    @functools.cache
    def run() -> dict[str, float]:
        command = Command((*WORDS, "cluster.cpus=2"), tmp_path_factory.mktemp("undisturbed"))
        assert command.run() == 0, command.output
        return last_losses(command.events())

    return run


@pytest.fixture
def ended() -> Iterator[list[Command]]:
    """Commands put in here are ended with the test, their processes too."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        if command.process is not None:
            command.clear_up()
