"""A worker whose trials each take several devices: Ray Train's TorchTrainer inside a Tune trial.

The processes are started once and train one trial after another, as other workers do. Rank 0 asks
for jobs and speaks for all; where one of them dies or hangs, all end, and the trial goes on from
its last checkpoint in a new group.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ray import tune

from orchestrator.imports import importing
from orchestrator.worker import Post, settle_in

_HANG_S = "SWEEPS_HANG_S"  # how long a rank may be silent while the others wait for it
_HANG_DEFAULT_S = 600.0
_IDLE = timedelta(days=7)  # between trials, ranks wait for the next one as long as it takes


class GroupWorker(tune.Trainable):  # type: ignore[misc]
    """One Tune trial, which holds no device itself: the group's processes do."""

    def setup(self, config: Mapping[str, Any], office: Any, post: Post) -> None:
        self._loop = {"office": office, "post": post, "worker": f"worker {config['worker']}"}
        self._post = post

    def step(self) -> dict[str, Any]:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        post = self._post
        resources = {"CPU": post.cpus, **({"GPU": post.gpus} if post.gpus else {})}
        scratch = tempfile.mkdtemp(prefix="sweep-group-")
        hang_s = float(os.environ.get(_HANG_S, _HANG_DEFAULT_S))
        try:
            TorchTrainer(
                train_rank,
                train_loop_config=self._loop,
                torch_config=TorchConfig(
                    backend="cpu:gloo,cuda:nccl" if post.gpus else "gloo", timeout_s=int(hang_s)
                ),
                scaling_config=ScalingConfig(
                    num_workers=post.devices,
                    use_gpu=bool(post.gpus),
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    name="group",
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=0),
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials commit their own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a new group asks for its work."""


def train_rank(config: Mapping[str, Any]) -> None:
    """What each process of a group does, from its start to its end."""
    settle_in(config["post"])
    with importing():
        import torch.distributed as dist

        from orchestrator.group_bench import Follower, Leader
        from trainers.ranks import Ranks
    between = Ranks.here(dist.new_group(backend="gloo", timeout=_IDLE))
    where = f"{socket.gethostname()}:{os.getpid()}"
    role = Leader if between.is_first else Follower
    role(config["office"], config["post"], config["worker"], where, between).work()
