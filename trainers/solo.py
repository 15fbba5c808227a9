"""One trial on its own device: TRL's SFTTrainer, evaluated, reported and committed our way.

What is SFTTrainer's stays SFTTrainer's: loss, optimizer, schedule, clipping, accumulation.
Overridden are evaluation (`trainers.evaluation`) and how a checkpoint reaches the disk
(`trainers.checkpoint`).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from sweeps.files import RunFolder
from sweeps.spec import TrainSpec
from sweeps.trial import Decision, Report, State
from trainers import checkpoint
from trainers.adapters import in_training_type
from trainers.data import PreparedData, stream, tokens_seen
from trainers.evaluation import Rows, rows_for
from trainers.guards import PeakMemory, Stopwatch, require_finite
from trainers.model import (
    choose,
    fingerprint_base,
    load_base,
    load_tokenizer,
    lora_config,
    no_bars,
)
from trainers.optimizers import state_bytes
from trainers.settings import sft_config

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")


class Observer(Protocol):
    """Whom a trial talks to while it trains. Calls return quickly, but for `report`."""

    def begin(self, step: int, reports: list[Report]) -> bool:
        """The trial goes on from `step`; False where there is nothing to do."""

    def wants_base(self) -> bool:
        """Whether to measure the base model first."""

    def log(self, row: Mapping[str, float]) -> Decision: ...

    def report(self, report: Report) -> Decision: ...

    def committed(self, step: int, size_bytes: int) -> None: ...

    @property
    def attempt(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended; `state` is WAITING where it was told to stop and will go on later."""

    state: State
    totals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a worker needs to train one trial."""

    key: str
    train: TrainSpec
    examples: int
    folder: RunFolder
    device: str


def train(task: Task, data: PreparedData, observer: Observer) -> Outcome:
    """Train a trial from its newest whole checkpoint to the end of its budget.

    Raises:
        DivergedError: a number was not finite; nothing of that step was applied.
        StaleAttemptError: another attempt at this trial has begun.
        torch.OutOfMemoryError, and whatever the libraries raise.
    """
    spec = task.train
    base = fingerprint_base(spec.model)
    checkpoints = task.folder.checkpoints(task.key)
    found = checkpoint.newest(checkpoints, key=task.key, base=base)
    reports = found[1].trial_reports() if found else []
    if not observer.begin(found[1].step if found else 0, reports):
        return Outcome(state=State.WAITING)
    checkpoints.mkdir(parents=True, exist_ok=True)
    checkpoint.clear_drafts(checkpoints)
    model = load_base(spec.model, task.device, trains_base=_trains_base(spec))
    evaluation = rows_for(data.evaluation, model, spec.model)
    if observer.wants_base():  # before there is an adapter: some change the base as they start
        _report_base(model, evaluation, observer)
    trainer = _build(task, model, data, observer, base)
    trainer.evaluation_rows = evaluation
    trainer.progress.reports = reports
    trainer.progress.seconds_before = found[1].seconds if found else 0.0
    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    return Outcome(state=trainer.progress.state, totals=trainer.progress.totals())


def _trains_base(spec: TrainSpec) -> bool:
    return spec.peft.get("method") == "full"


def _build(
    task: Task, model: Any, data: PreparedData, observer: Observer, base: str
) -> SoloTrainer:
    spec = task.train
    tokenizer = load_tokenizer(spec.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    runtime = choose(spec.model, task.device, trains_base=_trains_base(spec))
    arguments = sft_config(
        spec,
        output_dir=task.folder.trial(task.key),
        examples=task.examples,
        runtime_dtype=str(runtime.dtype).removeprefix("torch."),
        device=task.device,
    )
    trainer = SoloTrainer(
        model=model,
        args=arguments,
        train_dataset=stream(data.train, task.examples, spec.seed),
        eval_dataset=data.evaluation,
        processing_class=tokenizer,
        peft_config=lora_config(spec.peft),
    )
    trainer.remove_callback(PrinterCallback)
    tokens = tokens_seen(data.train, task.examples, spec.seed)
    trainer.progress = Progress(task, trainer, observer, base, tokens)
    trainer.add_callback(trainer.progress)
    return trainer


def _report_base(model: torch.nn.Module, rows: Rows, observer: Observer) -> None:
    """Report 0: the base model before any step."""
    measured = rows.measure(model)
    require_finite("the base model's eval_loss", measured.loss, 0)
    metrics = {"eval_loss": measured.loss, "eval_tokens": float(measured.tokens)}
    observer.report(Report(index=0, step=0, examples=0, tokens=0, metrics=metrics))


class SoloTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with one measure of evaluation loss and committed checkpoints."""

    evaluation_rows: Rows
    progress: Progress
    grad_norm: float = 0.0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.progress.clock.paused():
            measured = self.evaluation_rows.measure(self.model)
            require_finite("eval_loss", measured.loss, self.state.global_step)
            metrics = {"eval_loss": measured.loss}
            control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
            self.control: TrainerControl = control
        return metrics

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.grad_norm = float(norm) if norm is not None else 0.0
        return norm

    def is_scaling(self) -> bool:
        """Whether a gradient may be infinite in float16: its scaler leaves such a step out."""
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def loss_so_far(self) -> float:
        """Sum of the step losses that were not logged yet; not finite where any was not."""
        return float(self._tr_loss)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if hasattr(self.model, "peft_config"):  # PEFT loads every adapter as float32
            in_training_type(self.model)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Weights only: the tokenizer is the base's, training_args.bin is a pickle, and PEFT's card
        # is an empty form that takes longer to fill than the weights do to write.
        if isinstance(self.model, PeftModel):
            self.model.create_or_update_model_card = _no_card
        with no_bars():
            self.model.save_pretrained(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with self.progress.clock.paused():
            draft = self.progress.draft()
            self.save_model(str(draft), _internal_call=True)
            self._save_optimizer_and_scheduler(str(draft))
            self._save_scaler(str(draft))
            self._save_rng_state(str(draft))
            self.state.save_to_json(str(draft / "trainer_state.json"))
            self.progress.commit(draft)


class Progress(TrainerCallback):  # type: ignore[misc]
    """Decides when to evaluate and save, talks to the observer, and keeps the trial's totals."""

    def __init__(
        self,
        task: Task,
        trainer: SoloTrainer,
        observer: Observer,
        base: str,
        tokens: np.ndarray[Any, Any],  # [examples], seen up to and with each row
    ) -> None:
        self._task = task
        self._trainer = trainer
        self._observer = observer
        self._base = base
        self._tokens = tokens
        self._due = task.train.report_steps(task.examples)
        self._loss = 0.0
        self._state_bytes = 0
        self.memory = PeakMemory(task.device)
        self.clock = Stopwatch()
        self.seconds_before = 0.0  # what earlier attempts spent
        self.reports: list[Report] = []
        self.state = State.COMPLETED

    # -- Trainer's events

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock = Stopwatch(self.seconds_before)
        self._state_bytes = state_bytes(self._trainer.optimizer)  # of a trial that goes on

    def on_pre_optimizer_step(
        self, args: SFTConfig, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        # After the clip and before the step: a bad number never reaches the weights.
        require_finite("the training loss", self._trainer.loss_so_far(), state.global_step + 1)
        if not self._trainer.is_scaling():
            require_finite("the gradient norm", self._trainer.grad_norm, state.global_step + 1)

    def on_step_end(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._state_bytes:
            self._state_bytes = state_bytes(self._trainer.optimizer)
        if state.global_step in self._due:
            control.should_log = control.should_evaluate = control.should_save = True

    def on_log(
        self,
        args: SFTConfig,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self._loss = logs["loss"]
        names = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")
        row = {name: logs[name] for name in names if math.isfinite(logs.get(name, math.nan))}
        if self._observer.log({"step": state.global_step, **row, **self.totals()}) is Decision.STOP:
            self._leave(control)

    def on_evaluate(
        self,
        args: SFTConfig,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        totals = _without_counts(self.totals())
        for index in self._due.get(state.global_step, []):
            report = Report(
                index=index,
                step=state.global_step,
                examples=self._examples,
                tokens=self._tokens_seen,
                metrics={**metrics, "train_loss": self._loss, **totals},
            )
            decision = self._observer.report(report)
            self.reports.append(report)
            if decision is Decision.PRUNE:
                self.state = State.PRUNED
                control.should_save = False  # nothing of a pruned trial is kept
                control.should_training_stop = True
                return
            if decision is Decision.STOP:
                self._leave(control)

    def _leave(self, control: TrainerControl) -> None:
        if self._trainer.state.global_step < self._trainer.state.max_steps:
            self.state = State.WAITING
        control.should_save = True
        control.should_training_stop = True

    # -- what it keeps

    @property
    def _examples(self) -> int:
        spec = self._task.train
        seen = self._trainer.state.global_step * spec.batch_size * spec.accumulation_steps
        return min(seen, self._task.examples)

    @property
    def _tokens_seen(self) -> int:
        return int(self._tokens[self._examples - 1]) if self._examples else 0

    def totals(self) -> dict[str, float]:
        """The trial so far: counts, seconds of training, speed and memory (MiB)."""
        seconds = self.clock.seconds
        return {
            "steps": self._trainer.state.global_step,
            "examples": self._examples,
            "tokens": self._tokens_seen,
            "seconds": seconds,
            "tokens_per_second": self._tokens_seen / max(seconds, 1e-9),
            "peak_memory_mb": self.memory.mb,
            "optimizer_state_mb": self._state_bytes / 2**20,
        }

    def draft(self) -> Path:
        """A fresh folder to write a checkpoint into."""
        name = f".draft-{self._observer.attempt}-{self._trainer.state.global_step}-{time.time_ns()}"
        draft = self._task.folder.checkpoints(self._task.key) / name
        draft.mkdir(parents=True)
        return draft

    def commit(self, draft: Path) -> None:
        step = self._trainer.state.global_step
        manifest = checkpoint.Manifest(
            key=self._task.key,
            step=step,
            attempt=self._observer.attempt,
            base=self._base,
            seconds=self.clock.seconds,
            reports=[report.to_json() for report in self.reports],
            versions=_versions(),
        )
        final = self._task.folder.checkpoint(self._task.key, step)
        self._observer.committed(step, checkpoint.commit(draft, final, manifest))


def _without_counts(totals: Mapping[str, float]) -> dict[str, float]:
    return {name: v for name, v in totals.items() if name not in ("steps", "examples", "tokens")}


def _no_card(_: str) -> None:
    """Stands in for PEFT's writer of model cards."""


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except ImportError:
            continue  # not installed: nothing that it could have changed
    return found
