"""Trials on two ranks, without Ray: two child processes that talk over gloo, on loopback.

Starting them takes as long as a dozen tiny trials, so they train one after another all that they
are given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

WORLD = 2
PATIENCE_S = 500


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial to train in `folder`, from where it stands there.

    Attributes:
        spec: arguments of `training.train_spec`.
        stop_at: the step after which it is told to stop.
    """

    folder: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    strategy: str = "fsdp"
    base: bool = False
    stop_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What rank 0 was told, as `training.Recorder` has it, and how it ended.

    Attributes:
        rows: of the last evaluation, each row's loss and its tokens.
        shared: of the weights that rank 0 held while it trained, the part of the whole.
    """

    begun: int
    trained: list[dict[str, float]]
    measured: list[list[float]]
    base: float | None
    state: str
    commits: list[int]
    shared: float
    rows: list[list[float]]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.trained]


def train(jobs: Sequence[Job], folder: Path) -> list[Result]:
    """Train `jobs` in this order on two ranks; `folder` holds what is said between processes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    run(Path(__file__), folder)
    return [Result(**result) for result in json.loads((folder / "results.json").read_text())]


def run(script: Path, folder: Path) -> None:
    """Run `script` on two ranks, with `folder` as its only argument; it calls `meet`."""
    folder.mkdir(parents=True, exist_ok=True)
    children = [_start(script, rank, folder) for rank in range(WORLD)]
    try:
        codes = [child.wait(PATIENCE_S) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    said = "\n".join(_output(rank, folder).read_text()[-3000:] for rank in range(WORLD))
    assert codes == [0] * WORLD, said


def _start(script: Path, rank: int, folder: Path) -> subprocess.Popen[bytes]:
    with open(_output(rank, folder), "wb") as output:
        return subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, **_environment(rank)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _output(rank: int, folder: Path) -> Path:
    return folder / f"output-{rank}.txt"


def _environment(rank: int) -> dict[str, str]:
    here = Path(__file__).parent
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(map(str, (here.parents[1], here.parent))),
    }


def meet(folder: Path) -> None:
    """Called by each rank first: now they can talk."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=int(os.environ["RANK"]),
        world_size=WORLD,
        timeout=timedelta(seconds=120),
    )


def _rank(folder: Path) -> None:
    import torch.distributed as dist

    meet(folder)
    jobs = [Job(**job) for job in json.loads((folder / "jobs.json").read_text())]
    results = [asdict(_train(job)) for job in jobs]
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def _train(job: Job) -> Result:
    from support import training

    from sweeps.storage.run_folder import RunFolder
    from trainers.sft import trainer as sft_trainer
    from trainers.trial import task as trial_task
    from trainers.trial.ranks import FirstSpeaks, Ranks

    seen = training.Recorder(base=job.base)
    if job.stop_at is not None:
        seen.to_row = training.stop_at(job.stop_at)
    held = _Held()
    task = trial_task.Task(
        key=training.KEY,
        train=training.train_spec(**job.spec),
        examples=training.EXAMPLES,
        folder=RunFolder(Path(job.folder)),
        device="cpu",
        strategy=job.strategy,  # type: ignore[arg-type]
    )
    ranks = Ranks.here()
    with held:
        observer = FirstSpeaks(seen if ranks.is_first else None, ranks)
        outcome = sft_trainer.train(task, training.prepared(), observer)
    # Only the first rank reports.
    losses = seen.reports[-1].row_losses if seen.reports else None
    return Result(
        begun=seen.step or 0,
        trained=seen.trained,
        measured=[list(row) for row in seen.measured],
        base=next((r.metrics["eval_loss"] for r in seen.reports if not r.index), None),
        state=str(outcome.state),
        commits=[step for step, _ in seen.commits],
        shared=held.part,
        rows=[] if losses is None else losses.tolist(),
    )


class _Held:
    """Looks at a trial's model at its first step: which part of its weights this rank holds."""

    part = 1.0

    def __enter__(self) -> None:
        from trainers.sft import trainer as sft_trainer

        self._was = was = sft_trainer.ReportingCallback.on_train_begin

        def look(progress: Any, *args: Any, **kwargs: Any) -> None:
            was(progress, *args, **kwargs)
            weights = list(progress._trainer.model.parameters())
            local = [w.to_local() if hasattr(w, "to_local") else w for w in weights]
            self.part = sum(w.numel() for w in local) / sum(w.numel() for w in weights)

        sft_trainer.ReportingCallback.on_train_begin = look  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        from trainers.sft import trainer as sft_trainer

        sft_trainer.ReportingCallback.on_train_begin = self._was  # type: ignore[method-assign]


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
