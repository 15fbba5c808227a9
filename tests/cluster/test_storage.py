"""A sweep whose run folder has its copy on an S3 server, and goes on from that copy alone."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.network import Network
from support.objects import ObjectServer, no_server
from support.one_sweep import WORDS, Undisturbed, last_losses
from support.real_sweeps import LR, PATIENCE_S, SCHEDULE, Command, of, under_way
from support.tracked_sweep import wait_for
from test_network import OnMachine, hosts

from orchestrator.cli import main
from sweeps.storage.object_store import FILES, Store
from sweeps.storage.requests import ANSWER, make_request, read_answer, write_request

pytestmark = pytest.mark.cluster

KEEP = "sweep.keep=1"
_LEDGER = "ledger/000000.jsonl"


class Stored(Command):
    """A command whose run_dir is a place in the bucket; its local folder is in the working one."""

    place: str

    @property
    def run_dir(self) -> Path:
        found = list(self.root.glob("cwd/outputs/*"))
        return found[0] if found else self.root / "none"

    def words_to_run(self, *more: str) -> list[str]:
        words = super().words_to_run(*more)
        return [f"run_dir={self.place}" if w.startswith("run_dir=") else w for w in words]


def stored(root: Path, place: str, *more: str) -> Stored:
    root.mkdir(exist_ok=True)
    command = Stored((*WORDS, KEEP, "cluster.cpus=2", *more), root)
    command.place = place
    return command


def gone_for_good(folder: Path) -> None:
    """Remove it, although workers that have not noticed yet may write there for a while."""
    deadline = time.monotonic() + PATIENCE_S
    while folder.exists():
        assert time.monotonic() < deadline
        shutil.rmtree(folder, ignore_errors=True)


def test_the_driver_is_killed_and_starts_elsewhere_from_nothing(
    bucket: ObjectServer, tmp_path: Path, ended: list[Command], undisturbed: Undisturbed
) -> None:
    place = f"{bucket.uri}/team/grid"
    store = Store(place)
    first = stored(tmp_path / "first", place)
    ended.append(first)
    first.start()
    trial = first.wait_until(under_way)
    first.wait_until(lambda _: any(FILES in name for name in store.tree(f"trials/{trial}")))
    first.send(signal.SIGKILL)
    first.wait()
    before = {event["trial"] for event in of(first.events(), "end")}
    gone_for_good(first.root / "cwd")

    second = stored(tmp_path / "second", place)
    ended.append(second)
    code = second.run()
    assert code == 0, second.output
    events = second.events()
    again = [event for event in of(events, "start", trial) if event["attempt"] > 1]
    assert trial in before or again[0]["step"] > 0, "it goes on from the checkpoint in the bucket"
    assert last_losses(second.events()) == undisturbed()
    assert f"copied to {place}" in second.output

    kept = {name.partition("/")[0] for name in store.tree("trials") if "/checkpoints/" in name}
    assert len(kept) == 1, "sweep.keep=1 holds there, too"
    assert store.files_of("best")
    lines = (second.run_dir / "ledger.jsonl").read_bytes()
    assert store.read(_LEDGER) == lines

    third = stored(tmp_path / "third", place)
    ended.append(third)
    assert third.run() == 0, third.output
    assert "This sweep had ended already." in third.output
    assert (third.run_dir / "best" / "trial.yaml").is_file()


def test_nodes_that_share_no_folder(
    network: Network, tmp_path: Path, ended: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's machine has the run folder, the others an empty one; they share the bucket."""
    if why := no_server():
        pytest.skip(why)
    shared = tmp_path / "shared"
    shared.mkdir()
    head = network.add("head")
    far = [network.add(name, shared) for name in ("first", "second")]
    with ObjectServer(tmp_path / "server.txt", head) as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        address = network.start(head, *far)
        words = ("cluster=ray", f"cluster.address={address}", f"storage={bucket.uri}/x")
        command = OnMachine((*WORDS, KEEP, *words), shared)
        command.machine = head
        ended.append(command)
        command.start()
        command.wait_until(lambda events: hosts(events) == {"first", "second"})
        lost = command.wait_until(under_way)
        node = of(command.events(), "start", lost)[0]["worker"].partition(":")[0]
        next(machine for machine in far if machine.name == node).processes[0].terminate()
        code = command.wait()
    assert code == 0, command.output
    starts = of(command.events(), "start", lost)
    ended_there = len(starts) == 1
    assert ended_there or starts[1]["step"] > 0, "fetched from the bucket by the other node"
    assert {e.get("kind") for e in of(command.events(), "retry")} <= {"moved"}
    assert [row["status"] for row in command.rows()] == ["completed"] * 4
    assert (command.run_dir / "best" / "trial.yaml").is_file()


