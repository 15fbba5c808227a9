"""A packed worker's lanes: an engine, and for each lane its observer."""

from __future__ import annotations

import torch

from orchestrator.workers.observer import WorkerObserver
from sweeps.config.spec import Kernels, TrainSpec
from trainers.data.dataset import PreparedData
from trainers.packed.compatibility import Shared
from trainers.packed.engine import Engine
from trainers.packed.frozen_base import Base
from trainers.trial.meters import held_mb
from trainers.trial.task import Outcome, Task

_SETTLED = 8  # advances after which the lanes' memory has shown itself
_SHARE = 0.9  # of a GPU's memory that lanes may fill


class Pack:
    """Trials of one group, which train together on one base model."""

    def __init__(
        self,
        group: Shared,
        train: TrainSpec,
        data: PreparedData,
        device: str,
        base: Base | None = None,
        *,
        kernels: Kernels = "torch",
    ) -> None:
        self.group = group
        self._device = device
        self._engine = Engine(train, data, device=device, base=base, kernels=kernels)
        self._observers: dict[str, WorkerObserver] = {}
        self._base_mb = held_mb(device)
        self._since_attach = 0
        self._widest = 0  # lanes that have gone together
        self._judged = 1  # lanes for which there is room by what they have shown
        self._most: int | None = None  # lanes, once memory was too small for more

    @property
    def count(self) -> int:
        return len(self._observers)

    @property
    def is_empty(self) -> bool:
        return not self._observers

    def is_full(self) -> None:
        """Note that memory was too small for one lane more than are left now.

        With each lane that ends one more may be tried; after the last one the bound is gone.
        """
        self._most = max(1, self.count)

    def bound(self, most: int) -> int:
        """At most `most` lanes, and no more than memory has sufficed for."""
        return most if self._most is None else min(most, self._most)

    def room(self, most: int, *, gpus: float, lane_mb: float) -> int:
        """How many lanes fit on this GPU, at most `most`.

        At once there is room for as many as fit if each takes what the dry run's lane took, whose
        rows were the longest, and for as many as trained together before. For more, only once the
        newest lanes' memory has been measured, and then for twice as many at most. If a lane turns
        out larger after all, the engine splits its passes.

        Args:
            gpus: the share of the GPU that is this worker's.
            lane_mb: what a lane took in the dry run; 0 if that is not known.
        """
        usable_mb = _SHARE * self._within_reach_mb(gpus)
        if self.count and self._since_attach >= _SETTLED:
            peak_mb = torch.cuda.max_memory_allocated(self._device) / 2**20
            self._judged = lanes_that_fit(self._base_mb, peak_mb, self._widest, usable_mb)
        by_dry_run = int((usable_mb - self._base_mb) // lane_mb) if lane_mb else 0
        return max(self.count, min(most, max(self._judged, self._widest, by_dry_run)))

    def _within_reach_mb(self, gpus: float) -> float:
        """Memory that this process has and can still get; of a shared GPU no more than its share,
        however much the others leave unused."""
        free, total = torch.cuda.mem_get_info(self._device)
        reach = free + torch.cuda.memory_reserved(self._device)
        return min(reach, total * gpus if 0 < gpus < 1 else reach) / 2**20

    def attach(self, task: Task, observer: WorkerObserver) -> None:
        """Begin or go on with a trial as a lane; raises whatever building it raises."""
        if self._engine.attach(task, observer):
            self._observers[task.key] = observer
            self._since_attach = 0

    def advance(self) -> list[tuple[WorkerObserver, Outcome | None, Exception | None]]:
        """One micro-step of all lanes; those that ended with it."""
        self._widest = max(self._widest, self.count)
        ended = self._engine.advance()
        self._since_attach += 1
        over = [(self._observers.pop(one.task.key), one.outcome, one.error) for one in ended]
        if self.is_empty:
            self._most = None
        elif self._most is not None:
            self._most += sum(outcome is not None for _, outcome, _ in over)
        return over

    def give_up(self) -> list[WorkerObserver]:
        """Drop all lanes as they are, since their device is lost; returns their observers."""
        observers, self._observers = list(self._observers.values()), {}
        return observers


def lanes_that_fit(base: float, peak: float, count: int, usable: float) -> int:
    """Lanes that fit where `count` of them made `peak` of `base`; twice as many at most. In MB."""
    a_lane = max(1.0, (peak - base) / count)
    return max(1, min(2 * count, int((usable - base) // a_lane)))
