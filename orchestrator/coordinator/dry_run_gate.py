"""Nothing is handed out until one worker has trained one step of the largest micro-batch.

A worker has the device that matters, and has imported by then what takes long; the driver may have
neither. So a sweep that cannot run is refused before its first trial, and one that can begins half
a second later. What a step came to is kept in the ledger: going on does not do it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.config.spec import TrainSpec

_TRIES = 2  # workers that may die of it


@dataclass(kw_only=True)
class DryRunGate:
    """Shut, or open; or never to be opened, where `refusal` says why.

    Attributes:
        facts: of this start of the sweep, told to the ledger when the gate opens.
        train: what is to be rehearsed; None where the gate is open.
        traceback: of what went wrong, where it was not foreseen.
    """

    facts: Mapping[str, Any]
    train: TrainSpec | None
    refusal: str = ""
    traceback: str = ""
    _holder: str = ""
    _deaths: int = 0

    @property
    def is_open(self) -> bool:
        return self.train is None and not self.refusal

    def take(self, worker: str) -> bool:
        """Whether this worker is to rehearse; another one may do so already."""
        if self._holder or self.refusal:
            return False
        self._holder = worker
        return True

    def worker_left(self, worker: str) -> None:
        """A worker that is gone does not rehearse any more."""
        if self._holder == worker:
            self._holder = ""

    def worker_died(self, worker: str, reason: str) -> None:
        """The same, and it may be the rehearsal's doing."""
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
