"""Runs a worker's jobs: the dry run, trials alone or as lanes, and what follows the last trial."""

from __future__ import annotations

import errno
import logging
import time
import traceback
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from orchestrator.cluster.preemption import DrainWatch
from orchestrator.coordinator.job import Job
from orchestrator.storage.worker_files import WorkerFiles
from orchestrator.workers.observer import WorkerObserver
from orchestrator.workers.worker_config import WorkerConfig
from sweeps.config.spec import TrainSpec
from sweeps.config.validation import read_train
from sweeps.core import fault_injection
from sweeps.core.errors import LedgerWriteError, StaleAttemptError
from sweeps.core.trial import State, Trial
from sweeps.storage.run_folder import RunFolder
from trainers.best_checkpoint import assemble, prove
from trainers.data.dataset import PreparedData, load
from trainers.model import cache
from trainers.trial.failures import DivergedError, is_device_lost, is_out_of_memory
from trainers.trial.meters import device_name, free_memory, held_mb, paged_mb
from trainers.trial.ranks import Ranks
from trainers.trial.task import DryRun, Outcome, Task

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor
    from orchestrator.workers.packed import Pack
    from trainers.dry_run import Train
    from trainers.packed.compatibility import Shared
    from trainers.packed.frozen_base import Base

log = logging.getLogger(__name__)

