"""Trains one trial by TRL's SFTTrainer, on a device of its own or on several.

Loss, optimizer, schedule, clipping and accumulation stay SFTTrainer's. Overridden are evaluation
(`trainers.trial.evaluation`) and how a checkpoint reaches the disk (`trainers.trial.checkpoint`).
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from sweeps.config.spec import TrainSpec
from sweeps.core import fault_injection
from sweeps.core.trial import Decision, State
from trainers.data.dataset import PreparedData, filled_up, stream, tokens_seen
from trainers.model import cache
from trainers.model.loading import choose_for, fingerprint_base, load_base, no_bars
from trainers.model.lora import in_training_type, lora_config
from trainers.model.precision import Runtime
from trainers.model.source import has_experts
from trainers.model.tokenizer import load_tokenizer
from trainers.sft import fsdp
from trainers.sft.config import sft_config
from trainers.sft.optimizers import state_bytes
from trainers.trial import checkpoint as trial_checkpoint
from trainers.trial.evaluation import Measured, Rows, rows_for
from trainers.trial.failures import require_finite
from trainers.trial.meters import PeakMemory, Stopwatch, free_memory
from trainers.trial.random_states import RandomStates
from trainers.trial.ranks import Ranks
from trainers.trial.reporting import TrialReporter, begin, report_base
from trainers.trial.task import Observer, Outcome, Task

Kind = TypeVar("Kind", bound="SweepSFTTrainer")


def train(task: Task, data: PreparedData, observer: Observer) -> Outcome:
    """Train a trial from its newest whole checkpoint to the end of its budget.

    Raises:
        DivergedError: a number was not finite; nothing of that step was applied.
        StaleAttemptError: another attempt at this trial has begun.
        torch.OutOfMemoryError, and whatever the libraries raise.
    """
    spec = task.train
    ranks = Ranks.here()
    base = fingerprint_base(spec.model)
    checkpoints = task.folder.checkpoints(task.key)
    found = trial_checkpoint.newest_of_all(checkpoints, key=task.key, base=base, ranks=ranks)
    if not begin(observer, found):
        return Outcome(state=State.WAITING)
    if ranks.is_first:
        trial_checkpoint.make_ready(checkpoints)
    shards = task.strategy == "fsdp" and ranks.world > 1
    runtime = choose_for(spec, task.device)
    model = _base_of(spec, task.device, ranks, shards=shards)
    evaluation = rows_for(data.evaluation, model, spec.model)
    if observer.wants_base():  # before there is an adapter: some change the base as they start
        measured = fsdp.shard(model, task.device) if shards else model
        loss = evaluation.measure(measured, ranks, autocast=runtime.autocast)
        report_base(loss, observer)
        del measured
        if shards:  # a trainer shares out a model that is whole, with its adapter and optimizer
            del model
            free_memory()
            model = _base_of(spec, task.device, ranks, shards=True)
    with fsdp.building() if shards else nullcontext():
        trainer = _build(task, model, data, observer, found, base, ranks, runtime, shards=shards)
    trainer.evaluation_rows = evaluation
    begins = None if found else trial_checkpoint.beginning(task.folder, spec)
    if begins is not None:
        trainer.load_weights(begins)
    trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    return Outcome(state=trainer.progress.state, totals=trainer.progress.record.outcome())


def _base_of(spec: TrainSpec, device: str, ranks: Ranks, *, shards: bool) -> Any:
    """The base model of a trial; one process that trains alone keeps it for its next trial."""
    if ranks.world == 1:
        return cache.base_for(spec, device)
    # A model that FSDP will share out stays in main memory: whole, it may not fit on a device.
    place = "cpu" if shards else None
    return load_base(spec.model, device, trains_base=spec.trains_base, place=place)


def _build(
    task: Task,
    model: Any,
    data: PreparedData,
    observer: Observer,
    found: trial_checkpoint.Found,
    base: str,
    ranks: Ranks,
    runtime: Runtime,
    *,
    shards: bool,
) -> SweepSFTTrainer:
    spec = task.train
    rows = stream(data.train, task.examples, spec.seed)
    trainer = make_trainer(
        SweepSFTTrainer, task, model, rows, data.evaluation, runtime, ranks=ranks, shards=shards
    )
    record = TrialReporter(
        task,
        observer,
        base=base,
        tokens=tokens_seen(data.train, task.examples, spec.seed),
        found=found,
        clock=Stopwatch(),
        memory=PeakMemory(task.device),
    )
    trainer.progress = ReportingCallback(trainer, record)
    trainer.add_callback(trainer.progress)
    return trainer


def make_trainer(
    kind: type[Kind],
    task: Task,
    model: Any,
    rows: Dataset,
    evaluation: Dataset,
    runtime: Runtime,
    *,
    ranks: Ranks,
    shards: bool = False,
) -> Kind:
    """Make the trainer of a trial that sees `rows` in their order; it has no `progress` yet."""
    spec = task.train
    arguments = sft_config(
        spec,
        output_dir=task.folder.trial(task.key),
        examples=task.examples,
        autocast=str(runtime.autocast).removeprefix("torch.") if runtime.autocast else None,
        device=task.device,
        world=ranks.world,
        shards=shards,
    )
    if not has_experts(model.config):  # TRL asks some models for routers that they lack
        arguments.router_aux_loss_coef = 0.0
    together = arguments.per_device_train_batch_size * ranks.world
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=rows if ranks.world == 1 else filled_up(rows, together),
        eval_dataset=evaluation,
        processing_class=load_tokenizer(spec.model),
        peft_config=lora_config(spec.peft),
    )
    if shards:
        fsdp.require(trainer)
    if isinstance(trainer.model, PeftModel):  # SFTTrainer makes it bfloat16 under any autocast
        in_training_type(trainer.model, runtime.autocast)
    trainer.ranks, trainer.autocast = ranks, runtime.autocast
    trainer.remove_callback(PrinterCallback)
    return trainer


class SweepSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with our evaluation loss and with committed checkpoints.

    The Trainer has no public hook for the methods with an underscore: for the gradient's norm
    before a step, for what a checkpoint holds, and for how sharded weights are saved and loaded.
    """

    ranks: Ranks
    autocast: torch.dtype | None
    evaluation_rows: Rows
    progress: ReportingCallback
    grad_norm: float = 0.0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.progress.clock.paused(), self.progress.record.memory.paused():
            measured = self.evaluation_rows.measure(self.model, self.ranks, autocast=self.autocast)
            require_finite("eval_loss", measured.loss, self.state.global_step)
            self.progress.measured = measured
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
        """Whether float16's scaler is at work, which skips a step with an infinite gradient."""
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def loss_so_far(self) -> float:
        """The sum of all ranks' step losses since the last log; not finite if one is not."""
        return self.ranks.sum(float(self._tr_loss))  # no public name for it before a log

    def load_weights(self, folder: Path) -> None:
        """Begin with the weights of another trial's checkpoint."""
        self._load_from_checkpoint(str(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            fsdp.load_weights(self.model, trial_checkpoint.weights(Path(resume_from_checkpoint)))
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if hasattr(self.model, "peft_config"):  # PEFT loads every adapter as float32
            in_training_type(self.model, self.autocast)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Weights only: the tokenizer is the base's, training_args.bin is a pickle, and PEFT's card
        # is an empty form that takes longer to fill than the weights do to write.
        if isinstance(self.model, PeftModel):
            self.model.create_or_update_model_card = _no_card
        with no_bars():
            self.model.save_pretrained(output_dir, state_dict=state_dict)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        is_adapter = isinstance(self.model, PeftModel)
        weights = fsdp.whole_weights(self.model, trained_only=is_adapter)
        if self.ranks.is_first:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp.whole_state(self.optimizer)
        if self.ranks.is_first:
            torch.save(state, Path(output_dir, "optimizer.pt"))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler.pt"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = (
            torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt")
        )
        fsdp.load_state(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        """Let rank 0 write the states of all ranks: only its node may hold the checkpoint."""
        if self.ranks.world == 1:
            super()._save_rng_state(output_dir)
            return
        name = f"rng_state_{self.ranks.rank}.pth"
        with tempfile.TemporaryDirectory() as own:
            super()._save_rng_state(own)
            written = self.ranks.gather((name, Path(own, name).read_bytes()))
        for each, content in written:
            Path(output_dir, each).write_bytes(content)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        draft = self.ranks.together(self.progress.record.draft)
        # Only rank 0 has the draft: it may lie on another node.
        writing = trial_checkpoint.writing(draft) if self.ranks.is_first else nullcontext()
        with self.progress.clock.paused(), writing:
            self.save_model(str(draft), _internal_call=True)
            self._save_optimizer_and_scheduler(str(draft))
            self._save_scaler(str(draft))
            self._save_rng_state(str(draft))
            self.ranks.wait()
            self.ranks.together(lambda: self._commit(draft))

    def _commit(self, draft: Path) -> None:
        self.state.save_to_json(str(draft / "trainer_state.json"))
        if self.ranks.world > 1:  # for whoever goes on with one device
            shutil.copyfile(draft / "rng_state_0.pth", draft / "rng_state.pth")
        self.progress.record.commit(draft)


class ReportingCallback(TrainerCallback):  # type: ignore[misc]
    """Tells the Trainer when to log, evaluate, save and stop, and reports to the trial's record."""

    def __init__(self, trainer: SweepSFTTrainer, record: TrialReporter) -> None:
        self._trainer = trainer
        self.record = record
        self.clock = Stopwatch()
        self.state = State.COMPLETED
        self.measured: Measured  # by the evaluation that is reported next
        self._before_window: RandomStates

    def on_train_begin(self, args: SFTConfig, state: TrainerState, *_: Any, **__: Any) -> None:
        self.clock = self.record.clock = Stopwatch(self.record.seconds_before)
        self.record.state_bytes = state_bytes(self._trainer.optimizer)  # of one that goes on

    def on_pre_optimizer_step(
        self, args: SFTConfig, state: TrainerState, *_: Any, **__: Any
    ) -> None:
        # After the clip and before the step: a bad number never reaches the weights.
        require_finite("the training loss", self._trainer.loss_so_far(), state.global_step + 1)
        if not self._trainer.is_scaling():
            require_finite("the gradient norm", self._trainer.grad_norm, state.global_step + 1)

    def on_step_begin(self, args: SFTConfig, *_: Any, **__: Any) -> None:
        if args.gradient_accumulation_steps > 1:
            self._before_window = RandomStates.now(str(args.device))
        fault_injection.passing("batch")

    def on_substep_end(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self.record.told() is Decision.STOP:
            # Since the last optimizer step only the random states have changed. The window's
            # micro-batches are computed again by whoever goes on.
            self._before_window.restore()
            self._leave(control)
            control.should_save = not self.record.is_saved
        fault_injection.passing("batch")

    def on_step_end(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.record.stepped()
        if not self.record.state_bytes:
            self.record.state_bytes = state_bytes(self._trainer.optimizer)
        if state.global_step in self.record.due:
            control.should_log = control.should_evaluate = control.should_save = True
        elif self.record.told() is Decision.STOP:
            self._leave(control)

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
        if self.record.log(logs) is Decision.STOP:
            self._leave(control)

    def on_evaluate(
        self,
        args: SFTConfig,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        decision = self.record.report(self.measured)
        if decision is Decision.PRUNE:
            self.state = State.PRUNED
            control.should_save = False  # nothing of a pruned trial is kept
            control.should_training_stop = True
        elif decision is Decision.STOP:
            self._leave(control)

    def _leave(self, control: TrainerControl) -> None:
        if self._trainer.state.global_step < self._trainer.state.max_steps:
            self.state = State.WAITING
        control.should_save = True
        control.should_training_stop = True


def _no_card(_: str) -> None:
    """Replaces PEFT's writer of model cards."""
