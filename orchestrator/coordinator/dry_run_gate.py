"""Holds all trials back until one worker has trained one step of the largest micro-batch.

A worker has the device that trials train on, and has imported the libraries by then; the driver may
have neither. So a sweep that cannot run is refused before its first trial, and one that can begins
half a second later. The ledger keeps the result: a later start does not repeat the dry run.
"""

from __future__ import annotations

from dataclasses import dataclass

from sweeps.config.spec import TrainSpec
from sweeps.ledger.events import Attempt

_TRIES = 2  # workers that may die of the dry run


@dataclass(kw_only=True)
class DryRunGate:
    """Closed until the dry run has succeeded; if it fails, `refusal` says why no trial starts.

    Attributes:
        facts: of this start of the sweep, for the ledger when the gate opens.
        train: what the dry run trains; None if the gate is open.
        traceback: of the failure, if it was not foreseen.
    """

    facts: Attempt
    train: TrainSpec | None
    refusal: str = ""
    traceback: str = ""
    _holder: str = ""
    _deaths: int = 0

    @property
    def is_open(self) -> bool:
        return self.train is None and not self.refusal

    def take(self, worker: str) -> bool:
        """Give the dry run to this worker; False if another worker has it."""
        if self._holder or self.refusal:
            return False
        self._holder = worker
        return True

    def worker_left(self, worker: str) -> None:
        """Give the dry run to the next worker that asks, if this one had it."""
        if self._holder == worker:
            self._holder = ""

    def worker_died(self, worker: str, reason: str) -> None:
        """Like `worker_left`; refuse the sweep if the dry run has ended `_TRIES` workers."""
        if self._holder != worker:
            return
        self._holder = ""
        self._deaths += 1
        if self._deaths >= _TRIES and self.train is not None:
            self.refuse(
                f"{self._deaths} workers died while they trained one step of the largest "
                f"micro-batch ({self.train.batch_size} of the longest rows): {reason}. It may take "
                "more memory than there is: lower trainer.per_device_train_batch_size, or "
                "data.max_length"
            )

    def refuse(self, why: str, traceback: str = "") -> None:
        self.refusal, self.traceback = why, traceback