_LEAK_MB = 1024.0  # of memory held after a trial beyond what was held after the first one
_IDLE_S = 0.3  # between two requests for a job, if there was none


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A trial that was handed out and does not train yet; `group` is None if it trains alone."""

    trial: Trial
    train: TrainSpec
    group: Shared | None


@dataclass(eq=False)
class TrialLoop:
    """Runs the jobs of one device. While packed trials train, other jobs wait."""

    coordinator: CoordinatorActor
    config: WorkerConfig
    worker: str
    where: str  # host and pid
    files: WorkerFiles
    watch: DrainWatch | None = None
    _data: PreparedData | None = None
    _pack: Pack | None = None
    _spare: tuple[Shared, Base] | None = None  # from the dry run, for the first pack
    _queue: deque[Waiting] = field(default_factory=deque)
    _lane_mb: float = 0.0
    _large: set[str] = field(default_factory=set)  # keys that did not fit beside even one other
    _ask_again: float = 0.0
    _held_first: float | None = None
    _is_worn: bool = False
    _lost: Exception | None = None  # after it the device is of no use here
    _is_ready: bool = False

    def __post_init__(self) -> None:
        self._folder = self.files.folder
        self._device = "cuda" if self.config.gpus else "cpu"
        for name in ("transformers", "bitsandbytes.autograd._functions"):
            logging.getLogger(name).setLevel(logging.ERROR)  # the latter: one warning per product

    def work(self) -> None:
        """Run jobs until told to leave, or until a fresh process is better.

        It is if the node is about to go, the device is lost, or memory leaks.
        """
        while True:
            leave = self._fill()
            if self._pack is not None and not self._pack.is_empty:
                self._advance(self._pack)
            elif self._has_to_leave:
                return  # what waits in the queue has not begun: the Coordinator hands it out again
            elif self._queue:
                self._begin(self._queue[0])
            elif leave or self._is_worn:
                return
            else:
                time.sleep(_IDLE_S)

    @property
    def _has_to_leave(self) -> bool:
        is_told = self.watch is not None and self.watch.is_preempted
        return is_told or self._lost is not None

    # ------------------------------------------------------------------ asking

    def _fill(self) -> bool:
        """Ask for jobs while there is room; True if told to leave."""
        while self._has_room():
            job = self.coordinator.next_job(self.worker, self._room())
            if job.kind == "dry_run":
                self._dry_run(job)
                continue
            if job.kind == "prove":
                self._prove(job)
                continue
            if job.kind == "cost":
                self._measure_cost(job)
                continue
            if job.trial is None:
                if job.spec is not None:
                    self._get_ready(job.spec)
                self._ask_again = time.monotonic() + _IDLE_S
                return job.kind == "leave"
            self._lane_mb = job.lane_mb
            self._take(job.trial, alone=job.alone)
        return False

    def _has_room(self) -> bool:
        if self._is_worn or self._has_to_leave or time.monotonic() < self._ask_again:
            return False
        if any(waiting.group is None for waiting in self._queue):
            return False
        training = self._pack.count if self._pack is not None else 0
        return training + len(self._queue) < self._room()

    def _room(self) -> int:
        """Trials that this device can train at once."""
        most = self.config.lanes
        if self._pack is not None:
            most = self._pack.bound(most)
        if not self.config.fits_unknown:
            return most
        if self._pack is None:
            return 1
        return self._pack.room(most, gpus=self.config.gpus, lane_mb=self._lane_mb)

    def _take(self, trial: Trial, *, alone: bool) -> None:
        train = read_train(trial.config).halved(trial.halvings)
        assert train is not None  # as long as it can be halved, it is handed out again
        alone = alone or trial.key in self._large  # else it would wait for the end of all others
        waiting = Waiting(trial=trial, train=train, group=None if alone else self._group(train))
        if self._pack is not None and waiting.group == self._pack.group:
            self._attach(self._pack, waiting)
        else:
            self._queue.append(waiting)

    def _group(self, train: TrainSpec) -> Shared | None:
        if self.config.lanes == 1:
            return None
        from trainers.packed.compatibility import obstacle, shared

        return None if obstacle(train, self._device) else shared(train)

    # ------------------------------------------------------------------ before the first trial

    def _dry_run(self, job: Job) -> None:
        """Train one step of the largest micro-batch with the trials' engine, and report it."""
        from trainers.dry_run import failed_step

        assert job.spec is not None
        found: DryRun | None = None
        why = text = ""
        try:
            found = self._step(job.spec)
        except Exception as error:
            why, text = failed_step(error, job.spec)
        self.coordinator.dry_run_done(self.worker, found, why, text)

    def _get_ready(self, train: TrainSpec) -> None:
        """Load libraries, data and base model while another worker does the dry run.

        Else this one would begin its trials seconds later than the other.
        """
        if self._is_ready:
            return
        self._is_ready = True
        try:
            self._rows()
            if self._in_a_lane(train) is None:
                solo_train()
        except Exception as error:  # the dry run or the first trial reports it
            log.debug("getting ready", exc_info=error)

    def _step(self, train: TrainSpec) -> DryRun:
        from trainers.dry_run import dry_run
        from trainers.sft.optimizers import step_each, trained_type

        fault_injection.passing("dry_run")
        model = train.model
        trained = trained_type(
            train.peft.get("method"), model.quantization, model.dtype, self._device
        )
        step_each(self.config.optimizers, self._device, trained)  # a driver only builds a GPU's
        place = self._folder.scratch / "dry_run"
        engine = self._in_a_lane(train) or solo_train()
        found = dry_run(
            train,
            self._rows(),
            place,
            self._device,
            engine,
            ranks=Ranks.here(),
            strategy=self.config.strategy,
        )
        return replace(found, note=self._spare[1].note) if self._spare is not None else found

    def _in_a_lane(self, train: TrainSpec) -> Train | None:
        """How to train as a lane; None if it trains alone. The base stays for the first pack."""
        group = self._group(train)
        if group is None:
            return None
        from trainers.packed.compatibility import settings
        from trainers.packed.engine import train_alone
        from trainers.packed.frozen_base import Base

        base = Base(train, settings(train), self._device, kernels=self.config.kernels)
        self._spare = group, base
        return partial(train_alone, base=base)

    # ------------------------------------------------------------------ training

    def _begin(self, first: Waiting) -> None:
        """Train the trial that has waited longest, and those that can train with it."""
        self._pack = None
        spare, self._spare = self._spare, None
        base = spare[1] if spare is not None and spare[0] == first.group else None
        del spare
        if first.group is not None:
            cache.release()
        free_memory()
        if first.group is None:
            self._queue.popleft()
            self._train_alone(first)
            if self._lost is None:
                self._give_back()
            return
        from orchestrator.workers.packed import Pack

        together = [waiting for waiting in self._queue if waiting.group == first.group]
        self._queue = deque(one for one in self._queue if one.group != first.group)
        try:
            self._pack = Pack(
                first.group,
                first.train,
                self._rows(),
                self._device,
                base,
                kernels=self.config.kernels,
            )
        except Exception as error:
            for waiting in together:
                self._fail(self._observer(waiting.trial), error)
            return
        for waiting in together:
            if self._lost is None:
                self._attach(self._pack, waiting)

    def _attach(self, pack: Pack, waiting: Waiting) -> None:
        observer = self._observer(waiting.trial, lane=True)
        try:
            pack.attach(self._task(waiting), observer)
        except Exception as error:
            self._settle_lane(pack, observer, None, error, others=pack.count)
            self._give_up_if_lost(pack)

    def _advance(self, pack: Pack) -> None:
        others = pack.count - 1
        try:
            for observer, outcome, why in pack.advance():
                self._settle_lane(pack, observer, outcome, why, others=others)
                self._ask_again = 0.0
        except Exception as error:
            if not is_device_lost(error, self._device):
                raise
            self._lost = error
        self._give_up_if_lost(pack)
        if pack.is_empty and not self._queue:
            self._ask_again = 0.0

    def _give_up_if_lost(self, pack: Pack) -> None:
        if self._lost is not None:
            for observer in pack.give_up():
                self._settle(observer, None, self._lost)

    def _train_alone(self, waiting: Waiting) -> None:
        observer = self._observer(waiting.trial)
        try:
            outcome = solo_train()(self._task(waiting), self._rows(), observer)
        except Exception as error:
            self._settle(observer, None, error)
        else:
            self._settle(observer, outcome, None)

    # ------------------------------------------------------------------ endings

    def _settle_lane(
        self,
        pack: Pack,
        observer: WorkerObserver,
        outcome: Outcome | None,
        error: Exception | None,
        *,
        others: int,
    ) -> None:
        """Report how a lane ended.

        One that did not fit beside `others` waits, unchanged: alone it may fit.
        """
        if error is None or not others or not is_out_of_memory(error):
            self._settle(observer, outcome, error)
            return
        log.warning("no memory for %s beside %d other trials: %s", observer.key, others, error)
        pack.is_full()
        if others == 1:
            self._large.add(observer.key)
        self.files.forget(observer.key)
        if observer.attempt or observer.begin(0, []):
            reason = f"no memory for it beside {others} others on its device; it waits for room"
            observer.end(State.WAITING, reason=reason)

    def _settle(
        self, observer: WorkerObserver, outcome: Outcome | None, error: Exception | None
    ) -> None:
        """Report how a trial ended."""
        self._ask_again = 0.0
        if not isinstance(error, StaleAttemptError):
            self.files.forget(observer.key)
        if outcome is not None:
            observer.end(outcome.state, totals=dict(outcome.totals))
        elif isinstance(error, StaleAttemptError):
            log.warning("another worker has trial %s now", observer.key)
        elif isinstance(error, LedgerWriteError):
            # The Coordinator has stopped the sweep, and says why.
            self.coordinator.release(self.worker, observer.key, str(error))
        elif isinstance(error, ray.exceptions.RayActorError):
            raise error  # the driver is gone: so are we
        elif isinstance(error, DivergedError):
            observer.end(State.DIVERGED, kind="diverged", reason=str(error))
        elif error is not None:
            self._fail(observer, error)

    def _fail(self, observer: WorkerObserver, error: Exception) -> None:
        words = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {words[0][:200]}"
        if isinstance(error, OSError):
            full_disk = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self.coordinator.release(self.worker, observer.key, reason, full_disk)
            return
        text = "".join(traceback.format_exception(error))
        if is_device_lost(error, self._device):
            self._lost = error
            self.coordinator.release(self.worker, observer.key, reason, False, text)
            return
        if not observer.attempt and not observer.begin(
            0, []
        ):  # the Coordinator has to know of the attempt
            return
        if is_out_of_memory(error):
            observer.out_of_memory(reason, text)
            return
        observer.end(State.FAILED, kind="bug", reason=reason, error=text)

    # ------------------------------------------------------------------ the best

    def _prove(self, job: Job) -> None:
        assert job.trial is not None
        self._pack = None
        cache.release()
        result: dict[str, float] = {}
        error = ""
        try:
            train = read_train(job.trial.config)
            draft = self._folder.best_draft
            self.files.fetch(job.trial.key)
            assemble(
                self._folder.checkpoint(job.trial.key, job.step),
                draft,
                train.model,
                stops=self._rows().report.stops,
                eos_token=train.trainer.get("eos_token"),
            )
            result = self._measured(job, train, draft)
            self.files.hand_in_draft()
        except Exception as failure:
            if is_device_lost(failure, self._device):
                raise  # this process dies of it, and another one proves
            error = f"{type(failure).__name__}: {failure}"
        self.coordinator.proven(self.worker, job.trial.key, job.step, result, error)

    def _measured(self, job: Job, train: TrainSpec, draft: Path) -> dict[str, float]:
        """Measure the best checkpoint, loaded from `draft`."""
        return prove(draft, train, self._rows(), expected=job.expected, device=self._device)

    def _measure_cost(self, job: Job) -> None:
        """Measure what a trial's config costs alone, by SFTTrainer whatever trained the trial."""
        assert job.trial is not None
        trial, self._pack, self._spare = job.trial, None, None
        free_memory()
        parts, reason = None, ""
        try:
            from trainers.sft.cost import measure

            train = read_train(trial.config).halved(trial.halvings)
            assert train is not None
            scratch = RunFolder(self._folder.scratch / "cost")
            task = replace(self._task_of(trial.key, train), folder=scratch)
            parts = measure(task, self._rows())
        except Exception as failure:
            if is_device_lost(failure, self._device):
                raise  # this process dies of it, and another one measures
            reason = f"{type(failure).__name__}: {failure}"
        device = device_name(self._device)
        self.coordinator.cost_measured(self.worker, trial.key, device, parts, reason)
        self._give_back()

    # ------------------------------------------------------------------ helpers

    def _observer(self, trial: Trial, *, lane: bool = False) -> WorkerObserver:
        return WorkerObserver(
            coordinator=self.coordinator,
            worker=self.worker,
            where=self.where,
            key=trial.key,
            device=self._device,
            watch=self.watch,
            files=self.files,
            lane=lane,
        )

    def _task(self, waiting: Waiting) -> Task:
        self.files.fetch(waiting.trial.key)
        if waiting.train.warm is not None:
            self.files.fetch(waiting.train.warm.trial)
        return self._task_of(waiting.trial.key, waiting.train)

    def _task_of(self, key: str, train: TrainSpec) -> Task:
        return Task(
            key=key,
            train=train,
            examples=self.config.examples,
            folder=self._folder,
            device=self._device,
            strategy=self.config.strategy,
        )

    def _rows(self) -> PreparedData:
        if self._data is None:
            self._data = load(self.files.data())
        return self._data

    def _give_back(self) -> None:
        """Free memory after a trial; `_is_worn` if more stays held than after the first one."""
        free_memory()
        held = held_mb(self._device) + paged_mb() - cache.held_mb()
        if self._held_first is None:
            self._held_first = held
        self._is_worn = held > self._held_first + _LEAK_MB


def solo_train() -> Train:
    """SFTTrainer's engine: its import takes seconds, which packs need not pay."""
    from trainers.sft import trainer as sft_trainer

    return sft_trainer.train
