"""One real optimizer step, evaluation and checkpoint, before a sweep is paid for."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sweeps.files import RunFolder, remove_tree, write_text
from sweeps.spec import BudgetSpec, TrainSpec
from sweeps.trial import Decision, Report, fingerprint
from trainers import solo
from trainers.data import PreparedData
from trainers.data_report import lengths
from trainers.guards import PeakMemory, free_memory
from trainers.task import Task

_KEY = "rehearsal"


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What one step of the largest micro-batch, of the longest rows, came to.

    Attributes:
        rows: of the micro-batch.
        peak_mb: of the device; of the whole process on a CPU.
        checkpoint_mb: as it lies on disk.
        seconds: model loading, step, evaluation and checkpoint together.
    """

    rows: int
    tokens: int
    peak_mb: float
    checkpoint_mb: float
    seconds: float


def rehearse(train: TrainSpec, data: PreparedData, folder: Path, device: str) -> Rehearsal:
    """Train one step in `folder`, which is made and filled; what it came to is kept there.

    A rehearsal of the same training on the same data is not done twice.

    Raises:
        Whatever a trial would: out of memory, a non-finite loss, a library's own words.
    """
    identity = fingerprint([asdict(train), data.fingerprint, device], 16)
    kept = folder / f"{identity}.json"
    if kept.is_file():
        return Rehearsal(**json.loads(kept.read_text(encoding="utf-8")))
    longest = np.argsort(-lengths(data.train), kind="stable")[: train.batch_size]
    rows = data.train.select(longest)
    few = data.evaluation.select(range(min(8, len(data.evaluation))))
    trainer = {**train.trainer, "gradient_accumulation_steps": 1, "warmup_steps": 0}
    short = replace(train, trainer=trainer, evaluations=1, budget=BudgetSpec(examples=len(longest)))
    seen = _Audience()
    memory = PeakMemory(device)
    began = time.monotonic()
    task = Task(
        key=_KEY, train=short, examples=len(longest), folder=RunFolder(folder), device=device
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solo.train(task, replace(data, train=rows, evaluation=few), seen)
    remove_tree(task.folder.trial(_KEY))
    found = Rehearsal(
        rows=len(longest),
        tokens=int(lengths(rows).sum()),
        peak_mb=memory.mb,
        checkpoint_mb=seen.bytes / 2**20,
        seconds=time.monotonic() - began,
    )
    free_memory()
    write_text(kept, json.dumps(asdict(found)))
    return found


class _Audience:
    """An observer that notes the checkpoint's size."""

    attempt = 1
    bytes = 0

    def begin(self, step: int, reports: list[Report]) -> bool:
        return True

    def wants_base(self) -> bool:
        return True

    def log(self, row: Mapping[str, float]) -> Decision:
        return Decision.CONTINUE

    def report(self, report: Report) -> Decision:
        return Decision.CONTINUE

    def may_commit(self) -> None:
        """It may."""

    def committed(self, step: int, size_bytes: int) -> None:
        self.bytes = size_bytes
