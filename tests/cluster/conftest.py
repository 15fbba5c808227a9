"""`make test-cluster`: whole sweeps over machines of a network, under Slurm, on object storage.

What a test needs and does not find is said in its skip, and in the list at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from network import Network, obstacle
from objects import ObjectServer, no_server
from real_sweeps import Command
from slurm import Slurm, no_slurm


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
    with Slurm(tmp_path / "slurm") as made:
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


@pytest.fixture
def ended() -> Iterator[list[Command]]:
    """Commands put in here are ended with the test, their processes too."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        if command.process is not None:
            command.clear_up()
    assert os.getpid()
