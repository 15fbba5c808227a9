"""`sweep=lr_grid` from the command to the table: python -m benchmarks.lr_grid"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.measure import machine, run

TARGET_S, TARGET_MB = 120, 6 * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        words = [sys.executable, "-m", "orchestrator", "sweep=lr_grid", "tracking=offline"]
        cost = run([*words, f"run_dir={scratch}/run"], cwd=Path(scratch))
    print(machine())
    print("| lr_grid, 8 trials | measured | target |")
    print("| --- | --- | --- |")
    print(f"| command to table | {cost.seconds:.0f} s | under {TARGET_S} s |")
    print(f"| memory of all processes | {cost.peak_mb:,.0f} MiB | under {TARGET_MB:,} MiB |")


if __name__ == "__main__":
    main()
