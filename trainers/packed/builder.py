"""From a task to a lane: its adapter as SFTTrainer would begin it, or as a checkpoint left it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sweeps.spec import TrainSpec
from sweeps.trial import Report
from trainers import checkpoint
from trainers.data import PreparedData, tokens_seen
from trainers.guards import PeakMemory, Stopwatch
from trainers.packed import saving
from trainers.packed.adapter import Adapter
from trainers.packed.bank import Bank, Shape, Slot
from trainers.packed.base import Base
from trainers.packed.dropout import Stream
from trainers.packed.lane import Lane
from trainers.packed.rows import Reader, Windows
from trainers.packed.settings import settings
from trainers.packed.stepping import Stepping
from trainers.progress import Record
from trainers.task import Observer, Task

Found = tuple[Path, checkpoint.Manifest] | None


@dataclass
class _Since:
    """A lane's seconds: what earlier attempts took, and the pack's since it came."""

    clock: Stopwatch
    before: float
    since: float

    @property
    def seconds(self) -> float:
        return self.before + self.clock.seconds - self.since


@dataclass(kw_only=True)
class Builder:
    """Makes lanes on one base.

    Attributes:
        fingerprint: of the base model.
        clock, memory: the pack's.
        banks: those that hold a lane.
    """

    base: Base
    data: PreparedData
    fingerprint: str
    clock: Stopwatch
    memory: PeakMemory
    banks: dict[Shape, Bank] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reader = Reader(self.data.train)

    def build(self, task: Task, observer: Observer, found: Found, reports: list[Report]) -> Lane:
        """The lane of `task`, from the checkpoint that was found, with its place in a bank."""
        train = task.train
        chosen = settings(train)
        steps = train.steps(task.examples)
        adapter = self.base.adapter(train.peft, train.seed)
        values = adapter.load(found[0]) if found else adapter.values
        bank, slot = self._place(adapter, train.batch_size, values)
        try:
            lane = Lane(
                task=task,
                chosen=chosen,
                record=self._record(task, observer, found, reports),
                adapter=adapter,
                bank=bank,
                slot=slot,
                stepping=Stepping(chosen, bank.shape, slot, adapter.decays, steps),
                windows=self._windows(task, chosen.pad_to_multiple_of or 1),
                stream=self._stream(train, found),
                steps=steps,
                device=self.base.device,
                history=saving.history(found[0]) if found else [],
            )
            if found:
                saving.restore(lane, found[0])
        except Exception:
            self.clear(bank, slot)
            raise
        self.base.hook(weight.module for weight in adapter.weights)
        return lane

    def clear(self, bank: Bank, slot: Slot) -> None:
        """Give a lane's memory back."""
        bank.remove(slot)
        if not bank.slots:
            del self.banks[bank.shape]

    def _record(
        self, task: Task, observer: Observer, found: Found, reports: list[Report]
    ) -> Record:
        before = found[1].seconds if found else 0.0
        record = Record(
            task,
            observer,
            base=self.fingerprint,
            tokens=tokens_seen(self.data.train, task.examples, task.train.seed),
            reports=reports,
            clock=_Since(self.clock, before, self.clock.seconds),
            memory=self.memory,
        )
        record.step = found[1].step if found else 0
        return record

    def _place(self, adapter: Adapter, rows: int, values: torch.Tensor) -> tuple[Bank, Slot]:
        shape = Shape(adapter.weights, rows, adapter.values.dtype)
        bank = self.banks.setdefault(shape, Bank(shape, self.base.device))
        slot = Slot()
        slot.scaling = adapter.scaling
        bank.add(slot, values.to(self.base.device))
        return bank, slot

    def _windows(self, task: Task, multiple: int) -> Windows:
        return Windows(self._reader, task.train, task.examples, len(self.data.train), multiple)

    def _stream(self, train: TrainSpec, found: Found) -> Stream:
        device = self.base.device
        state = saving.random_state(found[0], device.type) if found else None
        if state is None and device.type == "cpu":
            state = saving.first_state(train.seed)
        elif state is None:
            state = torch.Generator(device=device).manual_seed(train.seed).get_state()
        return Stream(float(train.peft.get("lora_dropout") or 0.0), state, device)
