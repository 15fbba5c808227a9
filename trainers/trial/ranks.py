"""Lets the processes of a trial on several devices, its ranks, act together.

Rank 0 asks the Coordinator and writes files; it sends the answers to the other ranks, so that all
take the same decision at the same step. With one rank nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from sweeps.config.spec import TrainSpec
from sweeps.core.errors import ConfigError, Problem
from sweeps.core.trial import Decision, Report
from trainers.trial.task import Observer

Value = TypeVar("Value")

# True while rank 0 runs a `together` call: calls within it must not broadcast again.
_speaking = False


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one trial; torch.distributed is running if `world` is above 1.

    Attributes:
        group: of torch.distributed; None is its default group.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @classmethod
    def here(cls, group: Any = None) -> Ranks:
        """This process among those that torch.distributed knows; alone if it was not started."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(rank=dist.get_rank(), world=dist.get_world_size(), group=group)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def together(self, call: Callable[[], Value]) -> Value:
        """Call on rank 0 alone, and return or raise the same on every rank."""
        global _speaking
        if self.world == 1 or _speaking:
            return call()
        told: list[Any] = [None, None]
        if self.is_first:
            _speaking = True
            try:
                told[0] = call()
            except Exception as error:
                told[1] = error
            finally:
                _speaking = False
        dist.broadcast_object_list(told, src=0, group=self.group)
        if told[1] is not None:
            raise told[1]
        value: Value = told[0]
        return value

    def each(self, call: Callable[[], Value]) -> list[Value]:
        """Call on every rank, and return all results, by rank, on each; if one raises, all do."""
        if self.world == 1:
            return [call()]
        told: list[Any] = [None] * self.world
        mine: tuple[Any, Exception | None]
        try:
            mine = call(), None
        except Exception as error:
            mine = None, error
        dist.all_gather_object(told, mine, group=self.group)
        for _, failure in told:
            if failure is not None:
                raise failure
        return [value for value, _ in told]

    def sum(self, value: float) -> float:
        """The sum over all ranks; the same bits on each of them."""
        if self.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return float(total)

    def sum_of_each(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The sum over all ranks of each value of a float64 array; the same bits on each rank."""
        if self.world == 1:
            return values
        totals = torch.from_numpy(values.copy())
        dist.all_reduce(totals, group=self.group)
        return totals.numpy()

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank, on rank 0; an empty list on the others."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values or []

    def wait(self) -> None:
        """Wait until every rank has called this."""
        if self.world > 1:
            dist.barrier(group=self.group)


class FirstSpeaks:
    """An observer of every rank: rank 0 calls its own observer, and all get the answer."""

    def __init__(self, observer: Observer | None, ranks: Ranks) -> None:
        self._observer = observer
        self._ranks = ranks
        self.attempt = 0

    def _ask(self, call: Callable[[Observer], Value]) -> Value:
        def ask() -> Value:
            assert self._observer is not None
            return call(self._observer)

        return self._ranks.together(ask)

    def begin(self, step: int, reports: list[Report]) -> bool:
        welcome = self._ask(lambda observer: observer.begin(step, reports))
        self.attempt = self._ask(lambda observer: observer.attempt)
        return welcome

    def wants_base(self) -> bool:
        return self._ask(lambda observer: observer.wants_base())

    def log(self, row: Mapping[str, float]) -> Decision:
        return self._ask(lambda observer: observer.log(row))

    def told(self) -> Decision:
        """Ranks ask at their logs: at every step they would wait for each other."""
        return Decision.CONTINUE

    def report(self, report: Report) -> Decision:
        return self._ask(lambda observer: observer.report(report))

    def may_commit(self) -> None:
        self._ask(lambda observer: observer.may_commit())

    def committed(self, step: int, size_bytes: int) -> None:
        self._ask(lambda observer: observer.committed(step, size_bytes))


def per_rank(train: TrainSpec, world: int) -> TrainSpec:
    """Divide a trial among ranks, so that a step of all sees the same rows as on one device.

    The accumulation is divided by the ranks, else the micro-batch.

    Raises:
        ConfigError: neither divides.
    """
    if world == 1:
        return train
    batch, accumulation = train.batch_size, train.accumulation_steps
    if accumulation % world == 0:
        ours = {"gradient_accumulation_steps": accumulation // world}
    elif batch % world == 0:
        ours = {"per_device_train_batch_size": batch // world}
    else:
        raise ConfigError([indivisible(batch, accumulation, world)])
    return replace(train, trainer={**train.trainer, **ours})


def indivisible(batch: int, accumulation: int, world: int) -> Problem:
    """The problem of a batch whose accumulation and micro-batch both cannot be divided."""
    return Problem(
        key="engine.devices_per_trial",
        value=world,
        message=f"accumulation x micro-batch is {accumulation} x {batch} rows, and neither can be "
        f"divided among {world} devices. Choose a trainer.gradient_accumulation_steps or "
        f"a trainer.per_device_train_batch_size that is a multiple of {world}.",
    )
