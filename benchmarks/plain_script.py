"""16 trials x 100 steps, beside a plain Ray Tune script: python -m benchmarks.plain_script

Both train the embedded model on the same rows with the same LoRA, batch, schedules and 8
evaluations on 300 rows with a checkpoint at each; as many trials at once, one thread each. The
script does what Tune does by itself: a fresh process for each trial, which imports, loads and
tokenizes (its datasets are cached on disk between trials), and evaluates in batches of 32. The
sweep keeps its workers and tokenizes once; it also measures the base model, checks every step for
finite numbers, makes each checkpoint durable and proves the best one. They take turns, and medians
are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import ROOT, Cost, machine, run, sweep, table

SPACE = (
    "sweep.space={trainer.learning_rate: choice(1e-4,3e-4,1e-3,3e-3), "
    "trainer.lr_scheduler_type: choice(constant,constant_with_warmup,linear,cosine)}"
)
TARGET = 1.7


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plain_script",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=2, help="runs of each (default: 2)")
    parser.add_argument("--cpus", type=int, default=2, help="trials at once (default: 2)")
    asked = parser.parse_args()
    plain, ours = [], []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            plain.append(run_plain(Path(scratch), asked.cpus))
        with tempfile.TemporaryDirectory() as scratch:
            ours.append(run_ours(Path(scratch), asked.cpus))
    print(machine())
    print(comparison(plain, ours))


def run_plain(scratch: Path, cpus: int) -> Cost:
    write_rows(scratch)
    os.environ["HF_DATASETS_CACHE"] = str(scratch / "cache")
    model = str(ROOT / "trainers" / "tiny_llama")
    script = str(ROOT / "benchmarks" / "plain_ray_trl.py")
    words = [model, str(scratch), str(scratch / "results"), str(cpus)]
    return run([sys.executable, script, *words], folder=scratch)


def run_ours(scratch: Path, cpus: int) -> Cost:
    budget = "sweep.budget.examples=800"
    return sweep(scratch / "run", "sweep=lr_grid", "tracking=off", SPACE, budget, cpus=cpus)


def write_rows(folder: Path) -> None:
    """The rows that the sweep trains and measures on, as a user would have them."""
    from sweeps.spec import DataSpec
    from trainers.rows import read
    from trainers.split import split

    spec = DataSpec(source="docstrings", eval_fraction=0.08, eval_limit=300)
    parts = split(spec, read(spec))
    for name, part in (("train", parts.train), ("test", parts.evaluation)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def comparison(plain: Sequence[Cost], ours: Sequence[Cost]) -> str:
    before, after = _median(plain, "seconds"), _median(ours, "seconds")
    cpu_before, cpu_after = _median(plain, "cpu_s"), _median(ours, "cpu_s")
    return table(
        ("16 trials x 100 steps", "seconds", "CPU seconds", "each run, s", "peak MiB"),
        (
            "plain Ray Tune + SFTTrainer script",
            f"{before:.0f}",
            f"{cpu_before:.0f}",
            _each(plain),
            f"{_median(plain, 'peak_mb'):,.0f}",
        ),
        (
            "python -m orchestrator",
            f"{after:.0f}",
            f"{cpu_after:.0f}",
            _each(ours),
            f"{_median(ours, 'peak_mb'):,.0f}",
        ),
        (
            f"times as fast (target {TARGET})",
            f"{before / after:.2f}",
            f"{cpu_before / cpu_after:.2f}",
            "",
            "",
        ),
    )


def _median(costs: Sequence[Cost], name: str) -> float:
    return statistics.median(getattr(cost, name) for cost in costs)


def _each(costs: Sequence[Cost]) -> str:
    return ", ".join(f"{cost.seconds:.0f}" for cost in costs)


if __name__ == "__main__":
    main()
