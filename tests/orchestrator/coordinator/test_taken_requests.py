"""What the actor does with requests: workers leave, trials at once change, answers are written."""

from __future__ import annotations

from pathlib import Path

from support.driving import make
from support.sweep_events import BOX

from orchestrator.coordinator.actor import CoordinatorActor
from sweeps.core.ending import Cause
from sweeps.core.trial import State
from sweeps.ledger.events import End
from sweeps.storage.requests import (
    Unreadable,
    Verb,
    make_request,
    read_answer,
    unanswered_requests,
    write_request,
)
from sweeps.storage.run_folder import RunFolder


def begun(root: Path, **sweep: object) -> CoordinatorActor:
    spec, space = make(trials=4, **sweep)
    actor = CoordinatorActor(spec, space, root)
    actor.begin(BOX)
    return actor


def ask(actor: CoordinatorActor, root: Path, verb: Verb, **more: object) -> str:
    """Ask as a verb does, and have the driver hand the request over; the answer."""
    folder, request = RunFolder(root), make_request(verb, by="ann@box", **more)  # type: ignore[arg-type]
    write_request(folder, request)
    for found in unanswered_requests(folder):
        actor.take(found)
    answer = read_answer(folder, request.name)
    assert answer is not None
    assert answer.is_done, answer.said
    return answer.said


def started(actor: CoordinatorActor, worker: str) -> tuple[str, int]:
    """A trial that this worker trains, and the attempt."""
    job = actor.next_job(worker)
    assert job.trial is not None
    attempt = actor.start(worker, job.trial.key, worker, "cpu", 0, [])
    assert attempt is not None
    return job.trial.key, attempt


def test_workers_leave_a_sweep_that_is_paused_now_and_come_back(tmp_path: Path) -> None:
    actor = begun(tmp_path)
    key, attempt = started(actor, "a")
    ask(actor, tmp_path, "pause", now=True)
    assert not actor.wants_worker()
    assert not actor.is_done()  # Tune goes on waiting
    assert actor.next_job("b").kind == "leave"
    assert actor.next_job("a").kind == "wait"  # until its trial has committed
    actor.end("a", End(trial=key, attempt=attempt, state=State.WAITING))
    assert actor.next_job("a").kind == "leave"
    ask(actor, tmp_path, "resume")
    assert actor.wants_worker()
    assert started(actor, "c")[0] == key


def test_workers_wait_for_a_sweep_that_is_paused(tmp_path: Path) -> None:
    actor = begun(tmp_path)
    started(actor, "a")
    ask(actor, tmp_path, "pause")
    assert actor.wants_worker()
    assert actor.next_job("b").kind == "wait"
    ask(actor, tmp_path, "resume")
    assert actor.next_job("b").kind == "train"


def test_as_many_train_at_once_as_was_set(tmp_path: Path) -> None:
    actor = begun(tmp_path)
    started(actor, "a")
    ask(actor, tmp_path, "set", values={"sweep.max_concurrent": 1})
    assert actor.next_job("b").kind == "wait"
    ask(actor, tmp_path, "set", values={"sweep.max_concurrent": 2})
    assert actor.next_job("b").kind == "train"


def test_finish_proves_the_best_and_cancel_does_not(tmp_path: Path) -> None:
    for verb, cause in (("finish", Cause.FINISHED), ("cancel", Cause.CANCELLED)):
        root = tmp_path / verb
        root.mkdir()
        actor = begun(root)
        started(actor, "a")
        ask(actor, root, verb, start=1)  # type: ignore[arg-type]
        stop = actor.finish().stop
        assert stop is not None
        assert stop.cause is cause
        assert actor._wants_proof == (verb == "finish")


def test_a_file_that_is_no_request_is_answered(tmp_path: Path) -> None:
    actor = begun(tmp_path)
    actor.take(Unreadable(name="x", why="it cannot be read"))
    answer = read_answer(RunFolder(tmp_path), "x")
    assert answer is not None
    assert (answer.is_done, answer.said) == (False, "it cannot be read")
