"""A table of our own for the replays: python -m benchmarks.own_table RUN_DIR TABLE.csv

Trains a whole grid on the embedded model and data, 192 settings with two seeds each and eight
evaluations: rates x schedules x accumulations x optimizers, which no public table covers. Half an
hour on two cores; the same command goes on with a run folder that has begun. The table in
`benchmarks/data/embedded_grid.csv` is one of these; `benchmarks.replay --table` reads it.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.result_tables import KEYS
from sweeps.core.trial import State
from sweeps.ledger.history import History, read_history
from sweeps.storage.run_folder import RunFolder

GRID = (
    "sweep.space={trainer.learning_rate: choice(1e-4, 3e-4, 1e-3, 3e-3), "
    "trainer.lr_scheduler_type: choice(constant_with_warmup, linear, cosine, warmup_stable_decay), "
    "trainer.gradient_accumulation_steps: choice(1, 2, 4), "
    "trainer.optim: choice(adamw_torch, adafactor, rmsprop, sgd)}"
)
WORDS = (
    *("sweep=base", GRID, "sweep.repeats=2", "trainer.lr_scheduler_kwargs.num_decay_steps=0.2"),
    "tracking=off",
)


def main() -> None:
    run_dir, table = map(Path, sys.argv[1:])
    subprocess.run([sys.executable, "-m", "orchestrator", *WORDS, f"run_dir={run_dir}"], check=True)
    rows = list(lines(read_history(RunFolder(run_dir).ledger)))
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def lines(history: History) -> Iterator[dict[str, Any]]:
    """A line for each evaluation of each trial that completed or diverged."""
    for record in history.trials.values():
        if record.state not in (State.COMPLETED, State.DIVERGED):
            continue
        values = record.values
        setting = {column: values[key] for column, (key, _) in KEYS.items() if key in values}
        told = {"model": "embedded", **setting, "repeat": record.repeat, "status": record.state}
        if record.state is State.DIVERGED:
            yield {**told, "evaluation": 1, "test_nll": ""}
            continue
        for index, report in sorted(record.reports.items()):
            loss = report.metrics["eval_loss"]
            yield {**told, "evaluation": index, "test_nll": f"{loss:.6f}"}


if __name__ == "__main__":
    main()
