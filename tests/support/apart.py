"""Two groups of two ranks, one after the other, without Ray: a disk each, a store between them.

The node of the second rank is about to go when the first group is in the middle of its trial; the
second group has the first one's other disk and a new one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support import two_ranks
from support.sweep_events import BOX

WORDS = (
    *("sweep=lr_grid", "sweep.trials=1", "sweep.budget.examples=48", "sweep.evaluations=3"),
    *("data.limit=200", "data.eval_limit=20", "data.max_length=64", "trainer.warmup_steps=0"),
    *("trainer.logging_steps=1", "engine=solo"),
)
EXAMPLES = 48
LEAVES_AT = 3  # the step after which the node is about to go: none with a report
DISKS = ((0, 1), (1, 2))  # of each group, by rank


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a rank saw, of each group.

    Attributes:
        resumed: where its trainer found its checkpoints; empty for none.
        left: what lay in its own folder of trials when it had left.
    """

    resumed: list[str]
    left: list[list[str]]


def run(folder: Path) -> list[Seen]:
    """By rank; the ledger is in `folder`/run, a disk is `folder`/NUMBER."""
    from orchestrator.config.command import read_command
    from sweeps.storage.object_store import Store
    from trainers.data.dataset import prepare

    prepare(read_command(WORDS)[0].train, folder / "data")
    Store(str(folder / "store")).put_folder(folder / "data", "data")
    (folder / "run").mkdir()
    two_ranks.run(Path(__file__), folder)
    return [
        Seen(**json.loads((folder / f"seen-{rank}.json").read_text()))
        for rank in range(two_ranks.WORLD)
    ]


def _rank(folder: Path) -> None:
    import torch.distributed as dist

    from orchestrator.storage.worker_files import WorkerFiles
    from orchestrator.workers import observer
    from trainers.trial.ranks import Ranks

    two_ranks.meet(folder)
    observer._LOG_EVERY_S = 0.0
    between = Ranks.here(dist.new_group(backend="gloo"))
    coordinator = _coordinator(folder) if between.is_first else None
    resumed, left = [""] * len(DISKS), []
    for number, disks in enumerate(DISKS):
        disk = folder / str(disks[between.rank])
        disk.mkdir(exist_ok=True)
        tempfile.tempdir = str(disk)
        files = WorkerFiles(folder / "nowhere", "word", str(folder / "store"))
        with _Looking() as found:
            _loop(folder, between, coordinator, files, number).work()
        resumed[number] = next(iter(found), "")
        left.append(sorted(path.name for path in files.folder.trials.glob("*")))
        if coordinator is not None:
            coordinator.worker_left(f"worker {number}")
    (folder / f"seen-{between.rank}.json").write_text(
        json.dumps(asdict(Seen(resumed=resumed, left=left)))
    )
    if coordinator is not None:
        (folder / "finish.json").write_text(json.dumps(coordinator.finish().proof))
    dist.destroy_process_group()


def _loop(folder: Path, between: Any, coordinator: Any, files: Any, number: int) -> Any:
    from orchestrator.workers.distributed_loop import Follower, Leader
    from orchestrator.workers.worker_config import WorkerConfig

    worker_config = WorkerConfig(
        root=folder / "nowhere",
        examples=EXAMPLES,
        cpus=1,
        gpus=0,
        devices=two_ranks.WORLD,
        folder_token="word",
        storage=str(folder / "store"),
    )
    name, where = f"worker {number}", f"node{number}:1"
    if coordinator is None:
        return Follower(None, worker_config, name, where, files, between=between)  # type: ignore[arg-type]
    watch = _ScriptedWatch(folder / "run", goes=number == 0)
    return Leader(coordinator, worker_config, name, where, files, watch, between=between)  # type: ignore[arg-type]


def _coordinator(folder: Path) -> Any:
    from orchestrator.config.command import read_command
    from orchestrator.coordinator.actor import CoordinatorActor

    spec, space = read_command(WORDS)
    made = CoordinatorActor(spec, space, folder / "run")
    made.begin(BOX)
    return made


class _ScriptedWatch:
    """Of the first group's nodes: one is about to go once the trial has done so many steps."""

    def __init__(self, run_dir: Path, *, goes: bool) -> None:
        self._run_dir = run_dir
        self._goes = goes

    @property
    def is_preempted(self) -> bool:
        files = self._run_dir.glob("trials/*/metrics.jsonl")
        rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        return self._goes and any(row["step"] >= LEAVES_AT for row in rows)


class _Looking:
    """Notes the checkpoints that this rank's trainer goes on from."""

    def __enter__(self) -> list[str]:
        from trainers.sft import trainer as sft_trainer

        self._was = was = sft_trainer.SweepSFTTrainer.train
        found: list[str] = []

        def train(trainer: Any, resume_from_checkpoint: str | None = None) -> Any:
            if resume_from_checkpoint is not None:
                found.append(resume_from_checkpoint)
            return was(trainer, resume_from_checkpoint=resume_from_checkpoint)

        sft_trainer.SweepSFTTrainer.train = train
        return found

    def __exit__(self, *_: object) -> None:
        from trainers.sft import trainer as sft_trainer

        sft_trainer.SweepSFTTrainer.train = self._was


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
