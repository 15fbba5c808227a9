"""Timing and memory of a command's whole process tree."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.5


@dataclass(frozen=True)
class Cost:
    """Wall seconds from the command to its end, and the tree's peak memory in MiB (sum of PSS)."""

    seconds: float
    peak_mb: float


def run(command: Sequence[str], *, cwd: Path) -> Cost:
    """Run a command with one thread a process and measure it.

    Raises:
        SystemExit: the command failed; its output is shown.
    """
    env = dict(os.environ, OMP_NUM_THREADS="1")
    began = time.perf_counter()
    with open(cwd / "output.txt", "a+", encoding="utf-8") as output:
        child = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=output)
        peak = 0.0
        while child.poll() is None:
            time.sleep(_SAMPLE_S)
            peak = max(peak, _tree_mb(child.pid))
        seconds = time.perf_counter() - began
        if child.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)} ended with {child.returncode}:\n{output.read()[-3000:]}")
    return Cost(seconds, peak)


def machine() -> str:
    """What it was measured on, in words."""
    import torch

    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, Python {platform.python_version()}, torch {torch.__version__}"


def _tree_mb(root: int) -> float:
    parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
    tree = {root}
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grew = bool(more)
    return sum(_pss_kb(pid) for pid in tree) / 1024


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0  # it ended while we looked


def _pss_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass  # it ended while we looked
    return 0
