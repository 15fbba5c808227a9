"""Assigns trials to workers, several of which may share a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.config.engine_choice import planned_trials
from sweeps.config.spec import Spec
from sweeps.core.trial import Trial
from sweeps.search.quick import abreast
from sweeps.search.samplers import SAMPLERS
from sweeps.space.space import Space
from trainers.trial.task import DryRun

_ROUNDS = 4  # in so many rounds, at least, a search that learns gets its results


def assignment_rules(
    spec: Spec, space: Space, *, workers: int, lanes: int, memory_mb: float = math.inf
) -> AssignmentRules:
    """The rules by which a sweep's trials are spread over its workers.

    Args:
        memory_mb: main memory of each worker, if it trains on a CPU.
    """
    sweep = spec.sweep
    learns = SAMPLERS[sweep.search].learns
    planned = planned_trials(spec, space)
    if (most := abreast(sweep)) and planned is not None:
        planned = min(planned, most)  # what is still to come is not known yet
    at_once = sweep.max_concurrent or 10**6
    if learns and sweep.max_concurrent is None and planned is not None:
        at_once = abreast(sweep) or max(workers, math.ceil(planned / _ROUNDS))
    in_turn = lanes > 1 and not learns and sweep.pruner == "none"
    if spec.engine.lanes != "auto":
        memory_mb = math.inf
    return AssignmentRules(
        workers=workers,
        at_once=at_once,
        planned=planned,
        in_turn=in_turn,
        lanes=lanes,
        memory_mb=memory_mb,
    )


_SHARE = 0.8  # of a worker's memory that lanes may fill


@dataclass(frozen=True, kw_only=True)
class AssignmentRules:
    """How trials are spread.

    Attributes:
        workers: how many are expected; trials are shared out evenly between them.
        at_once: trials that may train at once, over all workers.
        planned: trials of the whole sweep; None if that is not known.
        in_turn: assign by number, trial n to the worker in place n modulo workers. Which trials
            share a device, and with it the last bits of their losses, is then the same in every
            run. Only for searches that do not learn from results, since it asks ahead.
        lanes: trials that may share a worker's device.
        memory_mb: main memory of each worker, if its lanes have to fit into it.
    """

    workers: int = 1
    at_once: int = 10**6
    planned: int | None = None
    in_turn: bool = False
    lanes: int = 10**6
    memory_mb: float = math.inf

    def fitting(self, found: DryRun | None) -> int:
        """How many lanes fit in a worker's memory, from the memory that the dry run measured.

        Args:
            found: None if no dry run was done.
        """
        if math.isinf(self.memory_mb) or found is None or not found.step_mb:
            return self.lanes
        more = (_SHARE * self.memory_mb - found.peak_mb) // found.step_mb
        return max(1, min(self.lanes, 1 + int(more)))


class Assigner:
    """Hands out the trials that `ask` returns, and notes which worker holds which."""

    def __init__(self, rules: AssignmentRules, ask: Callable[[], Trial | None]) -> None:
        self._rules = rules
        self._ask = ask
        self._holds: dict[str, set[str]] = {}
        self._places: dict[str, int] = {}
        self._reserve: list[Trial] = []

    def follow(self, rules: AssignmentRules) -> None:
        """Assign by other rules from now on."""
        self._rules = rules

    def deal(self, worker: str, *, room: int, finished: int) -> Trial | None:
        """The next trial for a worker that can train `room` at once; None: nothing now.

        Args:
            finished: trials of the sweep that have ended.
        """
        held = self._holds.setdefault(worker, set())
        if len(held) >= min(room, self._share(finished)) or self.count >= self._rules.at_once:
            return None
        trial = self._next(self._place(worker))
        if trial is not None:
            held.add(trial.key)
        return trial

    @property
    def count(self) -> int:
        """Trials that some worker holds."""
        return sum(len(held) for held in self._holds.values())

    def holds(self, worker: str) -> bool:
        return bool(self._holds.get(worker))

    def has(self, worker: str, key: str) -> bool:
        """Whether this worker holds this trial."""
        return key in self._holds.get(worker, set())

    def release(self, worker: str, key: str) -> None:
        """A worker does not hold this trial any more."""
        self._holds.get(worker, set()).discard(key)

    def worker_left(self, worker: str) -> list[str]:
        """Forget a worker; returns the keys of the trials that it held."""
        self._places.pop(worker, None)
        return sorted(self._holds.pop(worker, set()))

    def _share(self, finished: int) -> int:
        """Each worker's share of the trials that have not ended."""
        if self._rules.planned is None:
            return 10**6
        left = max(1, self._rules.planned - finished)
        return math.ceil(left / max(self._rules.workers, len(self._places)))

    def _place(self, worker: str) -> int:
        if worker not in self._places:
            taken = set(self._places.values())
            self._places[worker] = next(n for n in range(len(taken) + 1) if n not in taken)
        return self._places[worker]

    def _next(self, place: int) -> Trial | None:
        if not self._rules.in_turn:
            return self._ask()
        mine = next((t for t in self._reserve if self._place_of(t) == place), None)
        if mine is not None:
            self._reserve.remove(mine)
            return mine
        while (trial := self._ask()) is not None:
            if self._place_of(trial) == place:
                return trial
            self._reserve.append(trial)
        return self._reserve.pop(0) if self._reserve else None  # rather out of turn than idle

    def _place_of(self, trial: Trial) -> int:
        return trial.number % self._rules.workers
