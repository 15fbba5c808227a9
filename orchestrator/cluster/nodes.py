"""Finds the nodes of a cluster that can take part, and notices when none has room."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.cluster.preemption import draining_nodes
from orchestrator.cluster.signals import ANSWER_S
from orchestrator.storage.folder_token import sees_run_folder
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import SweepError

_SLOTS_EVERY_S = 1.0
_NOTE_S = 10.0
_PATIENCE_S = 600.0
_LOOK_S = 60.0  # a node starts a process to answer


def alive_nodes() -> list[Mapping[str, Any]]:
    """The nodes that may take a trial now."""
    import ray

    leaving = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


class CapacityWatch(threading.Thread):
    """Watches for a cluster that has lost every node with room for a trial.

    Nodes come back, on spot instances; but no sweep waits for them for ever. The watch has its own
    thread, since calls of Ray block if its head is gone.
    """

    STOP = Stop(cause=Cause.NO_ROOM)

    def __init__(self, slots: Callable[[], int]) -> None:
        super().__init__(name="capacity", daemon=True)
        self._slots = slots
        self._since: float | None = None
        self._told = False
        self._over = threading.Event()

    def __enter__(self) -> CapacityWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(ANSWER_S)  # as `Heartbeat` does

    def run(self) -> None:
        while not self._over.wait(_SLOTS_EVERY_S):
            self.look()

    def look(self) -> None:
        if self._slots() > 0:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since there was room."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def is_over(self) -> bool:
        return self.seconds > _PATIENCE_S

    def news(self) -> str:
        """What to tell the user now; each line is given once."""
        is_short = self.seconds > _NOTE_S
        if is_short == self._told:
            return ""
        self._told = is_short
        if not is_short:
            return "a node has joined that has room: the sweep goes on"
        return f"{self.STOP}: waiting {_PATIENCE_S / 60:.0f} minutes for one to join"


@dataclass(frozen=True, kw_only=True)
class Look:
    """One node's answer; `missing` is empty if the node can take part."""

    node: str
    host: str
    missing: str


def require_nodes(root: Path, word: str, *, has_store: bool, on_gpus: bool) -> list[str]:
    """Ask each node whether it can take part; returns a line for each that cannot.

    Args:
        has_store: there are copies of the run folder, for nodes that do not see it.
        on_gpus: trials train on GPUs; nodes without one are not asked.

    Raises:
        SweepError: no node can take part.
    """
    looks = _look_everywhere("" if has_store else str(root), word, on_gpus)
    unfit = [look for look in looks if look.missing]
    lines = [f"node {look.host} takes no trials: {look.missing}" for look in unfit]
    if looks and len(unfit) == len(looks):
        raise SweepError("; ".join(lines))
    return lines


def _look_everywhere(root: str, word: str, on_gpus: bool) -> list[Look]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in alive_nodes():
        if not node["Resources"].get("CPU") or (on_gpus and not node["Resources"].get("GPU")):
            continue  # no trial would go there
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        look = ray.remote(_look).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        asked[look.remote(root, word, on_gpus)] = node
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_S)
    return [_answer(call, asked[call]) for call in done] + [
        Look(node=asked[call]["NodeID"], host=_name(asked[call]), missing="it does not answer")
        for call in late
    ]


def _answer(call: Any, node: Mapping[str, Any]) -> Look:
    import ray

    try:
        missing = ray.get(call)
    except ray.exceptions.RayError as error:
        words = str(getattr(error, "cause", None) or error).strip().splitlines() or ["unknown"]
        missing = f"it cannot run this checkout ({words[-1][:200]})"
    return Look(node=node["NodeID"], host=_name(node), missing=missing)


def _look(root: str, word: str, on_gpus: bool) -> str:
    """What this node lacks. Runs on the node: importing it shows that the packages are there."""
    build = version("torch") if on_gpus else ""  # from a disk that is slow, torch takes a minute
    if build.endswith("+cpu"):
        return f"its torch {build} was built without CUDA"
    if not root:
        return ""
    here = Path(root)
    if sees_run_folder(here, word):
        return "" if os.access(here, os.W_OK) else f"it may not write to {root}"
    why = "has another folder of that name" if here.exists() else "does not see it"
    return f"run_dir {root} is not shared, this node {why}; storage=... would do without"


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeManagerHostname") or node["NodeManagerAddress"])
