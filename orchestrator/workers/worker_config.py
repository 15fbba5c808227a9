"""What a worker is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.storage.worker_files import WorkerFiles
from sweeps.config.spec import Kernels, Strategy


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """The settings of a worker, the same for all workers of a sweep.

    Attributes:
        cpus, gpus: of each of its devices.
        lanes: trials that may share its device; 1: each trains alone, with SFTTrainer.
        fits_unknown: `lanes` is a bound; how many fit on the GPU is measured as they come.
        kernels: of the base of lanes.
        devices: that each trial takes.
        strategy: how they train it together.
        folder_token: by which a node knows that it sees the same run folder; empty if there is but
            one node.
        storage: where copies of the run folder lie; empty for none.
        optimizers: that are searched: one worker steps each before the first trial.
    """

    root: Path
    examples: int
    cpus: float
    gpus: float
    lanes: int = 1
    fits_unknown: bool = False
    kernels: Kernels = "torch"
    devices: int = 1
    strategy: Strategy = "ddp"
    folder_token: str = ""
    storage: str = ""
    optimizers: tuple[str, ...] = ()

    def files(self) -> WorkerFiles:
        """Where a worker of this node finds data and checkpoints."""
        return WorkerFiles(self.root, self.folder_token, self.storage)
