"""Nodes: GPUs shared out, notices given, and workers that see another run folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.driving import LR, ending, make
from support.sweep_events import BOX

from orchestrator.cluster import nodes, preemption
from orchestrator.cluster.placement import share_of_gpu
from orchestrator.cluster.preemption import DrainWatch, PreemptionWatch
from orchestrator.cluster.signals import Signals
from orchestrator.coordinator import actor
from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.storage.folder_token import sees_run_folder, write_token
from orchestrator.storage.worker_files import WorkerFiles, checkpoint_name, split_name
from sweeps.core.ending import Cause
from sweeps.core.errors import StaleAttemptError
from sweeps.core.trial import State
from sweeps.ledger.history import read_history
from sweeps.storage.object_store import Store

# ---------------------------------------------------------------------- fractions of GPUs


@pytest.mark.parametrize(
    ("asked", "gpus", "most", "share"),
    [
        (0.5, 4, 4, 1.0),  # a GPU each
        (0.5, 4, 3, 1.0),
        (0.5, 4, 5, 0.5),
        (0.5, 4, 100, 0.5),
        (0.25, 4, 8, 0.5),  # two on each, not four on two
        (0.25, 4, 9, 1 / 3),
        (0.25, 1, 8, 0.25),
        (0.4, 2, 100, 0.5),  # the fifth that nobody could use
        (1.0, 4, 2, 1.0),
        (0.0, 4, 2, 0.0),
        (0.5, 0, 2, 0.5),  # refused elsewhere
    ],
)
def test_shares_of_gpus_spread_the_trials(asked: float, gpus: int, most: int, share: float) -> None:
    assert share_of_gpu(asked, gpus, most) == pytest.approx(share)


# ---------------------------------------------------------------------- leaving


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Nodes that drain; looked at often."""
    draining: set[str] = set()
    monkeypatch.setattr(preemption, "_LOOK_S", 0.01)
    monkeypatch.setattr(preemption, "draining_nodes", lambda: draining)
    return draining


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_notice_is_given_when_the_node_drains(quick: set[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        mine, other = PreemptionWatch("mine"), PreemptionWatch("other")
        assert not mine.is_preempted
        quick.add("mine")
        wait_for(lambda: mine.is_preempted)
        assert not other.is_preempted
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_group_is_given_notice_when_any_of_its_nodes_drains(quick: set[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    group, other = DrainWatch("one", "two"), DrainWatch("three")
    quick.add("two")
    wait_for(lambda: group.is_preempted)
    assert not other.is_preempted
    assert signal.getsignal(signal.SIGTERM) is handler, "ranks cannot take signals"


def test_the_first_sigterm_gives_notice_and_the_second_ends(quick: set[str]) -> None:
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        watch = PreemptionWatch("mine")
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: watch.is_preempted)
        assert ended == []
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: ended == [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sigterm_that_comes_by_two_ways_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch system signals every process of a job, and the job's script passes it on."""
    left: list[bool] = []
    with Signals() as signals:
        signals.collect(lambda: left.append(True), bool)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: signals.seen)
        assert not left
        monkeypatch.setattr("orchestrator.cluster.signals._ECHO_S", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: left)


def test_a_signal_that_ends_rays_head_too_leaves_whatever_the_main_thread_does() -> None:
    left: list[bool] = []
    with Signals() as signals:
        signals.collect(lambda: left.append(True), lambda: True)
        assert not left
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: left)


@pytest.mark.slow
def test_once_ray_is_stopped_that_its_head_is_gone_says_nothing() -> None:
    left: list[bool] = []
    with Signals() as signals:
        signals.collect(lambda: left.append(True), lambda: True)
        signals.stop_watching()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: signals.seen)
        time.sleep(0.5)
        assert not left
        assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_ctrl_c_twice_leaves_however_fast() -> None:
    left: list[bool] = []
    with Signals() as signals:
        signals.collect(lambda: left.append(True), bool)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: left)


