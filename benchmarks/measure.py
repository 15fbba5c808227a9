"""Seconds and memory of a command's whole process tree, and words for what it ran on."""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_SAMPLE_S = 0.5
_WEIGHED = 4  # samples between two looks at memory, for which Linux walks through every page
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command took, Ray's processes included.

    Attributes:
        began: when it was started, seconds since the epoch.
        seconds: wall clock from the command to its end.
        cpu_s: of all processes; what one did in its last half second is not seen.
        peak_mb: the most memory at one moment, sum of PSS, MiB; looked at every two seconds.
    """

    began: float
    seconds: float
    cpu_s: float
    peak_mb: float


def run(command: Sequence[str], *, folder: Path | None = None) -> Cost:
    """Run a command with one thread a process, and measure it.

    Args:
        folder: where it runs; the repository where it is left out.

    Raises:
        SystemExit: the command failed; the end of its output is shown.
    """
    env = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled")
    began = time.time()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        child = subprocess.Popen(command, cwd=folder or ROOT, env=env, stdout=output, stderr=output)
        peak_kb, cpu_ticks = _watch(child)
        seconds = time.time() - began
        if child.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)} ended with {child.returncode}:\n{output.read()[-3000:]}")
    return Cost(
        began=began, seconds=seconds, cpu_s=cpu_ticks / _TICKS_PER_S, peak_mb=peak_kb / 1024
    )


def sweep(run_dir: Path, *overrides: str, cpus: int) -> Cost:
    """Run `python -m orchestrator` on so many CPUs, and measure it."""
    words = [f"run_dir={run_dir}", f"cluster.cpus={cpus}", *overrides]
    return run([sys.executable, "-m", "orchestrator", *words])


def ledger(run_dir: Path) -> list[dict[str, Any]]:
    """What happened in a sweep, in order."""
    return [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]


def machine() -> str:
    """What it was measured on, in words."""
    import torch

    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"{cores} cores (load {load:.1f} at the end), Python {platform.python_version()}, "
        f"torch {torch.__version__}\n"
    )


def table(*rows: Iterable[object]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    rule = "| --- " * lines[0].count(" | ") + "| --- |"
    return "\n".join([lines[0], rule, *lines[1:]])


def _watch(child: subprocess.Popen[str]) -> tuple[int, int]:
    """Peak KiB and CPU ticks of a process and all that came from it, until it ends."""
    peak_kb = 0
    ticks: dict[int, int] = {}
    for sample in itertools.count():
        if child.poll() is not None:
            break
        tree = _tree(child.pid)
        ticks |= {pid: used for pid, used in tree.items() if used >= ticks.get(pid, 0)}
        if sample % _WEIGHED == 0:
            peak_kb = max(peak_kb, sum(_pss_kb(pid) for pid in tree))
        time.sleep(_SAMPLE_S)
    return peak_kb, sum(ticks.values())


def _tree(root: int) -> dict[int, int]:
    """The process and its descendants, with the CPU ticks that each has used."""
    found = {int(path.name): _stat(path) for path in Path("/proc").glob("[0-9]*")}
    tree, size = {root}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {pid for pid, (parent, _) in found.items() if parent in tree}
    return {pid: found[pid][1] for pid in tree if pid in found}


def _stat(process: Path) -> tuple[int, int]:
    """(parent, CPU ticks) of a process; zeros where it ended while we looked."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()  # man 5 proc
        return int(fields[1]), int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return 0, 0


def _pss_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass  # it ended while we looked
    return 0
