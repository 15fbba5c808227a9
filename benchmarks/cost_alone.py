"""Whether cost columns mean the same whatever trained the trials: python -m benchmarks.cost_alone

`sweep=accumulation` and `sweep=optimizer`, each three times: packed; solo, as many at once as there
are CPUs; solo, one after another. The first two measure after the trials what training each config
alone costs, the last while it trains. All three should agree within 15%, on a machine that does
nothing else; the exit code is 1 if they do not.

    python -m benchmarks.cost_alone                                 # half an hour on two cores
    python -m benchmarks.cost_alone --sweeps accumulation --examples 256
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import machine, sweep, table

SWEEPS = ("accumulation", "optimizer")
COSTS = ("tokens_per_second", "peak_memory_mb", "optimizer_state_mb")
BOUND = 1.15  # times, between the largest and the smallest of a cost
WAYS = ("packed", "solo", "one by one")
_NOT_KNOBS = ("trainer.learning_rate",)

Rows = dict[str, dict[str, str]]  # of trials.csv, by the trial's key


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", nargs="+", default=SWEEPS, choices=SWEEPS)
    parser.add_argument("--examples", type=int, default=2048, help="of each trial")
    given = parser.parse_args(words)
    worst = 1.0
    for name in given.sweeps:
        with tempfile.TemporaryDirectory() as scratch:
            found = [run(name, way, Path(scratch), given.examples) for way in WAYS]
        lines, apart = compared(found)
        print(f"sweep={name}\n{table(*lines)}\n")
        worst = max(worst, apart)
    print(machine())
    print(f"at most {worst - 1:.0%} apart; {BOUND - 1:.0%} are allowed")
    return 0 if worst <= BOUND else 1


def run(name: str, way: str, scratch: Path, examples: int) -> Rows:
    """The rows of a sweep's trials.csv."""
    run_dir = scratch / way.replace(" ", "_")
    engine = "packed" if way == "packed" else "solo"
    cpus = 1 if way == "one by one" else len(os.sched_getaffinity(0))
    sweep(
        run_dir,
        *(f"sweep={name}", f"engine={engine}", f"sweep.budget.examples={examples}"),
        *("tracking=off", "sweep.evaluations=2"),
        cpus=cpus,
    )
    with open(run_dir / "trials.csv", newline="", encoding="utf-8") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def compared(found: Sequence[Rows]) -> tuple[list[tuple[object, ...]], float]:
    """A line for each config and cost, in the order of the trials; and the largest ratio."""
    lines: list[tuple[object, ...]] = [("config", "cost", *WAYS, "apart")]
    worst = 1.0
    for key, row in sorted(found[0].items(), key=lambda item: int(item[1]["number"])):
        named = {k.rpartition(".")[2]: v for k, v in row.items() if k.startswith("trainer.")}
        config = " ".join(f"{k}={v}" for k, v in named.items() if f"trainer.{k}" not in _NOT_KNOBS)
        for cost in COSTS:
            values = [float(rows[key][cost] or "nan") for rows in found]
            apart = max(values) / min(values) if min(values) > 0 else 1.0
            worst = max(worst, apart)
            lines.append((config, cost, *(f"{value:,.2f}" for value in values), f"{apart:.2f}"))
    return lines, worst


if __name__ == "__main__":
    sys.exit(main())
