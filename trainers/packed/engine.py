"""Trains many LoRA trials on one frozen base model on one device, each equal to its solo run.

engine = Engine(train, data, device="cuda")
engine.attach(task, observer)          # at any time between two advances
for ended in engine.advance(): ...     # one micro-step of every lane, and what falls due
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from sweeps.config.spec import Kernels, TrainSpec
from sweeps.core.trial import Decision, State
from trainers.data.dataset import PreparedData, tokens_seen
from trainers.model.loading import fingerprint_base
from trainers.packed import checkpoint as lane_checkpoint
from trainers.packed.adapter_bank import Adapter, Bank, Shape, Slot
from trainers.packed.compatibility import settings
from trainers.packed.dropout import Stream
from trainers.packed.evaluation import Evaluation
from trainers.packed.frozen_base import Base, Groups
from trainers.packed.lane import Lane
from trainers.packed.micro_batches import MicroBatch, Reader, Windows
from trainers.packed.optimizer import Stepping
from trainers.trial import checkpoint
from trainers.trial.checkpoint import Found
from trainers.trial.evaluation import Measured, rows_for
from trainers.trial.failures import is_device_lost
from trainers.trial.meters import PeakMemory, Stopwatch, wait_for
from trainers.trial.reporting import TrialReporter, begin, report_base
from trainers.trial.task import Observer, Outcome, Task


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A lane that is over: its outcome, or the error that ended it."""

    task: Task
    outcome: Outcome | None = None
    error: Exception | None = None


