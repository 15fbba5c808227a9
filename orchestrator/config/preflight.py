"""Find everything that stands in a sweep's way before it starts: memory, disk, folder, tracking."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.limits import machine_memory_mb, usable_memory_mb
from sweeps.config.spec import Spec, TrainSpec
from sweeps.core.errors import ConfigError, Problem, SweepError
from sweeps.ledger.events import Attempt

if TYPE_CHECKING:
    from trainers.memory_estimate import Needs
    from trainers.trial.task import DryRun

_CHECKPOINTS_OF_A_RUNNING_TRIAL = 4  # the last two, the best, and one that is being written
_AT_ONCE = 8  # trials that run at the same time, if sweep.max_concurrent does not say


class Findings:
    """Collects what is wrong with parts that do not depend on each other, each finding once."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._errors: list[str] = []

    @contextmanager
    def part(self) -> Iterator[None]:
        """Keep what is raised within, so that the next part is checked all the same."""
        try:
            yield
        except ConfigError as error:
            self.add(error.problems)
        except SweepError as error:
            if str(error) not in self._errors:
                self._errors.append(str(error))

    def add(self, problems: Sequence[Problem]) -> None:
        for problem in problems:
            if problem not in self._problems:
                self._problems.append(problem)

    def refuse(self) -> None:
        """Raise ConfigError or SweepError with all findings, if there are any."""
        if not self._errors and self._problems:
            raise ConfigError(self._problems)
        if self._problems:
            self._errors.append(str(ConfigError(self._problems)))
        if len(self._errors) == 1:
            raise SweepError(self._errors[0])
        if self._errors:
            raise SweepError("\n".join(f"{n}. {text}" for n, text in enumerate(self._errors, 1)))


def room_line(spec: Spec, found: Needs, device: str, root: Path) -> str:
    """Describe the memory and disk that a sweep needs at least, and what there is.

    Raises:
        SweepError: there is less than it needs.
    """
    memory_mb, memory_of = device_memory_mb(device)
    needed_mb = found.memory_mb
    if spec.strategy == "fsdp" and device != "cpu":  # a CPU's ranks may share this machine's memory
        needed_mb /= spec.engine.devices_per_trial
    most = spec.sweep.max_concurrent or _AT_ONCE
    kept = spec.sweep.kept * spec.sweep.repeats + most * _CHECKPOINTS_OF_A_RUNNING_TRIAL
    disk_mb = kept * found.checkpoint_mb
    free_mb = shutil.disk_usage(existing(root)).free / 2**20
    if needed_mb > memory_mb:
        raise SweepError(
            f"model.path = {spec.train.model.path}: a trial takes at least {size(needed_mb)} "
            f"of memory, before any activation, and {memory_of} has {size(memory_mb)}. Take a "
            "smaller model, peft=qlora, a larger device, or several that share the model out: "
            "engine.devices_per_trial=2 trainer.strategy=fsdp."
        )
    if disk_mb > free_mb:
        raise SweepError(
            f"{root}: the checkpoints that stay take about {size(disk_mb)} ({kept} of "
            f"{size(found.checkpoint_mb)}), and {size(free_mb)} are free. Free some room, lower "
            "sweep.keep or sweep.max_concurrent, or choose a run_dir=... on another disk."
        )
    of_what = f"the {size(memory_mb)} memory of {memory_of}"
    if math.isinf(memory_mb):
        of_what = f"the memory of {memory_of}"
    return (
        f"needs at least {size(needed_mb)} of {of_what} a "
        f"trial ({found.trained:,} trained parameters), and about {size(disk_mb)} of "
        f"{size(free_mb)} disk"
    )


def device_memory_mb(device: str) -> tuple[float, str]:
    """A device's memory in MiB, and whose it is; this machine stands for those of a cluster."""
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(0).total_memory / 2**20, "the GPU"
        return float("inf"), "a GPU that is not on this machine"
    there = usable_memory_mb()
    is_limited = there < machine_memory_mb()
    return there, "this container or job" if is_limited else "this machine"


def largest(train: TrainSpec, searched: Mapping[str, Sequence[Any]]) -> TrainSpec:
    """The training that takes the most memory: largest micro-batch and largest adapter."""
    sizes = [train.batch_size, *_numbers(searched, "trainer.per_device_train_batch_size")]
    ranks = [train.peft.get("r") or 0, *_numbers(searched, "peft.r")]
    trainer = {**train.trainer, "per_device_train_batch_size": int(max(sizes))}
    peft = dict(train.peft)
    if not train.trains_base and max(ranks):
        peft["r"] = int(max(ranks))
    return replace(train, trainer=trainer, peft=peft)


def step_line(found: DryRun, lanes: int | None = None) -> str:
    """Describe the result of a dry run.

    Args:
        lanes: trials that each device has memory for, if they are fewer than the engine's.
    """
    halved = ""
    if found.too_many:
        halved = (
            f"; {found.too_many} rows run out of memory: trials with so many go on with half, "
            "and twice the accumulation"
        )
    fitting = ""
    if lanes is not None:
        fitting = f"; each device has memory for {lanes} trials at once"
    note = f"; {found.note}" if found.note else ""
    return (
        f"one real step of {found.rows} of the longest rows ({found.tokens:,} tokens), "
        f"evaluation and checkpoint: {found.seconds:.1f} s, at most {size(found.peak_mb)} "
        f"of memory, {size(found.checkpoint_mb)} a checkpoint{halved}{fitting}{note}"
    )


def changes(before: Attempt, now: Attempt) -> list[str]:
    """Say which library versions, and whether our own code, changed since the last start."""
    there, here = before.versions or {}, now.versions or {}
    changed = [
        f"{name} {there.get(name, 'none')} -> {here.get(name, 'none')}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if before.code not in (None, now.code):
        changed.append("this program's own code")
    if before == Attempt() or not changed:
        return []
    return [
        f"changed since the last start: {', '.join(changed)}. Trials from before and after may "
        "differ in their last digits, or in more."
    ]


def size(mb: float) -> str:
    """A number of MiB as text, e.g. 1.5 GB."""
    if mb == float("inf"):
        return "an unknown amount"
    return f"{mb / 1024:.1f} GB" if mb >= 1024 else f"{mb:.1f} MB"


def check_place(root: Path) -> None:
    """Check that a run folder can be made, without making it.

    Raises:
        SweepError: its path is taken by something else, or it could not be written.
    """
    above = existing(root)
    # A link that leads nowhere is there, too.
    taken = next((path for path in (root, *root.parents) if os.path.lexists(path)), above)
    if taken != above or not os.access(above, os.W_OK | os.X_OK):
        why = "is no folder" if taken != above else "cannot be written"
        raise SweepError(f"run_dir = {root}: {taken} {why}. Choose another run_dir=...")


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def _numbers(searched: Mapping[str, Sequence[Any]], key: str) -> list[float]:
    return [value for value in searched.get(key, ()) if isinstance(value, int | float)]
