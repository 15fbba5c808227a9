"""What is watched while a trial trains: finite numbers, memory, and the time that training takes."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class DivergedError(Exception):
    """A loss, gradient norm or evaluation is not a finite number."""


def require_finite(what: str, value: float, step: int) -> None:
    """Raise DivergedError unless `value` is finite; `step` is the optimizer step at hand."""
    if not math.isfinite(value):
        raise DivergedError(f"{what} is {value} at step {step}")


class Stopwatch:
    """Seconds spent training, with evaluation and saving left out.

    `before` is what earlier attempts at the trial took.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._done = before
        self._since: float | None = time.perf_counter()  # None while paused

    @property
    def seconds(self) -> float:
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        return self._done + running

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._done, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter()


class PeakMemory:
    """The most memory taken since it was made: of the GPU on cuda, of the process on a CPU."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            # Linux forgets the process's high-water mark on this write (man 5 proc, clear_refs).
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                pass  # then the mark is that of the process's whole life

    @property
    def mb(self) -> float:
        """In MiB."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return _status_kb("VmHWM") / 1024


def free_memory() -> None:
    """Give back what a finished trial held, so that a reused process starts the next one clean."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def held_mb(device: str) -> float:
    """MiB that this process holds now: of the GPU on cuda, of main memory on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated() / 2**20
    return _status_kb("VmRSS") / 1024


def _status_kb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    return 0.0
