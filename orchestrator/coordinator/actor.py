"""The Coordinator as one Ray actor on the driver's node: what workers and driver call.

It adds to `sweeps.coordinator` what only matters between processes: which worker holds which
trial, the dry run before the first trial, and the last jobs of a sweep, proving the best checkpoint
and measuring what trials cost alone, which go to a worker that has data and libraries loaded.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.coordinator.assignment import Assigner, AssignmentRules, assignment_rules
from orchestrator.coordinator.cost_job import CostJob
from orchestrator.coordinator.dry_run_gate import DryRunGate
from orchestrator.coordinator.job import Job, SweepResult
from sweeps.config.spec import Spec, TrainSpec
from sweeps.coordinator.coordinator import Coordinator
from sweeps.coordinator.other_folders import Found
from sweeps.coordinator.steering import answer
from sweeps.core.cost import Parts
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import LedgerWriteError
from sweeps.core.trial import Decision, Report, State
from sweeps.ledger.events import Attempt, End
from sweeps.ledger.history import History, Record
from sweeps.results.importance import importance
from sweeps.results.ranking import best
from sweeps.results.trials_csv import Table
from sweeps.search.optuna_export import completed_study, export_study
from sweeps.space.space import Space
from sweeps.storage.requests import Request, Unreadable
from sweeps.storage.run_folder import RunFolder
from trainers.trial.task import DryRun

_BARREN_STARTS = 4  # workers that may die in a row before they ask for a job
_IDLE_S = 60.0  # with no workers but unusable ones; then the sweep stops
_PROOF_TRIES = 3  # workers that may die while they prove the best checkpoint


@dataclass(kw_only=True)
class Proof:
    """How far the proof of the best checkpoint is.

    Attributes:
        holder: the worker that proves it; empty if none does.
        results: what was measured, by (trial key, step).
        error: why it could not be proven; else empty.
    """

    holder: str = ""
    deaths: int = 0
    results: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    error: str = ""


class CoordinatorActor:
    """Wraps a `sweeps.coordinator` Coordinator; Ray handles one call at a time.

    Callers use `orchestrator.coordinator.handle`.
    """

    def __init__(
        self, spec: Spec, space: Space, root: Path, rules: AssignmentRules | None = None
    ) -> None:
        self._folder = RunFolder(root)
        self._coordinator = Coordinator(spec, space, self._folder)
        self._space = space
        self._rules = rules or AssignmentRules()
        self._lanes = self._rules.lanes
        self._lane_mb = 0.0
        self._assigner = Assigner(self._rules, self._coordinator.ask)
        self._gate = DryRunGate(facts=Attempt(), train=None)
        self._elsewhere: Found | None = None
        self._proof = Proof()
        self._cost = CostJob(coordinator=self._coordinator)
        self._table = Table(self._folder)
        self._asked: set[str] = set()  # workers that have asked for a job and not left
        self._barren = 0
        self._wants_proof = True
        self._idle: dict[str, str] = {}  # worker that takes no trials -> why
        self._idle_since: float | None = None  # while no other worker is there

    # -- for the driver

    def outlive_signals(self) -> None:
        """Ignore SIGTERM: a batch system sends it to all processes, and trials have to commit."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def warm_up(self) -> None:
        """Import what the end of the sweep needs, while no caller waits."""
        with suppress(Exception), TemporaryDirectory() as scratch:
            export_study(History(), Path(scratch, "study.db"))

    def begin(
        self,
        facts: Attempt,
        known: DryRun | None = None,
        to_try: TrainSpec | None = None,
        elsewhere: Found | None = None,
    ) -> None:
        """Hand out trials; with `to_try`, after a worker has trained one step of it.

        Args:
            facts: what the ledger should know of this start.
            known: the result of the dry run, if it was done at an earlier start.
            elsewhere: what other run folders give to this sweep.
        """
        self._elsewhere = elsewhere
        nothing_to_train = self._coordinator.is_finished
        self._gate = DryRunGate(facts=facts, train=None if nothing_to_train else to_try)
        if self._gate.is_open:
            self._open(known)

    def _open(self, found: DryRun | None = None) -> None:
        self._gate.train = None
        self._lanes = self._rules.fitting(found)
        self._lane_mb = found.step_mb if found else 0.0
        facts = self._gate.facts
        told = {**(facts.rehearsal or {}), **(asdict(found) if found else {})}
        if self._lanes < self._rules.lanes:
            told["lanes"] = self._lanes
        self._coordinator.begin(replace(facts, rehearsal=told), self._elsewhere)
        self._table.refresh(self._coordinator.history)

    def ping(self) -> None:
        """Do nothing but answer: see `orchestrator.cluster.signals.Heartbeat`."""

    def interrupt(self, stop: Stop, prove: bool) -> None:
        """Stop handing out trials; with `prove`, the best checkpoint so far is still proven, and
        what trials cost alone is measured."""
        if self._gate.refusal:
            return
        if not self._gate.is_open:
            with suppress(LedgerWriteError):  # then it stops for that reason, and says so
                self._open()
        self._wants_proof = self._wants_proof and prove
        self._coordinator.interrupt(stop)

    def take(self, request: Request | Unreadable) -> None:
        """Carry out what a user asks for, and answer; later, if the ledger has not begun yet."""
        if not self._gate.is_open:
            return
        answer(self._coordinator, self._folder, request)
        self._assign_as_set()
        stop = self._coordinator.stop
        if stop is not None and stop.cause is Cause.CANCELLED:
            self._wants_proof = False
        self._table.refresh(self._coordinator.history)

    def _assign_as_set(self) -> None:
        """Follow what users have set of how many trials there are, and how many at once."""
        rules = self._rules
        self._rules = assignment_rules(
            self._coordinator.spec,
            self._space,
            workers=rules.workers,
            lanes=rules.lanes,
            memory_mb=rules.memory_mb,
        )
        self._assigner.follow(self._rules)

    def is_done(self) -> bool:
        """Whether no worker is needed any more."""
        if self._gate.refusal:
            return True
        self._look_at_idle()
        if not self._coordinator.is_finished or self._has_to_prove():
            return False
        return not self._cost.holder and self._next_cost() is None

    def is_at_rest(self) -> bool:
        """Whether each trial that a worker was given has ended, or waits at its checkpoint."""
        return self._coordinator.is_at_rest

    def _look_at_idle(self) -> None:
        """Stop the sweep if for `_IDLE_S` there have been only unusable workers."""
        if not self._idle or self._asked:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > _IDLE_S and not self._coordinator.is_finished:
            why = "; ".join(sorted(set(self._idle.values())))
            self.interrupt(Stop(cause=Cause.UNFIT_NODES, details=(why,)), False)

    def wants_worker(self) -> bool:
        """Whether Tune should start another worker. No if there is one for the last jobs, nor while
        a user has paused the sweep and wants its devices."""
        if self._gate.is_open and self._coordinator.history.is_idle:
            return False
        return not self._coordinator.is_finished or not self._asked

    def finish(self) -> SweepResult:
        """Write trials.csv and study.db, and tell how the sweep ended."""
        if self._gate.refusal:
            return SweepResult(refusal=self._gate.refusal, traceback=self._gate.traceback)
        unwritten = []
        try:
            self._table.write(self._coordinator.history)
            export_study(self._coordinator.history, self._folder.study)
        except Exception as error:  # a full disk, in Optuna's words or the system's
            unwritten.append(f"The tables could not be written: {error}")
        proven = best(self._coordinator.history)
        key = (proven.record.key, proven.report.step) if proven else ("", 0)
        return SweepResult(
            importance=importance(completed_study(self._coordinator.history)),
            stop=self._coordinator.stop,
            notes=unwritten,
            proof=self._proof.results.get(key),
            proof_error=self._proof.error,
        )

    # -- for workers

    def worker_died(self, worker: str, reason: str) -> None:
        """Hand out again what a worker held whose process died.

        If several die in a row before they ask for a job, the sweep stops: so would the next.
        """
        self._gate.worker_died(worker, reason)
        held = self._assigner.worker_left(worker)
        for key in held:
            self._coordinator.release(key, "its worker's process died")
        if held:
            self._table.refresh(self._coordinator.history)
        self._cost.worker_died(worker, reason)
        if self._proof.holder == worker:
            self._proof.holder = ""
            self._proof.deaths += 1
            if self._proof.deaths >= _PROOF_TRIES:
                self._proof.error = f"{self._proof.deaths} workers died while they proved it"
        self._barren = 0 if worker in self._asked | set(self._idle) else self._barren + 1
        self._asked.discard(worker)
        self._idle.pop(worker, None)
        if self._barren > _BARREN_STARTS and not self._assigner.count:
            self.interrupt(Stop(cause=Cause.WORKERS_DIE, details=(reason,)), False)

    def worker_left(self, worker: str) -> None:
        """Hand out again what a worker has not begun that leaves of its own accord."""
        self._asked.discard(worker)
        self._gate.worker_left(worker)
        self._cost.worker_left(worker)
        for key in self._assigner.worker_left(worker):
            self._coordinator.requeue(key)

    def report_unusable(self, worker: str, why: str) -> None:
        """Note that no trial can be trained on a worker's node, and `why`."""
        self._idle[worker] = why

    def release(
        self, worker: str, key: str, reason: str, full_disk: bool = False, error: str = ""
    ) -> None:
        """Take a trial from a worker that cannot go on with it, through no fault of the trial's.

        Does nothing if the worker was thought dead and another one has the trial by now.

        Args:
            error: the traceback, if the trial may have caused it after all.
        """
        if not self._assigner.has(worker, key):
            return
        self._assigner.release(worker, key)
        self._coordinator.release(key, reason, error, full_disk=full_disk)
        self._table.refresh(self._coordinator.history)

    def next_job(self, worker: str, room: int = 1) -> Job:
        """The next job of a worker that can train `room` trials at once."""
        self._asked.add(worker)
        self._barren = 0
        if self._gate.refusal:
            return Job(kind="leave")
        if not self._gate.is_open:
            is_first = self._gate.take(worker)
            return Job(kind="dry_run" if is_first else "wait", spec=self._gate.train)
        room = min(room, self._lanes)
        finished = self._coordinator.history.ended
        is_paused = self._coordinator.history.paused_by
        trial = None
        if not is_paused:
            trial = self._assigner.deal(worker, room=room, finished=finished)
        if trial is not None:
            alone = self._is_last_try(trial.key)
            return Job(kind="train", trial=trial, alone=alone, lane_mb=self._lane_mb)
        if self._assigner.holds(worker):
            return Job(kind="wait")
        if not self._coordinator.is_finished:
            return Job(kind="leave" if self._coordinator.history.is_idle else "wait")
        # Proven when no trial runs any more: none can change which checkpoint is the best.
        if not (self._assigner.count or self._proof.holder or self._cost.holder):
            if self._has_to_prove():
                return self._prove_job(worker)
            if (record := self._next_cost()) is not None:
                self._cost.give(worker, record)
                return Job(kind="cost", trial=self._coordinator.trial(record.key))
        self._assigner.worker_left(worker)
        return Job(kind="leave")

    def dry_run_done(
        self, worker: str, found: DryRun | None, refusal: str = "", traceback: str = ""
    ) -> None:
        """Take what a step of the largest micro-batch measured; or why there can be no sweep."""
        self._gate.worker_left(worker)
        if self._gate.is_open:
            return  # the sweep was interrupted in the meantime
        if found is None:
            self._gate.refuse(refusal, traceback)
            return
        try:
            self._open(found)
        except LedgerWriteError as error:
            self._gate.refuse(str(error))

    def _is_last_try(self, key: str) -> bool:
        """Whether a trial has no retry left; then no other trial should share its process."""
        retries = self._coordinator.history.trials[key].retries
        return retries > 0 and retries >= self._coordinator.spec.sweep.max_retries

    def start(
        self,
        worker: str,
        key: str,
        where: str,
        device: str,
        step: int,
        reports: Sequence[Report],
        lane: bool = False,
    ) -> int | None:
        if not self._assigner.has(worker, key):
            return None  # the worker was thought dead, and its trials were handed out again
        attempt = self._coordinator.start(
            key, worker=where, device=device, step=step, reports=reports, lane=lane
        )
        if attempt is None:
            self._assigner.release(worker, key)
            self._coordinator.requeue(key)
        return attempt

    def claim_base(self, key: str, attempt: int) -> bool:
        return self._coordinator.claim_base(key, attempt)

    def log(self, key: str, attempt: int, rows: Sequence[Mapping[str, Any]]) -> Decision:
        return self._coordinator.log(key, attempt, rows)

    def report(self, key: str, attempt: int, report: Report) -> Decision:
        return self._coordinator.report(key, attempt, report)

    def may_commit(self, key: str, attempt: int) -> None:
        self._coordinator.may_commit(key, attempt)

    def out_of_memory(self, worker: str, key: str, attempt: int, reason: str, error: str) -> None:
        """See `Coordinator.out_of_memory`."""
        self._assigner.release(worker, key)
        self._coordinator.out_of_memory(key, attempt, reason, error)
        self._table.refresh(self._coordinator.history)

    def committed(self, key: str, attempt: int, step: int, size: int) -> None:
        self._coordinator.committed(key, attempt, step, size)

    def end(self, worker: str, ended: End, error: str = "") -> None:
        """End a trial, or pause it if the state is WAITING."""
        self._assigner.release(worker, ended.trial)
        if ended.state == State.WAITING:
            self._coordinator.pause(ended.trial, ended.attempt, ended.reason, ended.totals)
            return
        self._coordinator.end(ended, error)
        self._table.refresh(self._coordinator.history)

    def proven(
        self, worker: str, key: str, step: int, result: dict[str, float], error: str
    ) -> None:
        self._proof.holder = ""
        if error:
            self._proof.error = error
        else:
            self._proof.results[key, step] = result

    def _next_cost(self) -> Record | None:
        """The trial whose cost alone is measured next; None if that is over, or has to wait."""
        return self._cost.next() if self._wants_proof else None

    def cost_measured(
        self, worker: str, key: str, device: str, parts: Parts | None, reason: str = ""
    ) -> None:
        self._cost.done(worker, key, device, parts, reason)
        self._table.refresh(self._coordinator.history)

    def _has_to_prove(self) -> bool:
        if not self._wants_proof or self._proof.error:
            return False
        found = best(self._coordinator.history)
        if found is None:
            return False
        return (found.record.key, found.report.step) not in self._proof.results

    def _prove_job(self, worker: str) -> Job:
        found = best(self._coordinator.history)
        assert found is not None
        self._proof.holder = worker
        return Job(
            kind="prove",
            trial=self._coordinator.trial(found.record.key),
            step=found.report.step,
            expected=found.report.metrics["eval_loss"],
        )

    def already_proven(self, key: str, step: int, result: dict[str, float]) -> None:
        """Note that best/ holds this checkpoint already, from an earlier start."""
        self._proof.results[key, step] = result
