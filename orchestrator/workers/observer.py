"""Carries a trial's metrics, reports and checkpoints from its engine to the Coordinator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.preemption import DrainWatch
from orchestrator.coordinator.handle import send
from orchestrator.storage.worker_files import WorkerFiles
from sweeps.core.trial import Decision, Report, State
from sweeps.ledger.events import End

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor

_LOG_EVERY_S = 0.5  # training rows are sent together, no more often
_ASK_EVERY_S = 2.0  # what was decided, if there are no rows to send


@dataclass
class WorkerObserver:
    """Passes on what a trial's engine tells, for one trial; see `trainers.trial.task.Observer`.

    Training metrics are sent without waiting; reports wait for their decision.
    """

    coordinator: CoordinatorActor
    worker: str
    where: str
    key: str
    device: str
    watch: DrainWatch | None = None
    files: WorkerFiles | None = None
    lane: bool = False
    attempt: int = 0
    _rows: list[Mapping[str, float]] = field(default_factory=list)
    _sent: float = 0.0
    _answer: Future[Decision] | None = None
    _stop: bool = False

    def begin(self, step: int, reports: list[Report]) -> bool:
        attempt = self.coordinator.start(
            self.worker, self.key, self.where, self.device, step, reports, self.lane
        )
        self.attempt = attempt or 0
        return attempt is not None

    def wants_base(self) -> bool:
        return self.coordinator.claim_base(self.key, self.attempt)

    def log(self, row: Mapping[str, float]) -> Decision:
        self._rows.append(row)
        if time.monotonic() - self._sent >= _LOG_EVERY_S:
            self._send()
        return Decision.STOP if self._stop or self._has_to_leave else Decision.CONTINUE

    def told(self) -> Decision:
        now = time.monotonic()
        if self._answer is not None and self._answer.done():
            self._hear()
        if self._answer is None and now - self._sent >= _ASK_EVERY_S:
            self._answer = send(self.coordinator.log, self.key, self.attempt, [])
            self._sent = now
        return Decision.STOP if self._stop or self._has_to_leave else Decision.CONTINUE

    def report(self, report: Report) -> Decision:
        self._send()
        decision = self.coordinator.report(self.key, self.attempt, report)
        if decision is Decision.CONTINUE and self._has_to_leave:
            return Decision.STOP
        return decision

    @property
    def _has_to_leave(self) -> bool:
        """The node is about to go: the trial commits and goes on elsewhere."""
        return self.watch is not None and self.watch.is_preempted

    def may_commit(self) -> None:
        self.coordinator.may_commit(self.key, self.attempt)

    def committed(self, step: int, size_bytes: int) -> None:
        if self.files is not None:
            self.files.committed(self.key, step, self.attempt)
        self.coordinator.committed(self.key, self.attempt, step, size_bytes)

    def end(self, state: State, error: str = "", **more: Any) -> None:
        if self.attempt == 0:
            return
        self._send()
        ended = End(trial=self.key, attempt=self.attempt, state=state, **more)
        self.coordinator.end(self.worker, ended, error)

    def out_of_memory(self, reason: str, error: str) -> None:
        """End the trial, or have it retried with half the micro-batch: the Coordinator decides."""
        self._send()
        self.coordinator.out_of_memory(self.worker, self.key, self.attempt, reason, error)

    def _send(self) -> None:
        """Send the rows; the answer is read at the next call, so that training does not wait."""
        self._hear()
        if self._rows:
            self._answer = send(self.coordinator.log, self.key, self.attempt, self._rows)
            self._rows = []
            self._sent = time.monotonic()

    def _hear(self) -> None:
        if self._answer is not None:
            self._stop = self._answer.result() is Decision.STOP
            self._answer = None
