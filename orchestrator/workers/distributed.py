"""A worker whose trials each take several devices: Ray Train's TorchTrainer inside a Tune trial.

The processes are started once and train one trial after another, as other workers do. Rank 0 asks
for jobs and speaks for all; where one of them dies or hangs, all end, and the trial goes on from
its last checkpoint in a new group. Where the node of one is about to go, the trial commits, and all
leave together.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from orchestrator.cluster.preemption import DrainWatch
from orchestrator.workers.worker import missing_here, settle_in, sit_out
from orchestrator.workers.worker_config import WorkerConfig

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor

_HANG_S = "SWEEPS_HANG_S"  # how long a rank may be silent while the others wait for it
_HANG_DEFAULT_S = 600.0
_IDLE = timedelta(days=7)  # between trials, ranks wait for the next one as long as it takes


class GroupWorker(tune.Trainable):  # type: ignore[misc]
    """One Tune trial, which holds no device itself: the group's processes do.

    It lives on the driver's node, and so does all that Ray Train adds.
    """

    def setup(
        self, config: Mapping[str, Any], coordinator: CoordinatorActor, worker_config: WorkerConfig
    ) -> None:
        self._loop: dict[str, Any] = {
            "coordinator": coordinator,
            "worker_config": worker_config,
            "worker": f"worker {config['worker']}",
        }
        self._config = worker_config

    def step(self) -> dict[str, Any]:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from orchestrator.workers.gloo_interface import NodeNetwork

        worker_config = self._config
        resources = {
            "CPU": worker_config.cpus,
            **({"GPU": worker_config.gpus} if worker_config.gpus else {}),
        }
        scratch = tempfile.mkdtemp(prefix="sweep-group-")
        hang_s = float(os.environ.get(_HANG_S, _HANG_DEFAULT_S))
        try:
            TorchTrainer(
                train_rank,
                train_loop_config=self._loop,
                torch_config=NodeNetwork(
                    backend="cpu:gloo,cuda:nccl" if worker_config.gpus else "gloo",
                    timeout_s=int(hang_s),
                ),
                scaling_config=ScalingConfig(
                    num_workers=worker_config.devices,
                    use_gpu=bool(worker_config.gpus),
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    name="group",
                    storage_path=scratch,
                    # A new group is a new worker, which the Coordinator has to know of.
                    failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        self._loop["coordinator"].worker_left(self._loop["worker"])
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials commit their own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a new group asks for its work."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """The node of a rank, and why it cannot train there; empty if it can."""

    node: str
    missing: str


def train_rank(config: Mapping[str, Any]) -> None:
    """Run one process of a group from its start to its end."""
    coordinator, worker_config, worker = (
        config["coordinator"],
        config["worker_config"],
        config["worker"],
    )
    settle_in(worker_config)
    import torch.distributed as dist

    from orchestrator.workers.distributed_loop import Follower, Leader
    from trainers.trial.ranks import Ranks

    between = Ranks.here(dist.new_group(backend="gloo", timeout=_IDLE))
    files = worker_config.files()
    node, host = ray.get_runtime_context().get_node_id(), socket.gethostname()
    seats = between.each(lambda: Seat(node=node, missing=missing_here(worker_config, files)))
    # Ray Train runs this in a thread, where no signal can be taken: a draining node is all there is
    # to look out for.
    watch = DrainWatch(*(seat.node for seat in seats)) if between.is_first else None
    unfit = [seat.missing for seat in seats if seat.missing]
    if unfit:
        if watch is not None:
            sit_out(coordinator, worker, unfit[0], watch)
        between.wait()
        return
    where = f"{host}:{os.getpid()}"
    role = Leader if between.is_first else Follower
    role(coordinator, worker_config, worker, where, files, watch, between=between).work()
