"""Counts the CPUs and the memory that this process may use: a container's, not its host's.

The limits are those of control groups (cgroups), versions 1 and 2. A group is bound by the groups
around it, too, so the least of them counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")  # where proc and sys lie


def usable_cpus(root: Path = _ROOT) -> int:
    """CPUs that this process can keep busy: whole ones, but at least 1."""
    groups = _groups("cpu", root)
    quotas = [quota for group in groups for quota in _quotas(group)]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def usable_memory_mb(root: Path = _ROOT) -> float:
    """Main memory in MiB that this process can have."""
    names = ("memory.max", "memory.limit_in_bytes")
    groups = _groups("memory", root)
    limits = [limit for group in groups for name in names for limit in _numbers(group / name)]
    return min([machine_memory_mb(), *(limit / 2**20 for limit in limits)])


def machine_memory_mb() -> float:
    """Main memory of the whole machine, in MiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the groups that this process is in, each with those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2; beside version 1 it has a folder of its own
            tops = ["", "unified"]
        elif controller in controllers.split(","):
            tops = [controller]
        else:
            continue
        for top in tops:
            # A container may see its own group as the top, and be told of the host's path to it.
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(len(parts) + 1):
                yield Path(root, "sys/fs/cgroup", top, *parts[:depth])


def _quotas(group: Path) -> Iterator[float]:
    """CPUs' worth of time that a group may use: a quota of microseconds in each period."""
    old = [_numbers(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    for numbers in (_numbers(group / "cpu.max"), [*old[0], *old[1]]):
        if len(numbers) == 2 and numbers[0] > 0:  # -1 in version 1: no limit
            yield numbers[0] / numbers[1]


def _numbers(file: Path) -> list[float]:
    """The numbers in a file of a group; empty if there is no such file."""
    try:
        words = file.read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [math.inf if word == "max" else float(word) for word in words]
