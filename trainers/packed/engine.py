"""Many LoRA trials on one frozen base model on one device, each equal to its own solo run.

engine = Engine(train, data, device="cuda")
engine.attach(task, observer)          # at any time between two advances
for ended in engine.advance(): ...     # one micro-step of every lane, and what falls due
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sweeps.spec import TrainSpec
from sweeps.trial import Decision, Report, State
from trainers import checkpoint
from trainers.data import PreparedData, tokens_seen
from trainers.evaluation import Measured, rows_for
from trainers.guards import PeakMemory, Stopwatch, free_memory, is_out_of_memory, require_finite
from trainers.model import fingerprint_base
from trainers.packed.adapter import Adapter, fresh
from trainers.packed.bank import Bank, Shape, Slot
from trainers.packed.base import Base
from trainers.packed.dropout import Stream
from trainers.packed.evaluation import Evaluation
from trainers.packed.lane import Lane, first_state, saved_history, saved_state
from trainers.packed.rows import MicroBatch, Reader, Windows
from trainers.packed.settings import settings
from trainers.packed.stepping import Stepping
from trainers.progress import Record
from trainers.task import Observer, Outcome, Task

log = logging.getLogger(__name__)

Found = tuple[Path, checkpoint.Manifest] | None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A lane that is over: how it ended, or what ended it."""

    task: Task
    outcome: Outcome | None = None
    error: Exception | None = None


@dataclass
class _Since:
    """A lane's seconds: what earlier attempts took, and the pack's since it came."""

    clock: Stopwatch
    before: float
    since: float

    @property
    def seconds(self) -> float:
        return self.before + self.clock.seconds - self.since


