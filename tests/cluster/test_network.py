"""Several machines for real: their own addresses and host names, and a cable that can be cut."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.network import Machine, Network
from support.real_sweeps import GRID, SMALL, Command, Events, losses, of

pytestmark = pytest.mark.cluster

WORDS = (*SMALL, GRID, "tracking=off", "engine=solo", "cluster=ray", "sweep.budget.examples=1024")


class OnMachine(Command):
    """A command that runs on one of the machines."""

    machine: Machine

    def words_to_run(self, *more: str) -> list[str]:
        return self.machine.words(super().words_to_run(*more))


def sweep_on(machine: Machine, root: Path, address: str, *more: str) -> OnMachine:
    command = OnMachine((*WORDS, f"cluster.address={address}", *more), root)
    command.machine = machine
    return command


def hosts(events: Events) -> set[str]:
    return {event["worker"].partition(":")[0] for event in of(events, "start")}


def test_a_cable_is_cut_and_the_driver_is_killed(
    network: Network, tmp_path: Path, ended: list[Command]
) -> None:
    head, first, second = (network.add(name) for name in ("head", "first", "second"))
    command = sweep_on(head, tmp_path, network.start(head, first, second))
    ended.append(command)
    command.start()
    command.wait_until(lambda events: hosts(events) == {"first", "second"})
    assert "2 at once on 3 nodes of the cluster, 1 CPU each" in command.output

    def held_by_first(events: Events) -> str | None:
        last = {event["trial"]: event["worker"] for event in of(events, "start")}
        over = {event["trial"] for event in of(events, "end")}
        mine = [t for t, worker in last.items() if worker.startswith("first:") and t not in over]
        saved = {event["trial"] for event in of(events, "checkpoint")}
        return next((trial for trial in mine if trial in saved), None)

    lost = command.wait_until(held_by_first)
    first.cut()
    command.wait_until(lambda events: of(events, "retry", lost))
    command.wait_until(lambda events: len(of(events, "start", lost)) == 2)
    again = of(command.events(), "start", lost)[1]
    assert again["worker"].startswith("second:")
    assert again["step"] > 0, "it goes on from its checkpoint"

    command.send(signal.SIGKILL)
    command.wait()
    code = command.run()
    assert code == 0, command.output
    events = command.events()
    assert [row["status"] for row in command.rows()] == ["completed"] * 4
    assert len(of(events, "end")) == 4
    assert all(len(values) == 4 for values in losses(events).values())


def test_a_node_that_does_not_see_the_run_folder_takes_no_trials(
    network: Network, tmp_path: Path, ended: list[Command]
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    head, near = network.add("head"), network.add("near")
    far = network.add("far", shared)
    command = sweep_on(head, shared, network.start(head, near, far), "sweep.budget.examples=128")
    ended.append(command)
    code = command.run()
    assert code == 0, command.output
    assert "node far takes no trials: run_dir" in command.output
    assert hosts(command.events()) == {"near"}
    assert not of(command.events(), "retry")


def test_no_node_sees_the_run_folder(
    network: Network, tmp_path: Path, ended: list[Command]
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    head, far = network.add("head"), network.add("far", shared)
    command = sweep_on(head, shared, network.start(head, far))
    ended.append(command)
    assert command.run() == 1
    assert f"run_dir {command.run_dir} is not shared, this node does not see it" in command.output


def test_a_node_that_is_to_go_gives_its_trials_away(
    network: Network, tmp_path: Path, ended: list[Command]
) -> None:
    """SIGTERM to `ray start`, as Kubernetes and spot instances send it: a step is lost at most."""
    head, first, second = (network.add(name) for name in ("head", "first", "second"))
    # Long enough that no trial ends between the notice and the second at which it is looked for.
    words = ("sweep.trials=2", "sweep.budget.examples=2048")
    command = sweep_on(head, tmp_path, network.start(head, first, second), *words)
    ended.append(command)
    command.start()

    def held_by_first(events: Events) -> str | None:
        over = {event["trial"] for event in of(events, "end")}
        starts = [e["trial"] for e in of(events, "start") if e["worker"].startswith("first:")]
        steps = [e["trial"] for e in of(events, "report") if e["index"] > 0]
        return next((trial for trial in starts if trial in steps and trial not in over), None)

    moved = command.wait_until(held_by_first)
    reported = max(e["step"] for e in of(command.events(), "report", moved))
    first.processes[0].send_signal(signal.SIGTERM)
    command.wait_until(lambda events: len(of(events, "start", moved)) == 2)
    again = of(command.events(), "start", moved)[1]
    assert again["worker"].startswith("second:")
    assert again["step"] >= reported
    due = {256 * index // 4 for index in range(5)}
    assert again["step"] not in due or again["step"] > reported, "it committed where it was told to"
    assert command.wait() == 0, command.output
    kinds = [event.get("kind") for event in of(command.events(), "retry")]
    assert set(kinds) == {"moved"}, "a move costs no retry"
    assert [row["status"] for row in command.rows()] == ["completed"] * 2
