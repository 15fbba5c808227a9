"""Takes one optimizer step, evaluation and checkpoint before a sweep's first trial."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sweeps.config.spec import BudgetSpec, Strategy, TrainSpec
from sweeps.core import fault_injection
from sweeps.core.commands import typed
from sweeps.core.errors import SweepError, first_line
from sweeps.core.secrets import scrub
from sweeps.core.trial import Decision, Report
from sweeps.storage.durable_writes import remove_tree
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import PreparedData
from trainers.data.preparation import lengths
from trainers.model.source import has_experts, load_config
from trainers.trial.failures import DivergedError, is_out_of_memory
from trainers.trial.meters import PeakMemory, free_memory, held_mb
from trainers.trial.ranks import FirstSpeaks, Ranks
from trainers.trial.task import DryRun, Observer, Outcome, Task

_KEY = "dry_run"
_EVALUATED = 8  # rows
# The schedule and its rate differ from trial to trial: a rate at which one of them diverges is no
# reason to refuse all.
_HARMLESS = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
}

Train = Callable[[Task, PreparedData, Observer], Outcome]


def dry_run(
    spec: TrainSpec,
    data: PreparedData,
    folder: Path,
    device: str,
    train: Train,
    *,
    ranks: Ranks | None = None,
    strategy: Strategy = "ddp",
) -> DryRun:
    """Train one step in `folder`, which is made for it and removed.

    A micro-batch that does not fit is halved once, as a trial's would be.

    Args:
        train: trains a task, as an engine does.
        ranks: the processes that train together; each calls this.
        strategy: how they share the trial.

    Raises:
        Whatever a trial would raise: out of memory, a non-finite loss, errors of libraries.
    """
    half = spec.halved()
    ranks = ranks or Ranks()
    step = partial(_one_step, data, folder, device, train, ranks, strategy)
    try:
        return step(spec)
    except Exception as error:
        # Of several ranks the others wait for this one: only their end helps.
        if half is None or ranks.world > 1 or not is_out_of_memory(error):
            raise
    free_memory()  # the error has let go of its tensors by now
    return replace(step(half), too_many=spec.batch_size)


def _one_step(
    data: PreparedData,
    folder: Path,
    device: str,
    train: Train,
    ranks: Ranks,
    strategy: Strategy,
    spec: TrainSpec,
) -> DryRun:
    # One micro-batch on each rank: `per_rank` divides the accumulation, else the micro-batch.
    accumulation = ranks.world if spec.accumulation_steps % ranks.world == 0 else 1
    count = spec.batch_size * accumulation
    longest = np.argsort(-lengths(data.train), kind="stable")[:count]
    rows = data.train.select(longest)
    few = data.evaluation.select(range(min(_EVALUATED, len(data.evaluation))))
    short = replace(
        spec,
        trainer={**spec.trainer, **_HARMLESS, "gradient_accumulation_steps": accumulation},
        evaluations=1,
        budget=BudgetSpec(examples=len(longest)),
    )
    task = Task(
        key=_KEY,
        train=short,
        examples=len(longest),
        folder=RunFolder(folder),
        device=device,
        strategy=strategy,
    )
    audience = _Audience()
    memory, held = PeakMemory(device), held_mb(device)
    began = time.monotonic()
    try:
        with warnings.catch_warnings(), fault_injection.suspended():
            warnings.simplefilter("ignore")
            train(task, replace(data, train=rows, evaluation=few), FirstSpeaks(audience, ranks))
    finally:
        if ranks.is_first:
            remove_tree(folder)
    return DryRun(
        rows=min(len(longest), spec.batch_size),
        tokens=int(lengths(rows).sum()),
        peak_mb=memory.mb,
        step_mb=max(0.0, memory.mb - held),
        checkpoint_mb=audience.bytes / 2**20,
        seconds=time.monotonic() - began,
        train_s=audience.train_s,
    )


class _Audience:
    """Observes the step, and notes its seconds and the checkpoint's size."""

    attempt = 1
    bytes = 0
    train_s = 0.0

    def begin(self, step: int, reports: list[Report]) -> bool:
        return True

    def wants_base(self) -> bool:
        return False

    def log(self, row: Mapping[str, float]) -> Decision:
        return Decision.CONTINUE

    def report(self, report: Report) -> Decision:
        self.train_s = report.metrics.get("seconds", 0.0)
        return Decision.CONTINUE

    def told(self) -> Decision:
        return Decision.CONTINUE

    def may_commit(self) -> None:
        """Any attempt may commit."""

    def committed(self, step: int, size_bytes: int) -> None:
        self.bytes = size_bytes


def failed_step(error: Exception, train: TrainSpec) -> tuple[str, str]:
    """Say why the step failed, for the user; with a traceback if the error was not foreseen."""
    what = f"one step of the largest micro-batch ({train.batch_size} of the longest rows)"
    first = first_line(error)
    if is_out_of_memory(error):
        return (
            f"{what} runs out of memory, and half of it does, too ({first}). Lower "
            "trainer.per_device_train_batch_size or data.max_length, set "
            "trainer.gradient_checkpointing=true, or take a smaller model",
            "",
        )
    if isinstance(error, SweepError | DivergedError):
        return f"{what} fails: {first}", ""
    text = scrub("".join(traceback.format_exception(error)))
    return f"{what} fails: {type(error).__name__}: {first}{_about_experts(error, train)}", text


def _about_experts(error: Exception, train: TrainSpec) -> str:
    """What to type if TRL or PEFT trip over the routers of a mixture of experts."""
    try:
        if not has_experts(load_config(train.model)):
            return ""
    except SweepError:
        return ""
    if "'tuple' object" in str(error):
        word = typed("peft.exclude_modules", ["router"])
        return f". PEFT cannot adapt a router that returns several values: {word} leaves it out"
    if isinstance(error, IndexError) or "num_experts" in str(error):
        word = typed("trainer.router_aux_loss_coef", 0.0)
        return f". SFTTrainer cannot compute the loss of this model's routers: {word} leaves it out"
    return ""
