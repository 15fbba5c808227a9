"""A tiny trial for tests: the embedded model, a few rows, and an observer that keeps all it hears.

The data is prepared once a process, and so is the reference trial that many tests look at.
"""

from __future__ import annotations

import atexit
import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sweeps.config.spec import BudgetSpec, DataSpec, ModelSpec, TrainSpec
from sweeps.core.errors import StaleAttemptError
from sweeps.core.trial import Decision, Report
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import PreparedData, prepare
from trainers.model.loading import fingerprint_base
from trainers.sft import trainer as sft_trainer
from trainers.trial import task as trial_task

KEY = "0123abcdef"
TINY = ModelSpec(path="tiny")
BASE = functools.cache(lambda: fingerprint_base(TINY))

EXAMPLES = 46  # 5 windows of 8 rows, and one of 6: a micro-batch of 4 and one of 2
STEPS = 6
REPORT_STEPS = [2, 4, 6]
LORA = {"method": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
TRAINED = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")


def train_spec(
    *,
    peft: Mapping[str, Any] | None = None,
    model: ModelSpec = TINY,
    data: Mapping[str, Any] | None = None,
    evaluations: int = 3,
    **trainer: Any,
) -> TrainSpec:
    """A trial of six steps that logs each of them."""
    rows = {"limit": 200, "eval_fraction": 0.2, "eval_limit": 30, "max_length": 64}
    ours = {
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
    }
    return TrainSpec(
        model=model,
        data=DataSpec(source="docstrings", **{**rows, **(data or {})}),
        peft=peft or LORA,
        trainer=ours | trainer,
        seed=3,
        budget=BudgetSpec(examples=EXAMPLES),
        evaluations=evaluations,
    )


REFERENCE = train_spec(peft={**LORA, "lora_dropout": 0.1})


@functools.cache
def prepared(**data: Any) -> PreparedData:
    torch.set_num_threads(1)
    return prepare(train_spec(data=data), scratch() / "data")


def scratch() -> Path:
    """A folder that is gone when the tests are."""
    folder = Path(tempfile.mkdtemp(prefix="training-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _go_on(_: Any) -> Decision:
    return Decision.CONTINUE


@dataclass
class Recorder:
    """An observer; what it answers to rows and reports is for a test to say."""

    to_row: Callable[[Mapping[str, float]], Decision] = _go_on
    to_report: Callable[[Report], Decision] = _go_on
    stops_after: float = math.inf  # rows; then it is told to stop, if it asks between two
    base: bool = False
    welcome: bool = True
    attempt: int = 1
    fenced: bool = False  # told before a commit that its attempt is over
    step: int | None = None  # where the trial began
    known: list[Report] = field(default_factory=list)  # reports it began with
    rows: list[Mapping[str, float]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    commits: list[tuple[int, int]] = field(default_factory=list)  # step, bytes

    def begin(self, step: int, reports: list[Report]) -> bool:
        self.step, self.known = step, list(reports)
        return self.welcome

    def wants_base(self) -> bool:
        return self.base

    def log(self, row: Mapping[str, float]) -> Decision:
        self.rows.append(row)
        return self.to_row(row)

    def report(self, report: Report) -> Decision:
        self.reports.append(report)
        return self.to_report(report)

    def told(self) -> Decision:
        return Decision.STOP if len(self.rows) >= self.stops_after else Decision.CONTINUE

    def may_commit(self) -> None:
        if self.fenced:
            raise StaleAttemptError("a newer attempt has begun")

    def committed(self, step: int, size_bytes: int) -> None:
        self.commits.append((step, size_bytes))

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows]

    @property
    def trained(self) -> list[dict[str, float]]:
        """What a row says of the training itself: no times, no memory."""
        return [{"step": row["step"], **{name: row[name] for name in TRAINED}} for row in self.rows]

    @property
    def measured(self) -> list[tuple[int, int, float, float]]:
        """Of each report: index, step, and both losses."""
        return [
            (r.index, r.step, r.metrics["eval_loss"], r.metrics["train_loss"])
            for r in self.reports
            if r.index
        ]


@dataclass(frozen=True)
class Run:
    """A trial that was trained, in a folder of its own."""

    spec: TrainSpec
    folder: RunFolder
    seen: Recorder
    outcome: trial_task.Outcome

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Step -> folder, of what is on disk."""
        found = self.folder.checkpoints(KEY).glob("step-*")
        return {int(path.name.removeprefix("step-")): path for path in found}


def run(
    root: Path,
    spec: TrainSpec = REFERENCE,
    seen: Recorder | None = None,
    *,
    examples: int = EXAMPLES,
) -> Run:
    """Train a trial in `root`, from where it stands there."""
    torch.set_num_threads(1)
    seen = seen or Recorder()
    folder = RunFolder(root)
    task = trial_task.Task(key=KEY, train=spec, examples=examples, folder=folder, device="cpu")
    return Run(spec, folder, seen, sft_trainer.train(task, prepared(), seen))


@functools.cache
def reference() -> Run:
    """The six steps of REFERENCE, uninterrupted. Its folder is for looking only."""
    return run(scratch(), REFERENCE, Recorder(base=True))


def copy_of_reference(root: Path) -> Run:
    """The same with a folder that a test may damage."""
    shutil.copytree(reference().folder.root, root, dirs_exist_ok=True)
    return replace(reference(), folder=RunFolder(root))


def stop_at(step: int, told: Decision = Decision.STOP) -> Callable[[Mapping[str, float]], Decision]:
    """An answer to rows: `told` from this step on."""
    return lambda row: told if row["step"] >= step else Decision.CONTINUE
