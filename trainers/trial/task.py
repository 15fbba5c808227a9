"""One trial as an engine sees it: what to train, whom to tell, how it ended. Imports no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sweeps.config.spec import Strategy, TrainSpec
from sweeps.core.trial import Decision, Report, State
from sweeps.storage.run_folder import RunFolder


class Observer(Protocol):
    """Whom a trial talks to while it trains. Calls return quickly, but for `report`."""

    def begin(self, step: int, reports: list[Report]) -> bool:
        """The trial goes on from `step`; False where there is nothing to do."""

    def wants_base(self) -> bool:
        """Whether to measure the base model first."""

    def log(self, row: Mapping[str, float]) -> Decision: ...

    def report(self, report: Report) -> Decision: ...

    def may_commit(self) -> None:
        """Raises StaleAttemptError where this attempt is over: asked right before a commit."""

    def committed(self, step: int, size_bytes: int) -> None: ...

    @property
    def attempt(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended; `state` is WAITING where it was told to stop and will go on later."""

    state: State
    totals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that a worker needs to train one trial.

    Attributes:
        strategy: how several devices train it together; one trains it as ever.
    """

    key: str
    train: TrainSpec
    examples: int
    folder: RunFolder
    device: str
    strategy: Strategy = "ddp"
