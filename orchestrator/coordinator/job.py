"""What the Coordinator gives a worker to do, apart from what the Coordinator itself imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sweeps.config.spec import TrainSpec
from sweeps.core.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to do next.

    Attributes:
        kind: train a trial; rehearse a step; prove the best checkpoint; wait, nothing to do now;
            leave for good.
        spec: what to rehearse; where another worker does that, what to get ready for.
        alone: the trial is to share its device with no other.
        lane_mb: memory that a trial takes at the most as a lane, beside the base model, by the
            rehearsal; 0 where none was done.
        expected: for prove, the loss that was reported at `step`.
    """

    kind: Literal["train", "rehearse", "prove", "wait", "leave"]
    trial: Trial | None = None
    spec: TrainSpec | None = None
    alone: bool = False
    lane_mb: float = 0.0
    step: int = 0
    expected: float = 0.0
