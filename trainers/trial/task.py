"""One trial as an engine sees it: its task, its observer and its outcome. Imports no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from sweeps.config.spec import Strategy, TrainSpec
from sweeps.core.trial import Decision, Report, State
from sweeps.storage.run_folder import RunFolder


class Observer(Protocol):
    """Hears of a trial while it trains. All calls but `report` return quickly."""

    def begin(self, step: int, reports: list[Report]) -> bool:
        """The trial goes on from `step`; returns False if there is nothing to do."""

    def wants_base(self) -> bool:
        """Whether to measure the base model first."""

    def log(self, row: Mapping[str, float]) -> Decision: ...

    def told(self) -> Decision:
        """What was decided since the last log: asked after every step, so it does not wait."""

    def report(self, report: Report) -> Decision: ...

    def may_commit(self) -> None:
        """Called right before a commit; raises StaleAttemptError if this attempt is over."""

    def committed(self, step: int, size_bytes: int) -> None: ...

    @property
    def attempt(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended; `state` is WAITING if it was told to stop and will go on later."""

    state: State
    totals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a worker needs to train one trial.

    Attributes:
        strategy: how several devices share the trial; one device ignores it.
    """

    key: str
    train: TrainSpec
    examples: int
    folder: RunFolder
    device: str
    strategy: Strategy = "ddp"


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Memory, disk and time that one step of the largest micro-batch took, of the longest rows.

    Attributes:
        rows: of the micro-batch.
        too_many: rows of the micro-batch that did not fit; then `rows` are half as many. 0: none.
        peak_mb: peak memory of the device; on a CPU of the whole process.
        step_mb: the part of it that the step added; a lane's share, if the base was loaded before.
        checkpoint_mb: size of the checkpoint on disk.
        seconds: step, evaluation and checkpoint together; in solo, the model's loading too.
        train_s: of the step alone, by the trial's own clock; 0 if it was not measured.
        note: what came of the base otherwise than it was asked for; empty for nothing.
    """

    rows: int
    tokens: int
    peak_mb: float
    checkpoint_mb: float
    seconds: float
    step_mb: float = 0.0
    too_many: int = 0
    train_s: float = 0.0
    note: str = ""

    @classmethod
    def recorded(cls, told: Mapping[str, Any]) -> DryRun | None:
        """Read a dry run from the ledger's `rehearsal`; None if no step was done."""
        if "rows" not in told:
            return None
        return cls(**{each.name: told[each.name] for each in fields(cls) if each.name in told})