def test_a_store_that_is_silent_for_a_while_stops_nothing(
    bucket: ObjectServer, tmp_path: Path, ended: list[Command]
) -> None:
    command = stored(tmp_path / "first", f"{bucket.uri}/silent")
    ended.append(command)
    command.start()
    command.wait_until(under_way)
    bucket.stall(True)
    command.wait_until(lambda events: len(of(events, "end")) >= 3)
    bucket.stall(False)
    assert command.wait() == 0, command.output
    stored_lines = Store(command.place).read(_LEDGER)
    assert stored_lines == (command.run_dir / "ledger.jsonl").read_bytes()


def test_a_sweep_in_a_bucket_is_steered_through_it(
    bucket: ObjectServer,
    tmp_path: Path,
    ended: list[Command],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Verbs know the bucket alone; the answers come back through it."""
    monkeypatch.chdir(tmp_path)
    place = f"{bucket.uri}/team/steered"
    store = Store(place)
    longer = "sweep.budget.examples=4096"  # a verb's way through a bucket takes seconds
    first = stored(tmp_path / "first", place, longer)
    ended.append(first)
    first.start()
    trial = first.wait_until(under_way)
    wait_for(lambda: trial.encode() in (store.read(_LEDGER) or b""), PATIENCE_S)

    def asked(*words: str) -> None:
        verb, *more = words
        assert main([verb, place, *more, "--json"]) == 0, capsys.readouterr().out
        name = json.loads(capsys.readouterr().out)["request"]
        wait_for(lambda: read_answer(store, name) is not None, PATIENCE_S)  # it may come late
        answer = read_answer(store, name)
        assert answer is not None
        assert answer.is_done, answer.said

    asked("pause", "--now")
    asked("set", "sweep.max_concurrent=1")
    asked("stop", trial)
    asked("add", f"{LR}=3e-3", f"{SCHEDULE}=constant")
    first.send(signal.SIGKILL)
    first.wait()
    gone_for_good(first.root / "cwd")
    # A verb waits until it is sure that no driver answers: these are as two terminals leave them.
    write_request(store, make_request("set", values={"sweep.max_retries": 5}))
    write_request(store, make_request("resume"))

    second = stored(tmp_path / "second", place, longer)
    ended.append(second)
    assert second.run() == 0, second.output
    done = [(e["verb"], e.get("values") or {}) for e in of(second.events(), "request")]
    assert [verb for verb, _ in done] == ["pause", "set", "stop", "set", "resume"]
    assert done[3][1] == {"sweep.max_retries": 5}
    states = {event["trial"]: event["state"] for event in of(second.events(), "end")}
    assert states.pop(trial) == "stopped"
    assert list(states.values()) == ["completed"] * 4  # three of the grid, and the added one
    assert store.read(_LEDGER) == (second.run_dir / "ledger.jsonl").read_bytes()
    assert len([name for name in store.tree("requests") if name.endswith(ANSWER)]) == 6
    assert main(["stop", place, trial]) == 1
    assert "has ended already" in capsys.readouterr().err


def test_a_bucket_that_is_not_there(bucket: ObjectServer, tmp_path: Path) -> None:
    command = stored(tmp_path / "first", "s3://no-such-bucket/x")
    assert command.run() == 1
    assert "s3://no-such-bucket/x cannot be used: " in command.output
    assert "credentials" in command.output
    assert not of(command.events(), "attempt")
