"""The loops of a group's ranks: the first gets the jobs, the others follow from trial to trial."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.coordinator.job import Job
from orchestrator.workers.observer import WorkerObserver
from orchestrator.workers.trial_loop import TrialLoop, Waiting
from sweeps.config.spec import TrainSpec
from sweeps.core.errors import StaleAttemptError, SweepError
from trainers.best_checkpoint import prove
from trainers.sft import trainer as sft_trainer
from trainers.trial.failures import DivergedError
from trainers.trial.ranks import FirstSpeaks, Ranks
from trainers.trial.task import Outcome


@dataclass(frozen=True, kw_only=True)
class ProofTask:
    """The best checkpoint, measured by all ranks: it may not fit on the device of one."""

    key: str
    step: int
    train: TrainSpec
    expected: float


class RankFailed(Exception):
    """A rank could not go on; the others cannot either."""


@dataclass(eq=False)
class _Member(TrialLoop):
    """Any rank; `between` carries what rank 0 tells the others between trials."""

    between: Ranks = field(kw_only=True)


class Leader(_Member):
    """Rank 0: gets the jobs, has the others join in, and reports how trials end.

    Its watch covers the nodes of all ranks: if one drains, all ranks stop.
    """

    def work(self) -> None:
        super().work()
        self.between.together(lambda: None)  # nothing more to train

    def _dry_run(self, job: Job) -> None:
        assert job.spec is not None
        self.between.together(lambda: job.spec)
        try:
            found = self._step(job.spec)
        except Exception as error:
            raise RankFailed(f"rank 0: {type(error).__name__}: {error}") from error
        self.coordinator.dry_run_done(self.worker, found)

    def _train_alone(self, waiting: Waiting) -> None:
        self.between.together(lambda: waiting)
        observer = self._observer(waiting.trial)
        try:
            outcome = _train(self, waiting, observer)
        except (StaleAttemptError, DivergedError) as error:
            self._settle(observer, None, error)
        except Exception as error:
            # The others may be in the middle of a sum that never comes: this group is over.
            raise RankFailed(f"rank 0: {type(error).__name__}: {error}") from error
        else:
            self._settle(observer, outcome, None)

    def _settle(
        self, observer: WorkerObserver, outcome: Outcome | None, error: Exception | None
    ) -> None:
        Ranks.here().wait()  # until the others have put away what this one may fetch again next
        super()._settle(observer, outcome, error)

    def _measured(self, job: Job, train: TrainSpec, draft: Path) -> dict[str, float]:
        if self.config.strategy != "fsdp":
            return super()._measured(job, train, draft)
        assert job.trial is not None
        proof = ProofTask(key=job.trial.key, step=job.step, train=train, expected=job.expected)
        self.between.together(lambda: proof)
        return _measure(self, proof, draft)


class Follower(_Member):
    """Any other rank."""

    def work(self) -> None:
        while (waiting := self.between.together(_nothing)) is not None:
            try:
                self._join(waiting)
            except SweepError:
                continue  # rank 0 has seen it, too, and reports it
            self._give_back()

    def _join(self, waiting: Waiting | TrainSpec | ProofTask) -> None:
        if isinstance(waiting, TrainSpec):
            self._step(waiting)
        elif isinstance(waiting, ProofTask):
            self.files.fetch(waiting.key)
            _measure(self, waiting, self._folder.checkpoint(waiting.key, waiting.step))
            self.files.forget(waiting.key)
        else:
            self._train_with_all(waiting)

    def _train_with_all(self, waiting: Waiting) -> None:
        """Train one trial; rank 0 sees how it ends, too, and reports it."""
        has_left = True
        try:
            _train(self, waiting, None)
        except DivergedError:
            pass
        except StaleAttemptError:
            has_left = False  # others of this node may have it in hand
        if has_left:
            self.files.forget(waiting.trial.key)
        Ranks.here().wait()


def _nothing() -> Waiting | TrainSpec | ProofTask | None:
    raise AssertionError("only rank 0 is asked")


def _train(loop: TrialLoop, waiting: Waiting, observer: WorkerObserver | None) -> Outcome:
    return sft_trainer.train(loop._task(waiting), loop._rows(), FirstSpeaks(observer, Ranks.here()))


def _measure(loop: TrialLoop, proof: ProofTask, folder: Path) -> dict[str, float]:
    return prove(
        folder,
        proof.train,
        loop._rows(),
        expected=proof.expected,
        device=loop._device,
        ranks=Ranks.here(),
    )
