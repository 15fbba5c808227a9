"""The workers as Ray Tune trials: one for each place, started again when one dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.placement import Placement

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor
    from orchestrator.workers.worker_config import WorkerConfig

_PLACED_S = 60.0  # more than a worker's imports take from a slow disk
_LEAVE_S = 15.0  # Tune gives its workers five to end
_NEXT_TO_NOTHING = 0.0001  # of a node; Tune places no trial that asks for nothing


class Workers(threading.Thread):
    """Runs Tune until no worker is wanted any more; Tune's loop has a thread of its own.

    Args:
        coordinator: remote; see `orchestrator.coordinator.handle`.
        worker_config: what every worker needs to know.
        slots: how many workers to keep, asked again as nodes come and go.
        scratch: where Tune keeps its own files; removed by the caller.
    """

    def __init__(
        self,
        coordinator: CoordinatorActor,
        worker_config: WorkerConfig,
        placement: Placement,
        slots: Callable[[], int],
        scratch: Path,
    ) -> None:
        super().__init__(name="workers", daemon=True)
        self._coordinator = coordinator
        self._config = worker_config
        self._placement = placement
        self._slots = slots
        self._scratch = scratch
        self._began = time.monotonic()
        self._placed: Callable[[], int] = lambda: 0
        self._told = False
        self._end_loop: Callable[[], None] = lambda: None
        self.error: Exception | None = None

    def news(self) -> str:
        """Something to say, once: others hold what the cluster has, and nobody would know."""
        late = time.monotonic() - self._began > _PLACED_S
        if self._told or not late or self._placed():
            return ""
        self._told = True
        return "no trial could be placed yet: other jobs hold the cluster. Waiting for them"

    def leave(self) -> None:
        """End Tune's loop at once, whatever its workers do.

        Whoever stops Ray and lives on needs this: a thread that waits for an answer of a Ray that
        is gone makes Ray end the process a minute later.
        """
        self._end_loop()
        self.join(_LEAVE_S)

    def run(self) -> None:
        try:
            self._fit()
        except Exception as error:
            self.error = error

    def _fit(self) -> None:
        from ray import tune
        from ray.tune.execution import class_cache

        # Tune hands the driver's AWS keys over to its workers, and Ray writes them into its logs.
        # A worker on this machine has them anyway, one elsewhere those of its own node.
        handed = class_cache.ENV_VARS_TO_PROPAGATE
        handed.difference_update([name for name in handed if name.startswith("AWS_")])
        # What goes wrong in a worker is told by the Coordinator; Tune would add its own traceback.
        for name in ("ray", "ray.tune", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from orchestrator.workers.distributed import GroupWorker
        from orchestrator.workers.tune_searcher import Deaths, LeavesAtOnce, WorkerSearcher
        from orchestrator.workers.worker import Worker

        deaths = Deaths(self._coordinator)
        self._placed = lambda: deaths.placed
        leaves = LeavesAtOnce()
        self._end_loop = leaves.leave
        one = {"CPU": self._placement.cpus, "GPU": self._placement.gpus}
        is_group = self._placement.devices > 1  # its processes take the devices, not it
        trainable = tune.with_resources(
            bound(GroupWorker if is_group else Worker, self._coordinator, self._config),
            next_to_nothing_here() if is_group else one,
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=WorkerSearcher(self._coordinator, self._slots), num_samples=-1
            ),
            run_config=tune.RunConfig(
                name="workers",
                storage_path=str(self._scratch),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                # A dead worker is not tried again: the searcher suggests a new one, where there is
                # room. Each trial's own budget of failures is the Coordinator's.
                failure_config=tune.FailureConfig(max_failures=0),
                callbacks=[deaths, leaves],
                progress_reporter=tune.CLIReporter(),  # a notebook's would clear the cell
                verbose=0,
                log_to_file=False,
            ),
        )
        tuner.fit()


def bound(kind: type, coordinator: CoordinatorActor, worker_config: WorkerConfig) -> type:
    """The class of workers with what all of them are given.

    `tune.with_parameters` would keep it in Ray's object store: when a signal ends that with the
    rest of Ray, Ray tries to write there that it is lost, cannot, and ends the driver with code 1.
    """

    class Bound(kind):  # type: ignore[misc]
        def setup(self, config: Mapping[str, Any]) -> None:
            super().setup(config, coordinator, worker_config)

    return Bound


def next_to_nothing_here() -> dict[str, float]:
    """What a worker asks for that holds no device, so that it is placed on the driver's node.

    Ray gives each node a resource that bears its address.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return {f"node:{node['NodeManagerAddress']}": _NEXT_TO_NOTHING}
