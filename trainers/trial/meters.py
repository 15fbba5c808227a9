"""Measures the time and the memory that a trial takes."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


class Stopwatch:
    """Counts seconds of training; its owner pauses it for evaluation and saving.

    Args:
        before: seconds to begin with, of earlier attempts at the trial.
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
        """Do not count the seconds within; a pause in a pause ends with the outer one."""
        was_running = self._since is not None
        self._done, self._since = self.seconds, None
        try:
            yield
        finally:
            if was_running:
                self._since = time.perf_counter()


class PeakMemory:
    """Peak memory since this object was made: of the GPU on cuda, of the process on a CPU."""

    def __init__(self, device: str) -> None:
        self._gpu = device if device.startswith("cuda") else None
        self._before = 0.0  # MiB, the peak up to the last pause
        self._begin()

    def _begin(self) -> None:
        if self._gpu is not None:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        else:
            # Linux forgets the process's high-water mark on this write (man 5 proc, clear_refs).
            # If that is not allowed, the mark is that of the process's whole life.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    @property
    def mb(self) -> float:
        """The peak in MiB."""
        if self._gpu is not None:
            return max(self._before, torch.cuda.max_memory_allocated(self._gpu) / 2**20)
        return max(self._before, _status_kb("VmHWM") / 1024)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is used within beyond what stays."""
        self._before = self.mb
        try:
            yield
        finally:
            self._begin()


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: str) -> str:
    """A device in the words of its maker: a GPU's name; cpu for a CPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def free_memory() -> None:
    """Free what a finished trial held, before this process trains the next one."""
    if optimizers := sys.modules.get("bitsandbytes.optim"):
        # bitsandbytes notes for later optimizers which weights the Trainer wanted in 32 bits: by
        # their numbers, and with their modules.
        optimizers.GlobalOptimManager.get_instance().initialize()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def held_mb(device: str) -> float:
    """MiB that this process holds now: of the GPU on cuda, of main memory on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device) / 2**20
    return _status_kb("VmRSS") / 1024


def paged_mb() -> float:
    """MiB of optimizer states that bitsandbytes has paged in this process.

    bitsandbytes takes managed memory of CUDA, which torch does not count, and never frees it.
    """
    functional = sys.modules.get("bitsandbytes.functional")
    if functional is None:
        return 0.0
    paged = functional.GlobalPageManager.get_instance().paged_tensors
    return sum(float(each.nbytes) for each in paged) / 2**20


def _status_kb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    return 0.0
