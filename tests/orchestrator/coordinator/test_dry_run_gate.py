"""No trial starts before one step of the largest micro-batch was trained, by one worker."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.driving import SMALL, make
from support.sweep_events import BOX, of_kind, read
from support.training import train_spec

from orchestrator.config.preflight import step_line
from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.coordinator.assignment import AssignmentRules
from orchestrator.coordinator.job import SweepResult
from sweeps.config.spec import TrainSpec
from sweeps.core.ending import Cause, Stop
from sweeps.ledger.events import Attempt, Event
from trainers.trial.task import DryRun

SIGINT = Stop(cause=Cause.SIGNAL, details=("SIGINT",))
FACTS = replace(BOX, rehearsal={"identity": "abc"})
FOUND = DryRun(rows=4, tokens=100, peak_mb=1.0, checkpoint_mb=1.0, seconds=0.1)


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorActor:
    spec, space = make(SMALL, search="grid", trials=None)
    made = CoordinatorActor(spec, space, tmp_path)
    made.begin(FACTS, to_try=largest())
    return made


def largest() -> TrainSpec:
    return train_spec()


def told(folder: Path) -> list[Event]:
    return read(folder / "ledger.jsonl")


def test_one_worker_does_the_dry_run_and_the_others_wait(
    coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    job = coordinator.next_job("a", 8)
    assert (job.kind, job.spec) == ("dry_run", largest())
    other = coordinator.next_job("b", 8)
    assert (other.kind, other.spec) == ("wait", largest())  # to get ready for
    assert told(tmp_path) == []
    coordinator.dry_run_done("a", FOUND)
    (attempt,) = of_kind(told(tmp_path), Attempt)
    assert attempt.rehearsal == {"identity": "abc", **asdict(FOUND)}
    assert {coordinator.next_job(worker, 8).kind for worker in "ab"} == {"train"}


@pytest.mark.parametrize("is_known", [False, True])
def test_trials_come_with_what_a_lane_took_in_the_dry_run(is_known: bool, tmp_path: Path) -> None:
    """By which a worker with a GPU knows how many it has room for; at a later start, too."""
    spec, space = make(SMALL, search="grid", trials=None)
    coordinator = CoordinatorActor(spec, space, tmp_path)
    found = replace(FOUND, step_mb=300.0)
    if is_known:
        coordinator.begin(FACTS, found)
    else:
        coordinator.begin(FACTS, to_try=largest())
        assert coordinator.next_job("a", 8).lane_mb == 0.0
        coordinator.dry_run_done("a", found)
    job = coordinator.next_job("a", 8)
    assert (job.kind, job.lane_mb) == ("train", 300.0)


@pytest.mark.parametrize(("memory_mb", "said"), [(1_000, {"lanes": 2}), (10_000, {})])
def test_as_many_trials_share_a_cpu_as_one_step_says_and_the_ledger_tells(
    memory_mb: float, said: dict[str, int], tmp_path: Path
) -> None:
    spec, space = make(SMALL, search="grid", trials=None)
    coordinator = CoordinatorActor(
        spec, space, tmp_path, AssignmentRules(lanes=4, memory_mb=memory_mb)
    )
    known = DryRun.recorded({**asdict(FOUND), "step_mb": 500.0, "lanes": 3})  # of another machine
    assert known is not None
    coordinator.begin(FACTS, known)
    jobs = [coordinator.next_job("a", 4).kind for _ in range(5)]
    assert jobs.count("train") == said.get("lanes", 4)
    (attempt,) = of_kind(told(tmp_path), Attempt)
    assert attempt.rehearsal == {"identity": "abc", **asdict(known), **said}
    line = step_line(known, attempt.rehearsal.get("lanes"))
    assert ("memory for 2 trials at once" in line) is bool(said)


def test_a_step_that_fails_ends_the_sweep_before_it_has_begun(
    coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    coordinator.next_job("a", 8)
    coordinator.dry_run_done("a", None, "one step fails", "Traceback ...")
    assert coordinator.is_done()
    assert {coordinator.next_job(worker, 8).kind for worker in "ab"} == {"leave"}
    coordinator.interrupt(SIGINT, False)  # too late: there is nothing to interrupt
    assert coordinator.finish() == SweepResult(refusal="one step fails", traceback="Traceback ...")
    assert told(tmp_path) == []


def test_a_worker_that_dies_of_it_is_followed_by_one_more(
    coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    coordinator.next_job("a", 8)
    coordinator.worker_died("x", "it had nothing to do with it")
    assert coordinator.next_job("b", 8).kind == "wait"
    coordinator.worker_died("a", "killed by signal 9")
    assert coordinator.next_job("b", 8).kind == "dry_run"
    coordinator.worker_died("b", "killed by signal 9")
    assert coordinator.is_done()
    refusal = coordinator.finish().refusal
    assert "2 workers died while they trained one step" in refusal
    assert "killed by signal 9" in refusal
    assert "trainer.per_device_train_batch_size" in refusal


def test_a_worker_that_has_to_leave_hands_it_on(coordinator: CoordinatorActor) -> None:
    coordinator.next_job("a", 8)
    coordinator.worker_left("a")
    assert coordinator.next_job("b", 8).kind == "dry_run"
    coordinator.dry_run_done("b", FOUND)
    assert coordinator.next_job("b", 8).kind == "train"


def test_an_interrupt_in_the_meantime_is_one_of_a_sweep_that_has_begun(
    coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    coordinator.next_job("a", 8)
    coordinator.interrupt(SIGINT, False)
    coordinator.dry_run_done("a", FOUND)
    assert coordinator.next_job("a", 8).kind == "leave"
    assert [event.event for event in told(tmp_path)] == ["sweep", "attempt", "interrupt"]
    assert "rows" not in of_kind(told(tmp_path), Attempt)[0].rehearsal  # so it is done next time
