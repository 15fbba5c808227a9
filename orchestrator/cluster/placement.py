"""Places workers: how many run at once, on which devices, with how many CPUs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cluster.gpus import idle_beside
from orchestrator.cluster.limits import usable_memory_mb
from orchestrator.cluster.nodes import alive_nodes
from sweeps.config.spec import ClusterSpec, EngineSpec
from sweeps.core.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The resources of a worker, and how many workers fit.

    Attributes:
        memory_mb: main memory of each if its node is full.
    """

    cpus: float
    gpus: float
    memory_mb: float
    devices: int
    slots: int
    nodes: int
    where: str


def place(
    engine: EngineSpec,
    cluster: ClusterSpec,
    most: int = 10**6,
    nodes: Sequence[Mapping[str, float]] | None = None,
) -> Placement:
    """How many workers fit on the cluster as it is now.

    Args:
        most: workers that there is work for.
        nodes: the resources of each node; None asks Ray, which must have been started.

    Raises:
        ConfigError: not even one fits; the message says what there is.
    """
    if nodes is None:
        nodes = [node["Resources"] for node in alive_nodes()]
    seen = int(sum(node.get("GPU", 0) for node in nodes))
    gpus, idle = engine.gpus_per_trial, ""
    if gpus and cluster.kind == "local":
        idle = idle_beside(seen, engine, cluster)
    if gpus == "auto":
        gpus = 1.0 if seen and not idle else 0.0
    gpus = share_of_gpu(gpus, seen, most)
    here_each = [slots_of(node, engine.cpus_per_trial, gpus) for node in nodes]
    devices = sum(here_each)
    here = "this machine" if cluster.kind == "local" else f"the largest of {len(nodes)} nodes"
    if devices < 1:
        raise ConfigError(_too_much(engine.cpus_per_trial, gpus, nodes, here))
    slots = devices // engine.devices_per_trial
    if slots < 1:
        raise ConfigError([_too_many(engine.devices_per_trial, devices)])
    what = f"{gpus:.3g} GPU" if gpus else f"{engine.cpus_per_trial:g} CPU"
    if engine.devices_per_trial > 1:
        what = f"{engine.devices_per_trial} x {what}"
    what += " each"
    if 0 < gpus < 1:
        what += f": {int(1 / gpus + 1e-9)} share a GPU, which Ray fills before the next"
    where = "this machine" if cluster.kind == "local" else f"{len(nodes)} nodes of the cluster"
    # Of a job's groups within the machine's, Ray sees the outermost alone.
    limit = usable_memory_mb() * 2**20 if cluster.kind == "local" else math.inf
    shares = [
        min(node.get("memory", math.inf), limit) / min(count, most)
        for node, count in zip(nodes, here_each, strict=True)
        if count
    ]
    return Placement(
        cpus=engine.cpus_per_trial,
        gpus=gpus,
        memory_mb=min(shares) / 2**20,
        devices=engine.devices_per_trial,
        slots=slots,
        nodes=len(nodes),
        where="; ".join(filter(None, [f"{slots} at once on {where}, {what}", idle])),
    )


def _too_many(asked: int, there: int) -> Problem:
    message = f"a trial would wait for ever: there is room for {there} in all."
    return Problem(key="engine.devices_per_trial", value=asked, message=message)


def _too_much(
    cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]], here: str
) -> list[Problem]:
    """What a worker asks for and no node has."""
    problems = []
    for key, name, asked in (
        ("engine.gpus_per_trial", "GPU", gpus),
        ("engine.cpus_per_trial", "CPU", cpus),
    ):
        most = max((node.get(name, 0) for node in nodes), default=0)
        if asked > most:
            message = f"{here} has {most:g} {name}s."
            problems.append(Problem(key=key, value=asked, message=message))
    return problems or [Problem(key="engine", message="no node has both the CPUs and the GPUs.")]


def slots_of(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Workers that one node holds; a fraction of a GPU never spans two."""
    by_cpu = int(node.get("CPU", 0) // cpus)
    if not gpus:
        return by_cpu
    count = int(node.get("GPU", 0))
    by_gpu = count * int(1 / gpus + 1e-9) if gpus < 1 else int(count // gpus)
    return min(by_cpu, by_gpu)


def live_slots(engine: EngineSpec, gpus: float, most: int) -> Callable[[], int]:
    """A function that counts the workers that fit now; it asks Ray once a second at most."""
    seen: tuple[float, int] = (-1.0, 0)

    def count() -> int:
        nonlocal seen
        if time.monotonic() - seen[0] > 1.0:
            nodes = [node["Resources"] for node in alive_nodes()]
            fit = sum(slots_of(node, engine.cpus_per_trial, gpus) for node in nodes)
            seen = (time.monotonic(), min(fit // engine.devices_per_trial, most))
        return seen[1]

    return count


def share_of_gpu(asked: float, gpus: int, most: int) -> float:
    """The fraction of a GPU that each of `most` trials gets: never less than was asked for.

    Ray fills one GPU before it takes the next. With room to spare, larger shares spread the trials.
    """
    if not 0 < asked < 1 or gpus < 1:
        return asked
    on_each = min(int(1 / asked + 1e-9), max(1, math.ceil(most / gpus)))
    return max(asked, 1 / on_each)