class Engine:
    """Trains the lanes of one device.

    Args:
        train: any of the trials; what all of them share is read from it.
        base: the base model of an earlier engine, whose trials shared the same.
        pads, kernels: see `Base`; of no use with an earlier engine's base.
    """

    def __init__(
        self,
        train: TrainSpec,
        data: PreparedData,
        *,
        device: str,
        base: Base | None = None,
        pads: bool | None = None,
        kernels: Kernels = "torch",
    ) -> None:
        memory, self._clock = PeakMemory(device), Stopwatch()
        self._base = base or Base(train, settings(train), device, pads=pads, kernels=kernels)
        self._fingerprint = fingerprint_base(train.model)
        self._builder = Builder(
            base=self._base,
            data=data,
            fingerprint=self._fingerprint,
            clock=self._clock,
            memory=memory,
        )
        rows = rows_for(data.evaluation, self._base.model, train.model)
        self._evaluation = Evaluation(rows, self._base)
        self._groups = Groups(
            self._base.device, "out of memory: until one leaves, at most %d trials pass at once"
        )
        self._lanes: list[Lane] = []  # those of a bank are neighbours, in the order of its slots
        self._over: list[Ended] = []

    @property
    def keys(self) -> list[str]:
        """The keys of the trials that are lanes now."""
        return [lane.task.key for lane in self._lanes]

    def attach(self, task: Task, observer: Observer) -> bool:
        """Begin or go on with a trial as a lane; False if its observer declines it.

        Raises:
            DivergedError: the base model's loss is not finite.
            Whatever building the lane raises; the other lanes go on.
        """
        wait_for(self._base.device)  # what was queued is training, and counts as such
        with self._clock.paused():
            checkpoints = task.folder.checkpoints(task.key)
            found = checkpoint.newest(checkpoints, key=task.key, base=self._fingerprint)
            if not begin(observer, found):
                return False
            checkpoint.make_ready(checkpoints)
            if observer.wants_base():
                report_base(self._evaluation.base_loss(), observer)
            self._lanes.append(self._builder.build(task, observer, found))
            self._arrange()
        return True

    def _arrange(self) -> None:
        places = [slot for bank in self._builder.banks.values() for slot in bank.slots]
        order = {id(slot): place for place, slot in enumerate(places)}
        self._lanes.sort(key=lambda lane: order[id(lane.slot)])

    def advance(self) -> list[Ended]:
        """One micro-step of every lane, and the steps, logs, reports and commits that fall due."""
        for lane in [lane for lane in self._lanes if lane.is_done]:
            self._end(lane, State.COMPLETED)  # it was finished when it came
        batches = self._take()
        lanes = list(self._lanes)
        for lane, failed in zip(
            lanes, self._groups.run(lanes, partial(self._pass, batches)), strict=True
        ):
            if failed is not None:
                self._leave(lane, Ended(task=lane.task, error=failed))
        full = [lane for lane in self._lanes if batches[lane.task.key].ends_window]
        for lane in full:
            self._try(lane, lane.step)
        for lane in [lane for lane in full if lane in self._lanes and lane.is_to_log]:
            self._try(lane, lane.log)
        for lane in [each for each in self._lanes if each.in_window or not each.is_to_log]:
            self._try(lane, lane.listen)
        with self._clock.paused():
            due = [lane for lane in full if lane in self._lanes and lane.is_due]
            for lane, measured in zip(due, self._evaluation.measure(due), strict=True):
                self._try(lane, partial(self._report, lane, measured))
            for lane in list(self._lanes):
                settle = self._leave_window if lane.in_window else self._settle
                self._try(lane, partial(settle, lane))
        over, self._over = self._over, []
        return over

    def _take(self) -> dict[str, MicroBatch]:
        """The next micro-batch of each lane, by key, in the lanes' order."""
        batches: dict[str, MicroBatch] = {}

        def take(lane: Lane) -> None:
            batches[lane.task.key] = lane.take()

        for lane in list(self._lanes):
            self._try(lane, partial(take, lane))
        return batches

    def _pass(self, batches: Mapping[str, MicroBatch], lanes: Sequence[Lane]) -> list[None]:
        """Pass the micro-batches of lanes; if that fails, these lanes are as they were."""
        for lane in lanes:
            lane.begin_pass()
        try:
            losses, hits = self._base.train_pass(lanes, [batches[lane.task.key] for lane in lanes])
        except Exception as error:
            if not is_device_lost(error, str(self._base.device)):
                for lane in lanes:
                    lane.undo_pass()
            raise
        for place, lane in enumerate(lanes):
            lane.add(losses[place], hits[place])
        return [None] * len(lanes)

    def _report(self, lane: Lane, measured: Measured | Exception) -> None:
        if isinstance(measured, Exception):
            raise measured
        if lane.report(measured) is Decision.PRUNE:
            self._end(lane, State.PRUNED)  # nothing of a pruned trial is kept

    def _settle(self, lane: Lane) -> None:
        """Commit if the lane is due or was told to stop, and end it if it is over."""
        if lane.is_due or lane.leaving:
            lane_checkpoint.commit(lane)
        if lane.is_done:
            self._end(lane, State.COMPLETED)
        elif lane.leaving:
            self._end(lane, State.WAITING)

    def _leave_window(self, lane: Lane) -> None:
        """End a lane that was told to stop between two micro-batches of a window."""
        if not lane.leaving:
            return
        lane.give_up_window()
        if not lane.record.is_saved:
            lane_checkpoint.commit(lane)
        self._end(lane, State.WAITING)

    def _try(self, lane: Lane, act: Callable[[], None]) -> None:
        """Let a lane act by itself; if that fails, this lane alone ends."""
        try:
            act()
        except Exception as error:
            self._leave(lane, Ended(task=lane.task, error=error))

    def _end(self, lane: Lane, state: State) -> None:
        self._leave(lane, Ended(task=lane.task, outcome=lane.outcome(state)))

    def _leave(self, lane: Lane, ended: Ended) -> None:
        self._over.append(ended)
        self._lanes.remove(lane)
        self._builder.clear(lane.bank, lane.slot)
        self._groups.lane_left()
        self._evaluation.groups.lane_left()


