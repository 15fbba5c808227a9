"""A worker: the process that Tune places on a device, and that trains one trial after another.

Imports, the tokenized data and the process itself are paid for once per device, not once per trial.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from orchestrator.cluster.gpus import cannot_use, keep_kernels, let_segments_grow
from orchestrator.cluster.preemption import DrainWatch, PreemptionWatch
from orchestrator.storage.worker_files import WorkerFiles
from orchestrator.workers.worker_config import WorkerConfig

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor

_SIT_S = 2.0


class Worker(tune.Trainable):  # type: ignore[misc]
    """One Tune trial: asks for jobs until there are none, then is done."""

    def setup(
        self, config: Mapping[str, Any], coordinator: CoordinatorActor, worker_config: WorkerConfig
    ) -> None:
        self._coordinator = coordinator
        self._config = worker_config
        self._name = f"worker {config['worker']}"
        settle_in(worker_config)
        self._watch = PreemptionWatch(ray.get_runtime_context().get_node_id())
        self._where = f"{socket.gethostname()}:{os.getpid()}"

    def step(self) -> dict[str, Any]:
        files = self._config.files()
        missing = missing_here(self._config, files)
        if missing:
            sit_out(self._coordinator, self._name, missing, self._watch)
            return {"done": True}
        from orchestrator.workers.trial_loop import TrialLoop

        TrialLoop(
            self._coordinator, self._config, self._name, self._where, files, self._watch
        ).work()
        self._coordinator.worker_left(self._name)
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials commit their own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a new worker asks for its work."""


def missing_here(worker_config: WorkerConfig, files: WorkerFiles) -> str:
    """Why no worker of this node can train; empty if one can. Also keeps kernels in the folder."""
    host = socket.gethostname()
    if not files.is_usable:
        return f"run_dir cannot be seen from node {host}"
    why = cannot_use(worker_config.gpus)
    if why:
        return f"node {host} {why}"
    if worker_config.gpus:
        keep_kernels(files.folder)
    return ""


def sit_out(coordinator: CoordinatorActor, worker: str, why: str, watch: DrainWatch) -> None:
    """Idle on this node, so that Tune does not start another worker here that could not train."""
    coordinator.report_unusable(worker, why)
    while not (watch.is_preempted or coordinator.is_done()):
        time.sleep(_SIT_S)


def settle_in(worker_config: WorkerConfig) -> None:
    """Set what must be set before torch is imported."""
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not worker_config.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else torch would see every GPU of the node
    let_segments_grow()
    import torch

    if 0 < worker_config.gpus < 1 and torch.cuda.is_available():
        # Those who share a GPU would fill what the others count on.
        torch.cuda.set_per_process_memory_fraction(worker_config.gpus)

    torch.set_num_threads(max(1, int(worker_config.cpus)))
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError:
        pass  # torch ran before us in this process: its pool stands
