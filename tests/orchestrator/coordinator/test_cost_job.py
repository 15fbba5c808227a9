"""The last job of a sweep: one worker measures what trials cost alone, and nobody trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.driving import LR, OPTIM, make, report
from support.sweep_events import BOX, PARTS, of_kind, read

from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.coordinator.assignment import AssignmentRules
from orchestrator.coordinator.job import Job
from sweeps.core.cost import Parts
from sweeps.core.ending import Cause, Stop
from sweeps.core.trial import State
from sweeps.ledger.events import Cost, End
from sweeps.results.cost import Costs

SPACE = {LR: "choice(1e-4, 1e-3)", OPTIM: "choice(sgd, adamw_torch)"}


class Sweep:
    """Four lanes that have ended; the best is proven."""

    def __init__(self, root: Path, *, lane: bool = True) -> None:
        self.root = root
        self.actor = self.open()
        for place in range(4):
            job = self.actor.next_job("a", 4)
            assert job.trial is not None, job
            key = job.trial.key
            attempt = self.actor.start("a", key, "box:1", "cpu", 0, [], lane)
            assert attempt is not None
            for index in range(1, 5):
                self.actor.report(key, attempt, report(index, 1.0 + place))
            if lane is False:
                self.end(key)
        for record in self.actor._coordinator.history.unfinished():
            self.end(record.key)
        self.prove("a")

    def open(self) -> CoordinatorActor:
        spec, space = make(SPACE, search="grid", trials=None)
        actor = CoordinatorActor(spec, space, self.root, AssignmentRules(lanes=4))
        actor.begin(BOX)
        return actor

    def end(self, key: str) -> None:
        self.actor.end("a", End(trial=key, attempt=1, state=State.COMPLETED))

    def prove(self, worker: str) -> None:
        job = self.actor.next_job(worker)
        assert job.kind == "prove"
        assert job.trial is not None
        assert self.actor.next_job("b").kind == "leave"  # nobody computes beside it
        self.actor.proven(worker, job.trial.key, job.step, {"eval_loss": 1.0}, "")

    def measured(self, worker: str, job: Job, parts: Parts | None = PARTS, why: str = "") -> None:
        assert job.kind == "cost"
        assert job.trial is not None
        self.actor.cost_measured(worker, job.trial.key, "cpu", parts, why)

    def costs(self) -> list[Cost]:
        return of_kind(read(self.root / "ledger.jsonl"), Cost)


def test_one_worker_measures_each_setting_once_and_the_others_leave(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    assert not sweep.actor.is_done()
    job = sweep.actor.next_job("a")
    assert sweep.actor.next_job("b").kind == "leave"
    assert not sweep.actor.is_done()
    sweep.measured("a", job)
    sweep.measured("a", sweep.actor.next_job("a"))
    assert sweep.actor.next_job("a").kind == "leave"
    assert sweep.actor.is_done()
    assert [event.update[OPTIM] for event in sweep.costs()] == ["sgd", "adamw_torch"]
    assert [event.micro for event in sweep.costs()] == [{}, {}]


def test_no_worker_is_started_beside_the_one_that_does_the_last_jobs(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.actor.worker_left("b")
    assert not sweep.actor.wants_worker()  # between proof and cost, "a" is there
    sweep.actor.next_job("a")
    assert not sweep.actor.wants_worker()
    sweep.actor.worker_died("a", "killed by signal 9")
    assert sweep.actor.wants_worker()


def test_trials_that_had_their_device_to_themselves_are_not_measured_again(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, lane=False)
    assert sweep.actor.next_job("a").kind == "leave"
    assert sweep.actor.is_done()


def test_what_was_measured_before_a_kill_is_not_measured_again(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.measured("a", sweep.actor.next_job("a"))
    sweep.actor.next_job("a")  # killed in the second
    sweep.actor = sweep.open()
    sweep.prove("c")
    sweep.measured("c", sweep.actor.next_job("c"))
    assert sweep.actor.is_done()
    assert len(sweep.costs()) == 2


def test_a_worker_that_dies_of_it_is_followed_by_one_more(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    first = sweep.actor.next_job("a")
    sweep.actor.worker_died("a", "killed by signal 9")
    again = sweep.actor.next_job("b")
    assert again.trial == first.trial
    sweep.measured("a", first)  # it was thought dead
    assert not sweep.costs()
    sweep.actor.worker_died("b", "killed by signal 9")
    (lost,) = sweep.costs()
    assert lost.parts is None
    assert "2 workers died of it: killed by signal 9" in str(lost.reason)
    job = sweep.actor.next_job("c")
    assert job.trial != first.trial
    sweep.measured("c", job)
    assert sweep.actor.is_done()


def test_what_cannot_be_measured_is_in_the_ledger_with_its_reason(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.measured("a", sweep.actor.next_job("a"), None, "OutOfMemoryError: none is left")
    sweep.measured("a", sweep.actor.next_job("a"))
    assert [event.reason for event in sweep.costs()] == ["OutOfMemoryError: none is left", None]
    assert sweep.actor.is_done()
    assert Costs(sweep.actor._coordinator.history).unknown() == 2


@pytest.mark.parametrize(("cause", "measures"), [(Cause.SIGNAL, False), (Cause.TIME_BUDGET, True)])
def test_a_budget_that_is_spent_does_not_keep_it_from_being_measured(
    cause: Cause, measures: bool, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path)
    sweep.actor.interrupt(Stop(cause=cause, details=("SIGINT",)), measures)
    assert (sweep.actor.next_job("a").kind == "cost") is measures


def test_seconds_go_into_it_not_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_MOST_S", "_SHARE"):
        monkeypatch.setattr(f"orchestrator.coordinator.cost_job.{limit}", 0.0)
    sweep = Sweep(tmp_path)
    sweep.measured("a", sweep.actor.next_job("a"))
    assert sweep.actor.next_job("a").kind == "leave"
    assert Costs(sweep.actor._coordinator.history).unknown() == 2
