"""`sweep=lr_grid` from the command to the table: python -m benchmarks.lr_grid"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import Cost, ledger, machine, sweep, table

TARGET_S, TARGET_MB = 120, 6 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lr_grid", description=__doc__)
    parser.add_argument("--cpus", type=int, default=2, help="trials at once (default: 2)")
    parser.add_argument("overrides", nargs="*", help="more overrides, such as tracking=off")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        words = ["sweep=lr_grid", "tracking=offline", *asked.overrides]
        cost = sweep(run_dir, *words, cpus=asked.cpus)
        spent = stages(run_dir, cost)
    print(machine())
    print(
        table(
            ("lr_grid, 8 trials", "measured", "target"),
            ("command to table", f"{cost.seconds:.0f} s", f"under {TARGET_S} s"),
            *((f"- {stage}", f"{seconds:.0f} s", "") for stage, seconds in spent.items()),
            ("CPU time of all processes", f"{cost.cpu_s:.0f} s", ""),
            ("memory of all processes", f"{cost.peak_mb:,.0f} MiB", f"under {TARGET_MB:,} MiB"),
        )
    )


def stages(run_dir: Path, cost: Cost) -> Mapping[str, float]:
    """Where the wall clock went, by the times in the ledger."""
    events = ledger(run_dir)
    dry_run = next(e["time"] for e in events if e["event"] == "attempt")
    starts = [e["time"] for e in events if e["event"] == "start"]
    ends = [e["time"] for e in events if e["event"] == "end"]
    return {
        "config, data, Ray, workers start, one step": dry_run - cost.began,
        "first trial starts": min(starts) - dry_run,
        "training": max(ends) - min(starts),
        "best proven, books closed": cost.began + cost.seconds - max(ends),
    }


if __name__ == "__main__":
    main()
