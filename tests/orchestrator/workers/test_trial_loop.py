"""A worker's loop and its real Coordinator, both in this process: the order of jobs, and what
becomes of trials for which there is no memory, and of those whose device is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import fake_liger
from support.driving import LR, make
from support.packs import LORA, short_rows, small, small_base, task
from support.sweep_events import BOX, Kind, of_kind, read
from support.training import Recorder

from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.workers import trial_loop
from orchestrator.workers.packed import Pack
from orchestrator.workers.trial_loop import TrialLoop
from orchestrator.workers.worker_config import WorkerConfig
from sweeps.core.trial import State
from sweeps.ledger.events import Ask, Checkpoint, End, Event, Report, Retry, Start
from trainers.packed.compatibility import shared
from trainers.packed.engine import Builder
from trainers.packed.frozen_base import Base
from trainers.packed.lane import Lane
from trainers.sft import trainer as sft_trainer

SMOOTHING = "trainer.label_smoothing_factor"  # a trial that has it is no lane
EXAMPLES = 32  # 4 windows of 8 rows
ILLEGAL = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


class Sweep:
    """A grid over learning rates, on the small base; workers are started one after another."""

    def __init__(
        self, root: Path, rates: str, lanes: int, smoothing: str = "0.0", **sweep: Any
    ) -> None:
        searched = {SMOOTHING: f"choice({smoothing})", LR: f"choice({rates})"}
        spec, space = make(searched, search="grid", trials=None, **sweep)
        base = {
            "model": {"path": small_base().path},
            "data": {"source": "docstrings", "max_length": 16},
            "peft": LORA,
            "trainer": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        }
        self.actor = CoordinatorActor(replace(spec, base=base), space, root)
        self.actor.begin(BOX)
        self._config = WorkerConfig(root=root, examples=EXAMPLES, cpus=1, gpus=0, lanes=lanes)
        self._ledger = root / "ledger.jsonl"
        self._root = root
        self.workers = 0

    def worker(self, watch: Any = None) -> TrialLoop:
        """One that has not begun yet."""
        self.workers += 1
        name, where = f"worker {self.workers}", f"box:{self.workers}"
        made = TrialLoop(self.actor, self._config, name, where, self._config.files(), watch)
        made._data = short_rows()
        return made

    def run(self) -> None:
        """Workers, one after another, until there is nothing more to do."""
        while not self.actor.is_done():
            assert self.workers < 10, "workers come and go, and nothing is done"
            made = self.worker()
            made.work()
            self.actor.worker_left(f"worker {self.workers}")

    def all_events(self) -> list[Event]:
        return read(self._ledger)

    def events(self, kind: type[Kind]) -> list[Kind]:
        return of_kind(read(self._ledger), kind)

    @property
    def records(self) -> list[Any]:
        return list(self.actor._coordinator.history.trials.values())

    @property
    def why(self) -> list[str]:
        return [record.reason for record in self.records]

    def error(self, key: str) -> str:
        return (self._root / "trials" / key / "error.txt").read_text()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(trial_loop, "_IDLE_S", 0.0)


# -- the order of jobs


class Preempted:
    """A node that is about to go as soon as a trial of the sweep has learnt and reported."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    @property
    def is_preempted(self) -> bool:
        return any(event.step for event in self._sweep.events(Report))


@pytest.mark.slow
def test_lanes_train_together_and_what_cannot_be_a_lane_has_the_device_to_itself(
    tmp_path: Path,
) -> None:
    sweep = Sweep(tmp_path, "1e-4,2e-4", lanes=4, smoothing="0.0,0.1")
    sweep.run()
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    alone = {record.key for record in sweep.records if record.values[SMOOTHING]}
    running: set[str] = set()
    together = []
    for event in sweep.all_events():
        if isinstance(event, Start):
            running.add(event.trial)
            together.append(len(running))
            assert len(running) == 1 or not running & alone
        if isinstance(event, End):
            running.remove(event.trial)
    assert len(alone) == 2
    assert max(together) == 2
    assert sweep.workers == 1


@pytest.mark.slow
def test_a_worker_whose_node_goes_commits_what_trains_and_begins_nothing_more(
    tmp_path: Path,
) -> None:
    sweep = Sweep(tmp_path, "1e-4,2e-4", lanes=4, smoothing="0.0,0.1")
    first = sweep.worker(Preempted(sweep))
    first.work()
    sweep.actor.worker_left("worker 1")
    begun = {event.trial for event in sweep.events(Start)}
    moved = sweep.events(Retry)
    assert {event.trial for event in moved} == begun
    assert {event.kind for event in moved} == {"moved"}
    assert not sweep.events(End)
    steps = {event.trial: event.step for event in sweep.events(Checkpoint)}
    assert any(steps.values())
    sweep.run()
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    assert {record.retries for record in sweep.records} == {0}
    again = [event for event in sweep.events(Start) if event.attempt == 2]
    assert {event.trial: event.step for event in again} == steps


