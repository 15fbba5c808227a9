"""Reports what a trial does while it trains: counts, metrics, checkpoints; for both engines."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sweeps.core import fault_injection
from sweeps.core.trial import Decision, Report
from sweeps.core.versions import installed
from trainers.trial import checkpoint
from trainers.trial.evaluation import Measured
from trainers.trial.failures import require_finite
from trainers.trial.meters import PeakMemory
from trainers.trial.task import Observer, Task

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
_COUNTS = ("steps", "examples", "tokens")
_LOGGED = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")


def begin(observer: Observer, found: checkpoint.Found) -> bool:
    """Tell the observer from where the trial goes on; False if there is nothing to do."""
    return observer.begin(*((found[1].step, found[1].trial_reports()) if found else (0, [])))


def report_base(measured: Measured, observer: Observer) -> None:
    """Report the base model before any step, as report 0.

    Raises:
        DivergedError: its loss is not finite.
    """
    require_finite("the base model's eval_loss", measured.loss, 0)
    metrics = {"eval_loss": measured.loss, "eval_tokens": float(measured.tokens)}
    observer.report(Report(index=0, step=0, examples=0, tokens=0, metrics=metrics))


class Clock(Protocol):
    @property
    def seconds(self) -> float: ...


class TrialReporter:
    """Keeps a trial's counts, and makes its reports and checkpoints.

    Attributes:
        step: optimizer steps done.
        due: optimizer step -> the reports due there.
        seconds_before: seconds of training up to the checkpoint `found`.
        state_bytes: of the optimizer.
        train_loss: the last one that was logged.
        clock: seconds of training, without evaluation and saving. Lanes train at the same time: a
            lane's seconds are those of the engine while it was in it.
        memory: peak of the device since its process, or the engine, began to use it. What one lane
            takes of it cannot be told apart.
    """

    def __init__(
        self,
        task: Task,
        observer: Observer,
        *,
        base: str,
        tokens: np.ndarray[Any, Any],  # [examples], seen up to and with each row
        found: checkpoint.Found,
        clock: Clock,
        memory: PeakMemory,
    ) -> None:
        self._task = task
        self._observer = observer
        self._base = base
        self._tokens = tokens
        self.due = task.train.report_steps(task.examples)
        self.reports = found[1].trial_reports() if found else []
        self.clock = clock
        self.memory = memory
        self.step = self._saved = found[1].step if found else 0
        self.seconds_before = found[1].seconds if found else 0.0
        self.state_bytes = 0
        self.train_loss = 0.0

    @property
    def examples(self) -> int:
        spec = self._task.train
        return min(self.step * spec.batch_size * spec.accumulation_steps, self._task.examples)

    @property
    def tokens(self) -> int:
        return int(self._tokens[self.examples - 1]) if self.examples else 0

    @property
    def is_saved(self) -> bool:
        """Whether nothing was learnt since the last checkpoint, or since the beginning."""
        return self.step == self._saved

    def totals(self) -> dict[str, float]:
        """The trial's counts, seconds of training, tokens per second and memory (MiB) so far."""
        seconds = self.clock.seconds
        return {
            "steps": self.step,
            "examples": self.examples,
            "tokens": self.tokens,
            "seconds": seconds,
            "tokens_per_second": self.tokens / max(seconds, 1e-9),
            "peak_memory_mb": self.memory.mb,
            "optimizer_state_mb": self.state_bytes / 2**20,
        }

    def outcome(self) -> dict[str, float]:
        """The totals at the end, and the tokens that micro-batches padded to their longest have."""
        counts = np.diff(self._tokens[: self.examples], prepend=0)
        starts = np.arange(0, len(counts), self._task.train.batch_size)
        sizes = np.diff(starts, append=len(counts))
        padded = int(sizes @ np.maximum.reduceat(counts, starts)) if len(counts) else 0
        return {**self.totals(), "padded_tokens": padded}

    def told(self) -> Decision:
        """What was decided on the trial since the last log."""
        return self._observer.told()

    def stepped(self) -> None:
        """Count an optimizer step."""
        self.step += 1
        fault_injection.witness(self._task.key, self.step, self._observer.attempt)
        fault_injection.passing("step")

    def log(self, values: Mapping[str, float]) -> Decision:
        """Log the metrics of the steps since the last log; what is not finite is left out."""
        self.train_loss = values["loss"]
        row = {name: values[name] for name in _LOGGED if math.isfinite(values.get(name, math.nan))}
        return self._observer.log({"step": self.step, **row, **self.totals()})

    def report(self, measured: Measured) -> Decision:
        """Make the reports that are due at this step; PRUNE ends them at once, STOP does not."""
        told = Decision.CONTINUE
        totals = {name: value for name, value in self.totals().items() if name not in _COUNTS}
        for index in self.due.get(self.step, []):
            report = Report(
                index=index,
                step=self.step,
                examples=self.examples,
                tokens=self.tokens,
                metrics={"eval_loss": measured.loss, "train_loss": self.train_loss, **totals},
                row_losses=measured.rows,
            )
            decision = self._observer.report(report)
            self.reports.append(report)
            if decision is Decision.PRUNE:
                return decision
            told = decision if decision is Decision.STOP else told
        return told

    def draft(self) -> Path:
        """Make an empty folder to write a checkpoint into."""
        name = f".draft-{self._observer.attempt}-{self.step}-{time.time_ns()}"
        draft = self._task.folder.checkpoints(self._task.key) / name
        draft.mkdir(parents=True)
        return draft

    def commit(self, draft: Path) -> None:
        """Make `draft` the checkpoint of this step, and tell the observer."""
        manifest = checkpoint.Manifest(
            key=self._task.key,
            step=self.step,
            attempt=self._observer.attempt,
            base=self._base,
            seconds=self.clock.seconds,
            reports=[report.to_json() for report in self.reports],
            versions=_versions(),
        )
        final = self._task.folder.checkpoint(self._task.key, self.step)
        size = checkpoint.commit(draft, final, manifest, ask=self._observer.may_commit)
        self._saved = self.step
        self._observer.committed(self.step, size)


@functools.cache
def _versions() -> dict[str, str]:
    return installed(_LIBRARIES)
