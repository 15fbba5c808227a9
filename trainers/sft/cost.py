"""Measures what training one config alone costs: seconds and memory of its two parts.

SFTTrainer takes a few optimizer steps, whose micro-batches are rows of the trial's own stream:
their lengths, padding counted, are spread over those of the whole stream. A line through the
seconds of these micro-batches gives those of one of the mean length.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl

from sweeps.core import fault_injection
from sweeps.core.cost import Parts
from sweeps.storage.durable_writes import remove_tree
from trainers.data.dataset import PreparedData, order
from trainers.data.preparation import lengths
from trainers.model import cache
from trainers.model.loading import choose_for
from trainers.sft.optimizers import state_bytes
from trainers.sft.trainer import SweepSFTTrainer, make_trainer
from trainers.trial.meters import PeakMemory, held_mb, wait_for
from trainers.trial.random_states import untouched_random_states
from trainers.trial.ranks import Ranks
from trainers.trial.task import Task

_SPREAD = 6  # micro-batches of an optimizer step
_UNTIMED = 2  # optimizer steps: the first is a warm-up, the second shows the memory
_TIMED = 5
_ENOUGH_S = 3.0  # after which one timed step has to do
# What decides no cost, or would log in between. A rate at which a trial learns changes nothing.
_SETTINGS = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "logging_steps": 10**9,
    "logging_first_step": False,
}


def measure(task: Task, data: PreparedData) -> Parts:
    """Measure the cost of a config; the random states of this process stay what they are.

    Args:
        task: the trial; its folder is made for this, and removed.

    Raises:
        Whatever a trial would raise: out of memory, errors of libraries.
    """
    fault_injection.passing("cost")
    batches = MicroBatches.of(data, task)
    step = batches.spread()
    places = np.concatenate([step, batches.with_largest(step), *[step] * _TIMED])
    train = replace(task.train, trainer={**task.train.trainer, **_SETTINGS, **batches.sizes})
    task = replace(task, train=train, examples=len(places))
    try:
        with untouched_random_states(task.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            windows, memory = _run(task, data, places)
    finally:
        remove_tree(task.folder.root)
    fetched = float(np.median([window.fetch_s for window in windows])) / _SPREAD
    passed = np.median([window.passes_s for window in windows], axis=0)
    return Parts(
        micro_s=fetched + batches.mean_of(passed),
        tokens=float(batches.tokens.mean()),
        padded=float(batches.padded.mean()),
        update_s=float(np.median([window.update_s for window in windows])),
        **memory,
    )


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """The whole micro-batches of a trial; if its budget is less than one, that which it has.

    Attributes:
        rows: places in the training data, [micro-batches, rows].
        tokens, padded: of each, without and with the padding, [micro-batches].
    """

    rows: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    padded: np.ndarray[Any, Any]

    @classmethod
    def of(cls, data: PreparedData, task: Task) -> MicroBatches:
        train = task.train
        stream = order(len(data.train), task.examples, train.seed)
        size = min(train.batch_size, len(stream))
        rows = stream[: len(stream) // size * size].reshape(-1, size)
        counts = lengths(data.train)[rows]
        return cls(rows=rows, tokens=counts.sum(axis=1), padded=size * counts.max(axis=1))

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "per_device_train_batch_size": self.rows.shape[1],
            "gradient_accumulation_steps": _SPREAD,
        }

    def spread(self) -> np.ndarray[Any, Any]:
        """The rows of micro-batches that stand for all, one after another."""
        return self.rows[self._chosen].reshape(-1)

    def with_largest(self, step: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The same rows, the last micro-batch replaced by the one with the most padded tokens."""
        largest = self.rows[int(self.padded.argmax())]
        return np.concatenate([step[: -len(largest)], largest])

    def mean_of(self, seconds: np.ndarray[Any, Any]) -> float:
        """The seconds of a micro-batch of the mean length, from those of `spread`'s, in order."""
        sizes = self.padded[self._chosen]
        if np.ptp(sizes) > 0:
            slope, start = np.polyfit(sizes, seconds, 1)
            if slope > 0:
                return float(start + slope * self.padded.mean())
        return float(seconds.mean())

    @property
    def _chosen(self) -> np.ndarray[Any, Any]:
        """The middles of equal shares of the micro-batches, the shorter ones first."""
        by_size = self.padded.argsort(kind="stable")
        return by_size[(2 * np.arange(_SPREAD) + 1) * len(by_size) // (2 * _SPREAD)]


@dataclass(kw_only=True)
class Window:
    """Seconds of one optimizer step: collecting its rows, each pass, and the step itself."""

    fetch_s: float
    passes_s: list[float] = field(default_factory=list)
    update_s: float = 0.0


def _run(
    task: Task, data: PreparedData, places: np.ndarray[Any, Any]
) -> tuple[list[Window], dict[str, float]]:
    """Take the steps; those that were timed, and the memory by the names of `Parts`."""
    model = cache.base_for(task.train, task.device)
    runtime = choose_for(task.train, task.device)
    rows = data.train.select(places)
    trainer = make_trainer(
        _TimedTrainer, task, model, rows, data.evaluation, runtime, ranks=Ranks()
    )
    trainer.gauge = _Gauge(task.device)
    trainer.add_callback(_Closing(trainer))
    trainer.train()
    return trainer.gauge.windows[_UNTIMED:], trainer.gauge.memory(state_bytes(trainer.optimizer))


class _Gauge:
    """Reads time and memory at the ends of the parts of an optimizer step."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._began = self._last = time.perf_counter()
        self._peaks: list[float] = []
        self._held = 0.0
        self._memory: PeakMemory | None = None
        self.windows: list[Window] = []

    @property
    def _is_for_memory(self) -> bool:
        return len(self.windows) == _UNTIMED

    @property
    def is_enough(self) -> bool:
        timed = len(self.windows) - _UNTIMED
        return timed >= 1 and time.perf_counter() - self._began > _ENOUGH_S

    def lap(self) -> float:
        """Seconds since the last call."""
        wait_for(torch.device(self._device))
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def fetched(self, seconds: float) -> None:
        self.windows.append(Window(fetch_s=seconds))
        if self._is_for_memory:
            self._memory = PeakMemory(self._device)

    def passed(self) -> None:
        window = self.windows[-1]
        window.passes_s.append(self.lap())
        if self._memory is not None and len(window.passes_s) == _SPREAD:
            self._peaks.append(self._memory.mb)
            self._held = held_mb(self._device)
            self._memory = PeakMemory(self._device)

    def updated(self) -> None:
        self.windows[-1].update_s = self.lap()
        if self._memory is not None:
            self._peaks.append(self._memory.mb)
            self._memory = None

    def memory(self, state_bytes: int) -> dict[str, float]:
        passes, update = self._peaks
        state = state_bytes / 2**20
        return {
            "passes_mb": passes - state,
            "held_mb": self._held - state,
            "update_mb": max(0.0, update - self._held),
            "state_mb": state,
        }


class _TimedTrainer(SweepSFTTrainer):
    """SweepSFTTrainer that tells a gauge how far its step is."""

    gauge: _Gauge

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.gauge.lap()
        found = super().get_batch_samples(*args, **kwargs)
        self.gauge.fetched(self.gauge.lap())
        return found

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.gauge.passed()
        return loss


class _Closing(TrainerCallback):  # type: ignore[misc]
    """Ends each optimizer step for the gauge, and the training if it has seen enough."""

    def __init__(self, trainer: _TimedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self._trainer.gauge.updated()
        if self._trainer.gauge.is_enough:
            control.should_training_stop = True