def test_a_node_that_goes_before_anything_began_is_given_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "1e-4", lanes=1)
    sweep.worker(SimpleNamespace(is_preempted=True)).work()
    assert not sweep.events(Ask)


# -- no memory


@pytest.mark.slow
def test_for_whom_there_is_no_room_in_the_pack_waits_and_stays_as_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, built = Builder.build, []

    def tight(self: Builder, *given: Any) -> Lane:
        lanes = sum(len(bank.slots) for bank in self.banks.values())
        built.append(lanes)
        if lanes == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(self, *given)

    monkeypatch.setattr(Builder, "build", tight)
    sweep = Sweep(tmp_path, "1e-4,2e-4,3e-4,4e-4", lanes=4)
    sweep.run()
    assert sweep.workers == 1
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    assert {(record.halvings, record.retries) for record in sweep.records} == {(0, 0)}
    retries = sweep.events(Retry)
    assert {event.kind for event in retries} == {"moved"}
    assert retries[0].reason == (
        "no memory for it beside 2 others on its device; it waits for room"
    )
    # Not asked for again until a lane has left: each time would be for nothing.
    assert built == [0, 1, 2, 2, 0, 1]


@pytest.mark.slow
def test_no_room_for_an_optimizers_state_is_none_in_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains on from its last checkpoint when the others have left."""
    step, steps = Lane.step, []

    def tight(self: Lane) -> None:
        steps.append(self.task.key)
        alone = len(self.bank.slots) == 1
        if not alone and self.task.train.trainer["learning_rate"] > 3e-4:
            raise torch.AcceleratorError("CUDA error: out of memory")
        step(self)

    monkeypatch.setattr(Lane, "step", tight)
    sweep = Sweep(tmp_path, "1e-4,2e-4,4e-4", lanes=4)
    sweep.run()
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    assert {(record.halvings, record.retries) for record in sweep.records} == {(0, 0)}
    (retry,) = sweep.events(Retry)
    assert retry.trial == sweep.records[2].key
    assert len(steps) == 3 * 4 + 1


@pytest.mark.slow
def test_what_is_too_large_even_alone_goes_on_with_half_its_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Base.train_pass

    def tight(self: Base, lanes: Any, batches: Any) -> Any:
        specs = [lane.task.train for lane in lanes]
        if any(s.trainer["learning_rate"] > 3e-4 and s.batch_size == 4 for s in specs):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, lanes, batches)

    monkeypatch.setattr(Base, "train_pass", tight)
    sweep = Sweep(tmp_path, "1e-4,2e-4,4e-4", lanes=4)
    sweep.run()
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    assert [record.halvings for record in sweep.records] == [0, 0, 1]
    assert [event.kind for event in sweep.events(Retry)] == ["moved", "oom"]


@pytest.mark.slow
def test_trials_that_fit_by_themselves_only_train_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Lane.step

    def tight(self: Lane) -> None:
        if len(self.bank.slots) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(Lane, "step", tight)
    sweep = Sweep(tmp_path, "1e-4,2e-4,4e-4", lanes=4)
    sweep.run()
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    assert {(record.halvings, record.retries) for record in sweep.records} == {(0, 0)}


@pytest.mark.slow
def test_one_that_fits_only_by_itself_neither_waits_for_all_others_nor_keeps_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, train_pass = Lane.step, Base.train_pass
    passes: list[int] = []

    def tight(self: Lane) -> None:
        if len(self.bank.slots) > 1 and self.task.train.trainer["learning_rate"] > 3e-4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    def counted(self: Base, lanes: Any, batches: Any) -> Any:
        passes.append(len(lanes))
        return train_pass(self, lanes, batches)

    monkeypatch.setattr(Lane, "step", tight)
    monkeypatch.setattr(Base, "train_pass", counted)
    sweep = Sweep(tmp_path, "4e-4,1e-4,2e-4,3e-4", lanes=2)
    sweep.run()
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    assert {(record.halvings, record.retries) for record in sweep.records} == {(0, 0)}
    (retry,) = sweep.events(Retry)
    ended = [event.trial for event in sweep.events(End)]
    assert ended.index(retry.trial) == 1  # after the one beside which it did not fit
    assert passes[-8:] == [2] * 8  # the last two, four steps of two micro-batches


def test_with_each_lane_that_ends_a_full_pack_may_try_one_more(tmp_path: Path) -> None:
    spec = small(evaluations=1)
    made = Pack(shared(spec), spec, short_rows(), "cpu")
    for place, examples in enumerate((8, 16, 24)):
        line: Any = Recorder()
        made.attach(task(tmp_path, spec, place, examples), line)
    made.is_full()
    bounds = []
    while not made.is_empty:
        made.advance()
        bounds.append(made.bound(8))
    assert bounds == [3, 4, 4, 5, 5, 8]


# -- a device that is lost


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 4])
def test_a_lost_device_costs_a_retry_and_the_worker_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    sweep = Sweep(tmp_path, "1e-4,2e-4,4e-4", lanes=lanes)
    first = sweep.worker()
    calls = []

    def lost(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise ILLEGAL

    with monkeypatch.context() as card:
        card.setattr(Base, "train_pass", lost)
        card.setattr(sft_trainer.SweepSFTTrainer, "training_step", lost)
        first.work()
    assert len(calls) == 1, "nothing more is asked of a device that is lost"
    sweep.actor.worker_left("worker 1")
    begun = 1 if lanes == 1 else 3
    assert [record.retries for record in sweep.records] == [1] * begun
    reasons = {event.reason for event in sweep.events(Retry)}
    assert reasons == {"AcceleratorError: CUDA error: an illegal memory access was encountered"}
    assert "illegal memory access" in sweep.error(sweep.records[0].key)
    sweep.run()
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why
    assert sweep.workers == 2


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, pytest.param(4, marks=pytest.mark.long)])
def test_a_trial_that_loses_each_device_fails_when_its_retries_are_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    """A token id beyond the vocabulary does so: the others go on without it."""
    assertion = torch.AcceleratorError("CUDA error: device-side assert triggered")
    train_pass, training_step = Base.train_pass, sft_trainer.SweepSFTTrainer.training_step

    def lane(self: Base, lanes: Any, batches: Any) -> Any:
        if any(lane.task.train.trainer["learning_rate"] > 3e-4 for lane in lanes):
            raise assertion
        return train_pass(self, lanes, batches)

    def alone(self: Any, *given: Any, **named: Any) -> Any:
        if self.args.learning_rate > 3e-4:
            raise assertion
        return training_step(self, *given, **named)

    monkeypatch.setattr(Base, "train_pass", lane)
    monkeypatch.setattr(sft_trainer.SweepSFTTrainer, "training_step", alone)
    sweep = Sweep(tmp_path, "1e-4,2e-4,4e-4", lanes=lanes, max_retries=2)
    sweep.run()
    states = [record.state for record in sweep.records]
    assert states == [State.COMPLETED, State.COMPLETED, State.FAILED]
    failed = sweep.records[2]
    assert failed.kind == "infrastructure"
    assert failed.reason == (
        "AcceleratorError: CUDA error: device-side assert triggered; 2 retries spent "
        "(sweep.max_retries)"
    )
    assert "device-side assert" in sweep.error(failed.key)
    assert sweep.workers == 4  # three that it has cost, and the one that proves the best


@pytest.mark.slow
def test_who_was_not_begun_when_the_device_was_lost_pays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Builder.build

    def fails(self: Builder, *given: Any) -> Lane:
        if len(sweep.events(Start)) == 2 and sweep.workers == 1:
            raise ILLEGAL
        return build(self, *given)

    monkeypatch.setattr(Builder, "build", fails)
    sweep = Sweep(tmp_path, "1e-4,2e-4,4e-4", lanes=4)
    sweep.run()
    assert sorted(record.retries for record in sweep.records) == [0, 1, 1]
    assert {record.state for record in sweep.records} == {State.COMPLETED}, sweep.why


@pytest.mark.slow
def test_a_device_that_is_lost_while_the_best_is_proven_is_no_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path, "1e-4,2e-4", lanes=4)

    def lost(*_: Any, **__: Any) -> Any:
        raise ILLEGAL

    first = sweep.worker()
    with monkeypatch.context() as card:
        card.setattr(trial_loop, "prove", lost)
        with pytest.raises(torch.AcceleratorError):
            first.work()  # Ray sees it die, and tells
    sweep.actor.worker_died("worker 1", "AcceleratorError")
    sweep.run()
    assert sweep.workers == 2
    assert sweep.actor.finish().proof["eval_tokens"] > 0


def test_the_first_step_tells_if_the_base_has_not_the_kernels_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = []
    for patchers in ({}, {"llama": lambda model=None: None}):
        fake_liger.installed(monkeypatch, **patchers)
        root = tmp_path / str(len(notes))
        root.mkdir()
        worker = Sweep(root, "1e-3", lanes=2).worker()
        worker.config = replace(worker.config, kernels="liger")
        notes.append(worker._step(small()).note)
    assert notes[0] == ""
    assert notes[1].startswith("engine.kernels=liger is not used: liger-kernel has none for the")
