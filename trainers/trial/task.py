"""One trial as an engine sees it: its task, its observer and its outcome. Imports no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

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
