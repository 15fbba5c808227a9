"""What a worker does with a job: train a trial or prove the best; every ending is told."""

from __future__ import annotations

import gc
import logging
import traceback
from typing import Any

import ray
import torch

from orchestrator.actor import Job
from orchestrator.worker import Line, Post
from sweeps.errors import StaleAttemptError
from sweeps.files import RunFolder
from sweeps.reading import read_train
from sweeps.trial import State, Trial
from trainers import solo
from trainers.data import PreparedData, load
from trainers.export import assemble, prove
from trainers.guards import DivergedError, free_memory, held_mb

log = logging.getLogger(__name__)

_LEAK_MB = 1024.0  # held after a trial beyond what was held after the first one


class Bench:
    """One device's work place. `is_worn` where memory was not given back: take a fresh process."""

    def __init__(self, office: Any, post: Post, worker: str, where: str) -> None:
        self._office = office
        self._post = post
        self._worker = worker
        self._where = where
        self._folder = RunFolder(post.root)
        self._device = "cuda" if post.gpus else "cpu"
        self._data: PreparedData | None = None
        self._held_first: float | None = None
        self.is_worn = False
        logging.getLogger("transformers").setLevel(logging.ERROR)

    def do(self, job: Job) -> None:
        assert job.trial is not None
        if job.kind == "prove":
            self._prove(job.trial, job.step, job.expected)
        else:
            self._train(job.trial)
        self._give_back()

    def _train(self, trial: Trial) -> None:
        line = Line(self._office, self._worker, self._where, trial.key, self._device)
        try:
            outcome = solo.train(self._task(trial), self._rows(), line)
            line.end(outcome.state, totals=dict(outcome.totals))
        except StaleAttemptError:
            log.warning("trial %s is in other hands now", trial.key)
        except ray.exceptions.RayActorError:
            raise  # the driver is gone: so are we
        except DivergedError as error:
            line.end(State.DIVERGED, kind="diverged", reason=str(error))
        except Exception as error:
            kind = "oom" if isinstance(error, torch.OutOfMemoryError) else "bug"
            kind = "infrastructure" if isinstance(error, OSError) else kind
            self._fail(line, kind, error)

    def _fail(self, line: Line, kind: str, error: Exception) -> None:
        words = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {words[0][:200]}"
        text = traceback.format_exc()
        if not line.attempt:  # it failed before the Coordinator knew of the attempt
            attempt = ray.get(
                self._office.start.remote(line.worker, line.key, line.where, self._device, 0, [])
            )
            if attempt is None:
                return
            line.attempt = attempt
        if kind == "infrastructure":
            ray.get(self._office.gone.remote(self._worker, reason))
            return
        line.end(State.FAILED, kind=kind, reason=reason, error=text)

    def _prove(self, trial: Trial, step: int, expected: float) -> None:
        result: dict[str, float] = {}
        error = ""
        try:
            train = read_train(trial.config)
            draft = self._folder.best_draft
            assemble(self._folder.checkpoint(trial.key, step), draft, train.model)
            result = prove(draft, train, self._rows(), expected=expected, device=self._device)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        ray.get(self._office.proven.remote(self._worker, trial.key, step, result, error))

    def _task(self, trial: Trial) -> solo.Task:
        return solo.Task(
            key=trial.key,
            train=read_train(trial.config),
            examples=self._post.examples,
            folder=self._folder,
            device=self._device,
        )

    def _rows(self) -> PreparedData:
        if self._data is None:
            self._data = load(self._folder.data)
        return self._data

    def _give_back(self) -> None:
        free_memory()
        held = held_mb(self._device)
        if self._held_first is None:
            self._held_first = held
            gc.freeze()  # what is left are modules and caches: not to be looked through each time
        self.is_worn = held > self._held_first + _LEAK_MB
