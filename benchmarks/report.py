"""How long report.html takes to write, and how large it is: python -m benchmarks.report

Ledgers of sweeps as they come out of real ones, pruned, diverged and failed trials among them, each
trial with 8 reports and 200 rows of training metrics; nothing is trained. One line for each number
of trials: seconds of the whole verb in a process of its own, imports included; its CPU seconds; the
page's size.

    python -m benchmarks.report --trials 24 100 1000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import table

ROWS = 200  # of each metrics.jsonl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[24, 100, 1000])
    counts = parser.parse_args().trials
    rows = []
    for trials in counts:
        with tempfile.TemporaryDirectory() as place:
            rows.append([trials, *measured(trials, Path(place) / "run")])
    print(table(["trials", "seconds", "CPU s", "MB"], *rows))


def measured(trials: int, root: Path) -> list[str]:
    """Seconds and CPU seconds to write the page of so many trials, and its size in MB."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.shown_sweeps import ShownSweep

    sweep = ShownSweep(name="asha", trials=trials, prunes=True, rows=ROWS, slots=8)
    folder = sweep.write(root)
    began, worked = time.perf_counter(), _worked()
    subprocess.run([sys.executable, "-m", "orchestrator", "report", str(root)], check=True)
    megabytes = folder.report.stat().st_size / 1e6
    return [f"{x:.1f}" for x in (time.perf_counter() - began, _worked() - worked, megabytes)]


def _worked() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