def test_ctrl_c_at_the_start_says_that_nothing_was_started(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Signals():
        for _ in range(2):
            with pytest.raises(SystemExit) as left:
                os.kill(os.getpid(), signal.SIGINT)
                wait_for(lambda: False)
            assert left.value.code == 130
    assert capfd.readouterr().err == "\nSIGINT: no trial was started.\n"


# ---------------------------------------------------------------------- the Coordinator


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorActor:
    spec, space = make({LR: "choice(1e-4, 1e-3)"})
    made = CoordinatorActor(spec, space, tmp_path)
    made.begin(BOX)
    return made


def test_a_trial_that_moves_is_handed_out_again_and_pays_nothing(
    coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    trial = coordinator.next_job("worker 0").trial
    assert trial is not None
    for move in range(5):  # more often than a trial has retries
        attempt = coordinator.start(f"worker {move}", trial.key, "host:1", "cpu", 8 * move, [])
        assert attempt == move + 1
        coordinator.end(f"worker {move}", ending(trial.key, attempt, State.WAITING))
        coordinator.worker_left(f"worker {move}")
        again = coordinator.next_job(f"worker {move + 1}").trial
        assert again is not None
        assert again.key == trial.key
    record = read_history(tmp_path / "ledger.jsonl").trials[trial.key]
    assert (record.retries, record.attempt) == (0, 5)


def test_what_a_worker_had_not_begun_goes_to_another(coordinator: CoordinatorActor) -> None:
    first = coordinator.next_job("worker 1", 2).trial
    coordinator.worker_left("worker 1")
    second = coordinator.next_job("worker 2", 2).trial
    assert first is not None
    assert second is not None
    assert first.key == second.key


def test_a_worker_that_was_thought_dead_cannot_take_its_trials_back(
    coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    """It comes back and begins, or gives up, what others have in hand: nobody listens."""
    trial = coordinator.next_job("worker 1").trial
    assert trial is not None
    first = coordinator.start("worker 1", trial.key, "host:1", "cpu", 0, [])
    waiting = coordinator.next_job("worker 1", 2).trial  # not begun
    assert waiting is not None
    coordinator.worker_died("worker 1", "its node does not answer")
    taken = [coordinator.next_job("worker 2", 2).trial for _ in range(2)]
    assert {found.key for found in taken if found} == {trial.key, waiting.key}
    second = coordinator.start("worker 2", trial.key, "host:2", "cpu", 0, [])
    assert (first, second) == (1, 2)
    coordinator.start("worker 2", waiting.key, "host:2", "cpu", 0, [])
    before = (tmp_path / "ledger.jsonl").read_bytes()
    assert coordinator.start("worker 1", waiting.key, "host:1", "cpu", 0, []) is None
    coordinator.release("worker 1", trial.key, "OSError: no space", True)
    for act in (
        lambda: coordinator.may_commit(trial.key, 1),
        lambda: coordinator.committed(trial.key, 1, 4, 100),
        lambda: coordinator.log(trial.key, 1, [{"loss": 1.0}]),
        lambda: coordinator.end("worker 1", ending(trial.key, 1, State.COMPLETED)),
        lambda: coordinator.out_of_memory("worker 1", trial.key, 1, "oom", ""),
    ):
        with pytest.raises(StaleAttemptError):
            act()
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert coordinator.next_job("worker 3").trial is None
    coordinator.may_commit(trial.key, 2)


def test_where_every_worker_sits_out_the_sweep_stops_and_says_why(
    coordinator: CoordinatorActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.report_unusable("worker 1", "run_dir cannot be seen from node far")
    assert not coordinator.is_done()
    monkeypatch.setattr(actor, "_IDLE_S", 0.0)
    time.sleep(0.01)
    assert coordinator.is_done()
    stop = coordinator.finish().stop
    assert stop.cause is Cause.UNFIT_NODES
    assert str(stop) == "run_dir cannot be seen from node far"


@pytest.mark.slow
def test_workers_that_die_before_they_ask_for_anything_stop_the_sweep(
    coordinator: CoordinatorActor,
) -> None:
    for number in range(5):
        assert coordinator.finish().stop is None
        coordinator.worker_died(f"worker {number}", "ImportError: libcudart.so.99")
    stop = coordinator.finish().stop
    assert stop.cause is Cause.WORKERS_DIE
    assert str(stop).endswith("before they can train anything: ImportError: libcudart.so.99")


def test_where_one_worker_can_the_others_may_sit_out(
    coordinator: CoordinatorActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "_IDLE_S", 0.0)
    coordinator.next_job("worker 2")
    coordinator.report_unusable("worker 1", "run_dir cannot be seen from node far")
    for _ in range(3):
        assert not coordinator.is_done()


def test_a_cluster_without_room_is_waited_for_and_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = [1]
    now = [0.0]
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    watch = nodes.CapacityWatch(lambda: room[0])
    watch.look()
    assert (watch.news(), watch.is_over) == ("", False)
    room[0] = 0
    watch.look()
    assert watch.news() == ""
    now[0] = 60.0
    assert "no node of the cluster has room for a trial: waiting 10 minutes" in watch.news()
    assert (watch.news(), watch.is_over) == ("", False)
    room[0] = 1
    watch.look()
    assert "the sweep goes on" in watch.news()
    room[0] = 0
    watch.look()
    assert watch.seconds == 0.0
    now[0] = 700.0
    assert watch.is_over


# ---------------------------------------------------------------------- the files of a worker


def test_a_folder_of_the_same_name_is_told_from_the_run_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    word = write_token(here)
    write_token(there)
    assert sees_run_folder(here, word)
    assert not sees_run_folder(there, word)
    assert not sees_run_folder(tmp_path / "none", word)
    assert nodes._look(str(there), word, False).endswith(
        "this node has another folder of that name; storage=... would do without"
    )
    assert nodes._look(str(here), word, False) == ""


@pytest.mark.parametrize("name", ["step-000064", "x@1", "step-abc@1", "step-000064@x"])
def test_names_that_are_no_checkpoints_of_a_store(name: str) -> None:
    assert split_name(name) == (-1, 0)
    assert split_name(checkpoint_name(64, 3)) == (64, 3)


def checkpoint(files: WorkerFiles, step: int, text: str) -> None:
    path = files.folder.checkpoint("k", step)
    path.mkdir(parents=True)
    (path / "adapter").write_text(text)


def files_of_node(tmp_path: Path, node: str, monkeypatch: pytest.MonkeyPatch) -> WorkerFiles:
    """Of a node that does not see the run folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / node))
    return WorkerFiles(tmp_path / "nowhere", "word", str(tmp_path / "store"))


def test_a_trial_moves_between_nodes_by_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = files_of_node(tmp_path, "first", monkeypatch)
    for step in (8, 16):
        checkpoint(first, step, f"first {step}")
        first.committed("k", step, 1)
    assert [p.name for p in first.folder.checkpoints("k").iterdir()] == ["step-000016"]
    first.forget("k")
    assert not first.folder.trial("k").exists()

    second = files_of_node(tmp_path, "second", monkeypatch)
    second.fetch("k")
    assert (second.folder.checkpoint("k", 16) / "adapter").read_text() == "first 16"
    checkpoint(second, 24, "second 24")
    second.committed("k", 24, 2)

    # An attempt that is over, but whose worker lives, writes the same step: nothing is spoilt.
    checkpoint(first, 24, "first 24")
    first.committed("k", 24, 1)
    third = files_of_node(tmp_path, "third", monkeypatch)
    third.fetch("k")
    assert (third.folder.checkpoint("k", 24) / "adapter").read_text() == "second 24"


def slow_fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the folders that are fetched from now on, each long enough for two to meet."""
    get_folder, fetched = Store.get_folder, []

    def slow(self: Store, name: str, folder: Path) -> bool:
        fetched.append(name)
        time.sleep(0.3)
        return get_folder(self, name, folder)

    monkeypatch.setattr(Store, "get_folder", slow)
    return fetched


def test_the_workers_of_a_node_fetch_the_data_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").write_text("all of them")
    Store(str(tmp_path / "store")).put_folder(tmp_path / "data", "data")
    fetched = slow_fetches(monkeypatch)
    shelves = [files_of_node(tmp_path, "node", monkeypatch) for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda files: (files.data() / "rows").read_text(), shelves))
    assert found == ["all of them"] * 4
    assert fetched == ["data"]


def test_the_ranks_of_a_node_fetch_a_checkpoint_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = files_of_node(tmp_path, "first", monkeypatch)
    checkpoint(first, 8, "first 8")
    first.committed("k", 8, 1)
    fetched = slow_fetches(monkeypatch)
    ranks = [files_of_node(tmp_path, "second", monkeypatch) for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda files: files.fetch("k"), ranks))
    assert fetched == [f"trials/k/checkpoints/{checkpoint_name(8, 1)}"]
    assert (ranks[0].folder.checkpoint("k", 8) / "adapter").read_text() == "first 8"


@pytest.mark.parametrize("is_superseded", [True, False])
def test_what_is_superseded_while_it_is_fetched_is_passed_over(
    is_superseded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = files_of_node(tmp_path, "first", monkeypatch)
    for step in (8, 16):
        checkpoint(first, step, f"first {step}")
        first.committed("k", step, 1)
    get = Store.get

    def superseded(self: Store, name: str, path: Path) -> None:
        if checkpoint_name(16, 1) in name:
            if is_superseded:
                self.remove(name.rpartition("/")[0])
            raise OSError("RESOURCE_NOT_FOUND during GetObject")  # object storage's words
        get(self, name, path)

    monkeypatch.setattr(Store, "get", superseded)
    second = files_of_node(tmp_path, "second", monkeypatch)
    if is_superseded:
        second.fetch("k")
        assert (second.folder.checkpoint("k", 8) / "adapter").read_text() == "first 8"
    else:
        with pytest.raises(OSError, match="RESOURCE_NOT_FOUND"):
            second.fetch("k")
    assert not second.folder.checkpoint("k", 16).exists()


def test_without_the_folder_and_without_a_store_a_worker_is_of_no_use(tmp_path: Path) -> None:
    assert not WorkerFiles(tmp_path / "nowhere", "word", "").is_usable
    assert WorkerFiles(tmp_path / "nowhere", "", "").is_usable  # one machine
    assert WorkerFiles(tmp_path, write_token(tmp_path), "").is_usable


def test_a_store_that_is_gone_does_not_stop_a_trial_that_needs_it_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Store, name: str) -> list[str]:
        raise OSError("no answer")

    monkeypatch.setattr(Store, "names", gone)
    WorkerFiles(tmp_path, "", str(tmp_path / "store")).fetch("k")
    WorkerFiles(tmp_path, write_token(tmp_path), str(tmp_path / "store")).fetch("k")
    with pytest.raises(OSError, match="no answer"):
        WorkerFiles(tmp_path / "nowhere", "word", str(tmp_path / "store")).fetch("k")
