"""Whole sweeps with lanes: the numbers of trials alone, also when a worker or driver is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from support.real_sweeps import GRID, SMALL, Command, clearing_up, losses, of, under_way

pytestmark = pytest.mark.slow


Make = Callable[..., Command]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes commands; whatever is left of their processes is ended in the end."""
    made: list[Command] = []

    def command(*words: str) -> Command:
        root = tmp_path_factory.mktemp("packed")
        made.append(Command((*SMALL, GRID, "tracking=off", *words), root))
        return made[-1]

    with clearing_up(made):
        yield command


@pytest.fixture(scope="module")
def alone(make: Make) -> Command:
    """The same sweep with engine=solo, to its end."""
    return ended(make("engine=solo"))


def ended(command: Command) -> Command:
    assert command.run() == 0, command.output
    return command


def ranking(found: Command) -> list[str]:
    return [row["key"] for row in found.rows()]


def test_lanes_have_the_losses_and_the_ranking_of_trials_alone(alone: Command, make: Make) -> None:
    packed = ended(make("engine=auto"))
    assert "engine: packed, up to 16 trials share a device and its base model" in packed.output
    assert ranking(packed) == ranking(alone)
    by_key = losses(alone.events())
    assert {key: pytest.approx(values, rel=1e-4) for key, values in by_key.items()} == losses(
        packed.events()
    )
    workers = {event["worker"] for event in of(packed.events(), "start")}
    assert len(workers) == 2  # four trials on two devices


@pytest.mark.long
def test_killed_with_all_its_lanes_a_worker_is_replaced_and_they_go_on(
    alone: Command, make: Make
) -> None:
    packed = make("engine=packed", "cluster.cpus=1")
    packed.start()
    first = packed.wait_until(under_way)
    (start, *_) = of(packed.events(), "start", first)
    os.kill(int(start["worker"].rpartition(":")[2]), signal.SIGKILL)
    packed.wait_until(lambda events: len(of(events, "start")) == 8)
    again = of(packed.events(), "start")[4:]
    assert {event["trial"] for event in again} == set(losses(alone.events()))
    assert any(event["step"] for event in again)  # from their checkpoints
    packed.wait_until(lambda events: of(events, "checkpoint")[5:])
    packed.send(signal.SIGKILL)
    packed.wait()
    assert packed.run() == 0, packed.output
    assert len(of(packed.events(), "ask")) == 4
    by_key = losses(alone.events())
    assert {key: pytest.approx(values, rel=1e-4) for key, values in by_key.items()} == losses(
        packed.events()
    )
    assert ranking(packed) == ranking(alone)


@pytest.mark.long
def test_a_trial_that_cannot_share_trains_beside_those_that_can(make: Make) -> None:
    mixed = ended(make("trainer.neftune_noise_alpha=null,5", "sweep.budget.examples=32"))
    assert "alone where trainer.neftune_noise_alpha=5" in mixed.output
    assert [row["status"] for row in mixed.rows()] == ["completed"] * 8
