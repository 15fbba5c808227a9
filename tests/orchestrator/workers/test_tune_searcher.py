"""What Ray Tune is told of workers, and what it tells the Coordinator of their deaths."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.search import Searcher
from support.driving import LR, ending, make
from support.sweep_events import BOX

from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.workers.tune_searcher import Deaths, LeavesAtOnce, WorkerSearcher
from sweeps.core.ending import Cause, Stop
from sweeps.core.trial import Report, State


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorActor:
    spec, space = make({LR: "choice(1e-4)"}, search="grid", trials=None)
    made = CoordinatorActor(spec, space, tmp_path)
    made.begin(BOX)
    return made


def test_as_many_workers_are_suggested_as_there_are_slots(coordinator: CoordinatorActor) -> None:
    slots = [1]
    searcher = WorkerSearcher(coordinator, lambda: slots[0])
    assert searcher.suggest("a") == {"worker": 1}
    assert searcher.suggest("b") is None
    slots[0] = 2  # a node has joined
    assert searcher.suggest("b") == {"worker": 2}
    searcher.on_trial_complete("a", error=True)
    assert searcher.suggest("c") == {"worker": 3}, "a new name: the first one's trials are its own"


def test_no_worker_is_suggested_when_the_sweep_is_over(coordinator: CoordinatorActor) -> None:
    searcher = WorkerSearcher(coordinator, lambda: 1)
    coordinator.interrupt(Stop(cause=Cause.SIGNAL, details=("SIGINT",)), False)
    assert searcher.suggest("a") == Searcher.FINISHED


def test_while_one_worker_proves_the_best_no_other_is_started(
    coordinator: CoordinatorActor,
) -> None:
    trial = coordinator.next_job("worker 1").trial
    assert trial is not None
    attempt = coordinator.start("worker 1", trial.key, "box:1", "cpu", 0, [])
    assert attempt is not None
    told = Report(index=1, step=4, examples=8, tokens=90, metrics={"eval_loss": 1.0})
    coordinator.report(trial.key, attempt, told)
    coordinator.end("worker 1", ending(trial.key, attempt, State.COMPLETED))
    searcher = WorkerSearcher(coordinator, lambda: 2)
    assert searcher.suggest("a") == {"worker": 1}, "the best is not proven yet"
    assert coordinator.next_job("worker 1").kind == "prove"
    assert searcher.suggest("b") is None
    coordinator.proven("worker 1", trial.key, 4, {"eval_loss": 1.0}, "")
    assert searcher.suggest("b") == Searcher.FINISHED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Traceback ...\n  in ray\nActorDiedError: killed by signal 9\n", "killed by signal 9"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_death_is_told_with_the_last_line_of_its_traceback(
    text: str | None, reason: str, coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    deaths = Deaths(coordinator)
    error = tmp_path / "error.txt"
    if text is not None:
        error.write_text(text)
    for number in range(5):  # as many as may die before they ask for anything
        assert not coordinator.is_done()
        dead = SimpleNamespace(config={"worker": number}, error_file=str(error))
        deaths.on_trial_start(0, [], dead)
        deaths.on_trial_error(0, [], dead)
    assert deaths.placed == 5
    assert coordinator.is_done()
    assert str(coordinator.finish().stop).endswith(reason)


def test_what_a_dead_worker_held_is_handed_out_again(
    coordinator: CoordinatorActor, tmp_path: Path
) -> None:
    trial = coordinator.next_job("worker 7").trial
    assert trial is not None
    coordinator.start("worker 7", trial.key, "box:7", "cpu", 0, [])
    assert coordinator.next_job("worker 8").trial is None
    error = tmp_path / "error.txt"
    error.write_text("OSError: the machine is gone")
    dead = SimpleNamespace(config={"worker": 7}, error_file=str(error))
    Deaths(coordinator).on_trial_error(0, [], dead)
    again = coordinator.next_job("worker 8").trial
    assert again is not None
    assert again.key == trial.key


def test_a_sweep_that_is_left_at_once_ends_tunes_loop_at_its_next_step() -> None:
    callback = LeavesAtOnce()
    callback.on_step_begin(0, [])
    pickle.dumps(callback)  # as Tune does
    callback.leave()
    with pytest.raises(RuntimeError, match="left at once"):
        callback.on_step_begin(1, [])
