"""What the Coordinator gives workers and the driver; imports less than the Coordinator does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sweeps.config.spec import TrainSpec
from sweeps.core.ending import Stop
from sweeps.core.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is to do next.

    Attributes:
        kind: train a trial; do the dry run; prove the best checkpoint; measure what the trial's
            config costs alone; wait, as there is nothing to do now; leave for good.
        spec: what the dry run trains; with `wait`, another worker does it.
        alone: the trial shares its device with no other.
        lane_mb: the most memory that a lane takes beside the base model, measured by the dry run;
            0 if none was done.
        expected: for prove, the eval_loss that was reported at `step`.
    """

    kind: Literal["train", "dry_run", "prove", "cost", "wait", "leave"]
    trial: Trial | None = None
    spec: TrainSpec | None = None
    alone: bool = False
    lane_mb: float = 0.0
    step: int = 0
    expected: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """How this start of a sweep ended, for the driver.

    Attributes:
        refusal: why no step could be trained, and so no trial was started; else empty.
        traceback: of the refusal, if its reason was not foreseen.
        importance: of each searched key, by Optuna; None if it cannot tell.
        stop: why the sweep stopped before its end; None if it did not.
        notes: files that could not be written.
        proof: what the best checkpoint measured when it was loaded again; None if it was not.
        proof_error: why the best checkpoint could not be proven; else empty.
    """

    refusal: str = ""
    traceback: str = ""
    importance: Mapping[str, float] | None = None
    stop: Stop | None = None
    notes: Sequence[str] = ()
    proof: Mapping[str, float] | None = None
    proof_error: str = ""
