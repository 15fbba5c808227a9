"""A trial on devices of several nodes, which share no folder but a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import remains
from support.network import Machine, Network
from support.objects import ObjectServer, no_server
from support.real_sweeps import GRID, SMALL, Command, command_of, losses, of, under_way
from test_network import OnMachine, hosts

pytestmark = pytest.mark.cluster

# Long enough that the trial does not end between the notice and the second at which it is seen.
WORDS = (
    *(*SMALL, GRID, "tracking=off", "engine=solo"),
    *("sweep.trials=1", "sweep.budget.examples=1024"),
)


def test_a_node_of_a_group_is_to_go(
    network: Network, tmp_path: Path, ended: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the node of the rank that speaks: it has to hear of it, and all leave together."""
    if why := no_server():
        pytest.skip(why)
    shared, alone = tmp_path / "shared", Command((*WORDS, "cluster.cpus=1"), tmp_path / "alone")
    shared.mkdir()
    alone.root.mkdir()
    ended.append(alone)
    alone.start()  # while the nodes start
    head = network.add("head")
    far = [network.add(name, shared) for name in ("first", "second", "third")]
    with ObjectServer(tmp_path / "server.txt", head) as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        address = network.start(head, *far)
        words = ("cluster=ray", f"cluster.address={address}", f"storage={bucket.uri}/x")
        command = OnMachine((*WORDS, "engine.devices_per_trial=2", *words), shared)
        command.machine = head
        ended.append(command)
        assert alone.wait() == 0, alone.output
        command.start()
        command.wait_until(under_way)
        (speaker,) = hosts(command.events())
        (leaves,) = (one for one in far if holds_rank(one) and one.name != speaker)
        reported = max(event["step"] for event in of(command.events(), "report"))
        leaves.processes[0].terminate()
        code = command.wait()
    assert code == 0, command.output
    _, again = of(command.events(), "start")
    assert again["step"] > 0, "fetched from the bucket by the ranks of the new group"
    assert again["step"] >= reported
    assert [event["kind"] for event in of(command.events(), "retry")] == ["moved"]
    for key, expected in losses(alone.events()).items():
        assert losses(command.events())[key] == pytest.approx(expected, rel=1e-5)
    assert (command.run_dir / "best" / "trial.yaml").is_file()
    own = list(leaves.scratch.glob("sft-sweeps-*/*"))
    assert own, "it had a folder of its own"
    assert not list(own[0].glob("trials/*")), "a trial that has left has taken its files along"


def holds_rank(machine: Machine) -> bool:
    return any("TrainWorker" in command_of(pid) for pid in remains.processes_in(machine.namespace))
