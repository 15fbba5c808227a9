"""A worker: the process that Tune places on a device, and that trains one trial after another.

Imports, the tokenized data and the process itself are paid for once per device, not once per trial.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune

from orchestrator.gpus import cannot_use, keep_kernels, let_segments_grow
from orchestrator.imports import importing, leave_out
from orchestrator.leaving import Lookout, Notice
from orchestrator.shelf import Shelf
from sweeps.spec import Strategy
from sweeps.trial import Decision, Report, State

_SIT_S = 2.0
_LOG_EVERY_S = 0.5  # training rows are sent together, no more often


@dataclass(frozen=True, kw_only=True)
class Post:
    """What a worker needs to know beside its trials.

    Attributes:
        cpus, gpus: of each of its devices.
        lanes: trials that may share its device; 1: each trains alone, with SFTTrainer.
        fits_unknown: `lanes` is a bound; how many fit on the GPU is measured as they come.
        devices: that each trial takes.
        strategy: how they train it together.
        mark: the word in the run folder by which a node knows that it sees the same one; empty
            where there is but one node.
        storage: where copies of the run folder lie; empty for none.
        unneeded: libraries that workers do without.
        optimizers: that are searched: one worker steps each before the first trial.
    """

    root: Path
    examples: int
    cpus: float
    gpus: float
    lanes: int = 1
    fits_unknown: bool = False
    devices: int = 1
    strategy: Strategy = "ddp"
    mark: str = ""
    storage: str = ""
    unneeded: tuple[str, ...] = ("wandb",)
    optimizers: tuple[str, ...] = ()


class Worker(tune.Trainable):  # type: ignore[misc]
    """One Tune trial: asks for jobs until there are none, then is done."""

    def setup(self, config: Mapping[str, Any], office: Any, post: Post) -> None:
        self._office = office
        self._post = post
        self._name = f"worker {config['worker']}"
        settle_in(post)
        self._notice = Notice(ray.get_runtime_context().get_node_id())
        self._where = f"{socket.gethostname()}:{os.getpid()}"

    def step(self) -> dict[str, Any]:
        shelf = Shelf(self._post.root, self._post.mark, self._post.storage)
        missing = missing_here(self._post, shelf)
        if missing:
            sit_out(self._office, self._name, missing, self._notice)
            return {"done": True}
        with importing():
            from orchestrator.bench import Bench

        Bench(self._office, self._post, self._name, self._where, self._notice, shelf).work()
        ray.get(self._office.left.remote(self._name))
        return {"done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials commit their own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a new worker asks for its work."""


def missing_here(post: Post, shelf: Shelf) -> str:
    """Why no worker of this node can train; empty if one can. What it needs is made ready."""
    host = socket.gethostname()
    if not shelf.is_usable:
        return f"run_dir cannot be seen from node {host}"
    why = cannot_use(post.gpus)
    if why:
        return f"node {host} {why}"
    if post.gpus:
        keep_kernels(shelf.folder)
    return ""


def sit_out(office: Any, worker: str, why: str, notice: Lookout) -> None:
    """Keep the place of a worker of a node on which none can train, and do nothing."""
    ray.get(office.sits_out.remote(worker, why))
    while not (notice.is_given or ray.get(office.is_done.remote())):
        time.sleep(_SIT_S)


def settle_in(post: Post) -> None:
    """Set what must be set before torch is imported."""
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    leave_out(post.unneeded)
    if not post.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else torch would see every GPU of the node
    let_segments_grow()
    import torch

    if 0 < post.gpus < 1 and torch.cuda.is_available():
        # Those who share a GPU would fill what the others count on.
        torch.cuda.set_per_process_memory_fraction(post.gpus)

    torch.set_num_threads(max(1, int(post.cpus)))
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError:
        pass  # torch ran before us in this process: its pool stands


@dataclass
class Line:
    """A trial's observer: carries its words to the Coordinator.

    Rows of training go out without waiting; reports wait for their decision.
    """

    office: Any
    worker: str
    where: str
    key: str
    device: str
    notice: Lookout | None = None
    shelf: Shelf | None = None
    attempt: int = 0
    _rows: list[Mapping[str, float]] = field(default_factory=list)
    _sent: float = 0.0
    _answer: Any = None
    _stop: bool = False

    def begin(self, step: int, reports: list[Report]) -> bool:
        attempt = ray.get(
            self.office.start.remote(self.worker, self.key, self.where, self.device, step, reports)
        )
        self.attempt = attempt or 0
        return attempt is not None

    def wants_base(self) -> bool:
        return bool(ray.get(self.office.claim_base.remote(self.key, self.attempt)))

    def log(self, row: Mapping[str, float]) -> Decision:
        self._rows.append(row)
        if time.monotonic() - self._sent >= _LOG_EVERY_S:
            self._send()
        return Decision.STOP if self._stop or self._has_to_leave else Decision.CONTINUE

    def report(self, report: Report) -> Decision:
        self._send()
        decision: Decision = ray.get(self.office.report.remote(self.key, self.attempt, report))
        if decision is Decision.CONTINUE and self._has_to_leave:
            return Decision.STOP
        return decision

    @property
    def _has_to_leave(self) -> bool:
        """The node is about to go: the trial commits and goes on elsewhere."""
        return self.notice is not None and self.notice.is_given

    def may_commit(self) -> None:
        ray.get(self.office.may_commit.remote(self.key, self.attempt))

    def committed(self, step: int, size_bytes: int) -> None:
        if self.shelf is not None:
            self.shelf.committed(self.key, step, self.attempt)
        ray.get(self.office.committed.remote(self.key, self.attempt, step, size_bytes))

    def end(self, state: State, **more: Any) -> None:
        if self.attempt == 0:
            return
        self._send()
        ending = {"state": state, **more}
        ray.get(self.office.end.remote(self.worker, self.key, self.attempt, ending))

    def out_of_memory(self, reason: str, error: str) -> None:
        """To be tried again with a smaller micro-batch, or ended, as the Coordinator says."""
        self._send()
        call = self.office.out_of_memory
        ray.get(call.remote(self.worker, self.key, self.attempt, reason, error))

    def _send(self) -> None:
        """Hand the rows over; the answer is read the next time, so that nobody waits for it."""
        if self._answer is not None:
            self._stop = ray.get(self._answer) is Decision.STOP
            self._answer = None
        if self._rows:
            self._answer = self.office.log.remote(self.key, self.attempt, self._rows)
            self._rows = []
            self._sent = time.monotonic()