class Engine:
    """One device's pack. `train` is any of its trials: what they share is read from it."""

    def __init__(self, train: TrainSpec, data: PreparedData, *, device: str) -> None:
        self._memory = PeakMemory(device)
        self._clock = Stopwatch()
        self._data = data
        self._base = Base(train, settings(train), device)
        self._fingerprint = fingerprint_base(train.model)
        self._reader = Reader(data.train)
        rows = rows_for(data.evaluation, self._base.model, train.model)
        self._evaluation = Evaluation(rows, self._base)
        self._banks: dict[Shape, Bank] = {}
        self._lanes: list[Lane] = []  # those of a bank are neighbours, in the order of its slots
        self._over: list[Ended] = []
        self._most: int | None = None  # lanes of a pass, once memory was too small for more

    @property
    def keys(self) -> list[str]:
        """Of the trials that are lanes now."""
        return [lane.task.key for lane in self._lanes]

    # -- coming

    def attach(self, task: Task, observer: Observer) -> bool:
        """Begin or go on with a trial as a lane; False where its observer has nothing to do.

        Raises:
            DivergedError: the base model's loss is not finite.
            Whatever building the lane raises; the other lanes are left alone.
        """
        with self._clock.paused():
            checkpoints = task.folder.checkpoints(task.key)
            found = checkpoint.newest(checkpoints, key=task.key, base=self._fingerprint)
            reports = found[1].trial_reports() if found else []
            if not observer.begin(found[1].step if found else 0, reports):
                return False
            checkpoints.mkdir(parents=True, exist_ok=True)
            checkpoint.clear_drafts(checkpoints)
            if observer.wants_base():
                self._report_base(observer)
            self._lanes.append(self._lane(task, observer, found, reports))
            self._arrange()
        return True

    def _report_base(self, observer: Observer) -> None:
        measured = self._evaluation.base_loss()
        require_finite("the base model's eval_loss", measured.loss, 0)
        metrics = {"eval_loss": measured.loss, "eval_tokens": float(measured.tokens)}
        observer.report(Report(index=0, step=0, examples=0, tokens=0, metrics=metrics))

    def _lane(self, task: Task, observer: Observer, found: Found, reports: list[Report]) -> Lane:
        train, device = task.train, self._base.device
        chosen = settings(train)
        steps = train.steps(task.examples)
        adapter = fresh(self._base.model, train.peft, train.seed)
        record = Record(
            task,
            observer,
            base=self._fingerprint,
            tokens=tokens_seen(self._data.train, task.examples, train.seed),
            reports=reports,
            clock=_Since(self._clock, found[1].seconds if found else 0.0, self._clock.seconds),
            memory=self._memory,
        )
        record.step = found[1].step if found else 0
        values = adapter.load(found[0]) if found else adapter.values
        bank, slot = self._place(adapter, train.batch_size, values)
        try:
            lane = Lane(
                task=task,
                chosen=chosen,
                record=record,
                adapter=adapter,
                bank=bank,
                slot=slot,
                stepping=Stepping(chosen, bank.shape, slot, adapter.decays, steps),
                windows=self._windows(task, chosen.pad_to_multiple_of or 1),
                stream=self._stream(train, found),
                steps=steps,
                device=device,
                history=saved_history(found[0]) if found else [],
            )
            if found:
                lane.restore(found[0])
        except Exception:
            bank.remove(slot)
            raise
        self._base.hook(weight.module for weight in adapter.weights)
        return lane

    def _place(self, adapter: Adapter, rows: int, values: torch.Tensor) -> tuple[Bank, Slot]:
        shape = Shape(adapter.weights, rows, adapter.values.dtype)
        bank = self._banks.setdefault(shape, Bank(shape, self._base.device))
        slot = Slot()
        slot.scaling = adapter.scaling
        bank.add(slot, values.to(self._base.device))
        return bank, slot

    def _windows(self, task: Task, multiple: int) -> Windows:
        return Windows(self._reader, task.train, task.examples, len(self._data.train), multiple)

    def _stream(self, train: TrainSpec, found: Found) -> Stream:
        device = self._base.device
        if found:
            state = saved_state(found[0], device.type)
        elif device.type == "cpu":
            state = first_state(train.seed)
        else:
            state = torch.Generator(device=device).manual_seed(train.seed).get_state()
        return Stream(float(train.peft.get("lora_dropout") or 0.0), state, device)

    def _arrange(self) -> None:
        places = [slot for bank in self._banks.values() for slot in bank.slots]
        order = {id(slot): place for place, slot in enumerate(places)}
        self._lanes.sort(key=lambda lane: order[id(lane.slot)])

    # -- going

    def advance(self) -> list[Ended]:
        """One micro-step of every lane, and the steps, logs, reports and commits that fall due."""
        for lane in [lane for lane in self._lanes if lane.is_done]:
            self._end(lane, State.COMPLETED)  # it was finished when it came
        batches = self._take()
        if batches:
            self._pass(list(self._lanes), list(batches.values()))
        full = [lane for lane in self._lanes if batches[lane.task.key].ends_window]
        for lane in full:
            self._try(lane, lane.step)
        for lane in [lane for lane in full if lane in self._lanes and lane.is_to_log]:
            self._try(lane, lane.log)
        with self._clock.paused():
            due = [lane for lane in full if lane in self._lanes and lane.is_due]
            for lane, measured in zip(due, self._measure(due), strict=True):
                self._try(lane, partial(self._report, lane, measured))
            for lane in [lane for lane in full if lane in self._lanes]:
                self._try(lane, partial(self._settle, lane))
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

    def _measure(self, lanes: list[Lane]) -> list[Measured | Exception]:
        return self._evaluation.measure(lanes) if lanes else []

    def _report(self, lane: Lane, measured: Measured | Exception) -> None:
        if isinstance(measured, Exception):
            raise measured
        if lane.report(measured.loss) is Decision.PRUNE:
            self._end(lane, State.PRUNED)  # nothing of a pruned trial is kept

    def _settle(self, lane: Lane) -> None:
        """Commit where it is due or was told to stop, and end."""
        if lane.is_due or lane.leaving:
            lane.commit()
        if lane.is_done:
            self._end(lane, State.COMPLETED)
        elif lane.leaving:
            self._end(lane, State.WAITING)

    def _try(self, lane: Lane, act: Callable[[], None]) -> None:
        """What a lane does by itself ends, where it fails, that lane alone."""
        try:
            act()
        except Exception as error:
            self._leave(lane, Ended(task=lane.task, error=error))

    def _end(self, lane: Lane, state: State) -> None:
        self._leave(lane, Ended(task=lane.task, outcome=lane.outcome(state)))

    def _leave(self, lane: Lane, ended: Ended) -> None:
        self._over.append(ended)
        self._lanes.remove(lane)
        lane.bank.remove(lane.slot)
        if not lane.bank.slots:
            del self._banks[lane.bank.shape]

    # -- passes

    def _pass(self, lanes: list[Lane], batches: list[MicroBatch]) -> None:
        """A micro-step of `lanes`, in as few passes as memory allows."""
        size = self._most or len(lanes)
        for start in range(0, len(lanes), size):
            self._group(lanes[start : start + size], batches[start : start + size])

    def _group(self, lanes: list[Lane], batches: list[MicroBatch]) -> None:
        error = self._attempt(lanes, batches)
        if error is None:
            return
        if len(lanes) == 1:
            self._leave(lanes[0], Ended(task=lanes[0].task, error=error))
            return
        half = 1
        if is_out_of_memory(error):
            half = (len(lanes) + 1) // 2
            self._most = min(half, self._most or half)
            words = "out of memory: from now on %d of %d trials pass at once"
            log.warning(words, half, len(self._lanes))
        del error
        free_memory()
        for start in range(0, len(lanes), half):  # or, where one of them fails, each alone
            self._group(lanes[start : start + half], batches[start : start + half])

    def _attempt(self, lanes: list[Lane], batches: list[MicroBatch]) -> Exception | None:
        """One pass; where it fails, its lanes are as they were."""
        before = [lane.slot.grads.clone() if lane.in_window else None for lane in lanes]
        for lane in lanes:
            lane.stream.begin()
        try:
            losses, hits = self._base.train_pass(lanes, batches)
        except Exception as error:
            for lane, grads in zip(lanes, before, strict=True):
                lane.stream.undo()
                lane.slot.grads.zero_() if grads is None else lane.slot.grads.copy_(grads)
            return error.with_traceback(None)  # which would hold all that the pass allocated
        for place, lane in enumerate(lanes):
            lane.add(losses[place], hits[place])
        return None