def train_alone(task: Task, data: PreparedData, observer: Observer, *, base: Base) -> Outcome:
    """Train one trial as the only lane of an engine, to its end.

    Raises:
        The error that ended the lane.
    """
    engine = Engine(task.train, data, device=str(base.device), base=base)
    if not engine.attach(task, observer):
        return Outcome(state=State.WAITING)
    while not (over := engine.advance()):
        continue
    (ended,) = over
    if ended.error is not None:
        raise ended.error
    assert ended.outcome is not None
    return ended.outcome


@dataclass(kw_only=True)
class Builder:
    """Builds lanes on one base model.

    Attributes:
        fingerprint: of the base model.
        clock, memory: of the engine.
        banks: the banks that hold a lane.
    """

    base: Base
    data: PreparedData
    fingerprint: str
    clock: Stopwatch
    memory: PeakMemory
    banks: dict[Shape, Bank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = Reader(self.data.train)

    def build(self, task: Task, observer: Observer, found: Found) -> Lane:
        """A lane for `task` with a place in a bank, from the checkpoint `found` if there is one."""
        train = task.train
        chosen = settings(train)
        steps = train.steps(task.examples)
        adapter = self.base.adapter(train.peft, train.seed)
        begins = found[0] if found else checkpoint.beginning(task.folder, train)
        values = adapter.values if begins is None else adapter.load(begins)
        bank, slot = self._place(adapter, train.batch_size, values)
        try:
            lane = Lane(
                task=task,
                chosen=chosen,
                record=self._record(task, observer, found),
                adapter=adapter,
                bank=bank,
                slot=slot,
                stepping=Stepping(chosen, bank.shape, slot, adapter.decays, steps),
                windows=Windows(
                    self._reader,
                    train,
                    task.examples,
                    len(self.data.train),
                    chosen.pad_to_multiple_of or 1,
                ),
                stream=self._stream(train, found),
                steps=steps,
                device=self.base.device,
                history=lane_checkpoint.history(found[0]) if found else [],
            )
            if found:
                lane_checkpoint.restore(lane, found[0])
        except Exception:
            self.clear(bank, slot)
            raise
        self.base.hook(weight.module for weight in adapter.weights)
        return lane

    def clear(self, bank: Bank, slot: Slot) -> None:
        """Free the memory of a lane's place."""
        bank.remove(slot)
        if not bank.slots:
            del self.banks[bank.shape]

    def _record(self, task: Task, observer: Observer, found: Found) -> TrialReporter:
        before = found[1].seconds if found else 0.0
        return TrialReporter(
            task,
            observer,
            base=self.fingerprint,
            tokens=tokens_seen(self.data.train, task.examples, task.train.seed),
            found=found,
            clock=_Since(self.clock, before, self.clock.seconds),
            memory=self.memory,
        )

    def _place(self, adapter: Adapter, rows: int, values: torch.Tensor) -> tuple[Bank, Slot]:
        shape = Shape(adapter.weights, rows, adapter.values.dtype)
        bank = self.banks.setdefault(shape, Bank(shape, self.base.device))
        slot = Slot()
        slot.scaling = adapter.scaling
        bank.add(slot, values.to(self.base.device))
        return bank, slot

    def _stream(self, train: TrainSpec, found: Found) -> Stream:
        device = self.base.device
        state = lane_checkpoint.random_state(found[0], device.type) if found else None
        if state is None and device.type == "cpu":
            state = lane_checkpoint.first_state(train.seed)
        elif state is None:
            state = torch.Generator(device=device).manual_seed(train.seed).get_state()
        return Stream(float(train.peft.get("lora_dropout") or 0.0), state, device)


@dataclass
class _Since:
    """A lane's seconds: those of earlier attempts, and those of the engine since it came."""

    clock: Stopwatch
    before: float
    since: float

    @property
    def seconds(self) -> float:
        return self.before + self.clock.seconds - self.since
