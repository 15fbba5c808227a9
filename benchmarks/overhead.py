"""What a trial of one step costs, everything counted: python -m benchmarks.overhead

One hundred trials of one step, one at a time: suggested, sent to a worker, model loaded, one step,
one evaluation on 20 rows, checkpoint made durable, ledger and trials.csv written. All of that
together is an upper bound for what orchestration adds to a trial.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.measure import ledger, machine, sweep, table

TARGET_S = 0.5
_SETTINGS = (
    *("engine=solo", "tracking=off", "sweep.budget.examples=8", "sweep.evaluations=1"),
    *("trainer.lr_scheduler_type=constant", "trainer.warmup_steps=0", "data.eval_limit=20"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    asked = parser.parse_args()
    rates = ",".join(f"{(index + 1) * 1e-6:.6f}" for index in range(asked.trials))
    space = f"sweep.space={{trainer.learning_rate: 'choice({rates})'}}"
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        sweep(run_dir, "sweep=lr_grid", *_SETTINGS, space, cpus=1)
        ends = [event["time"] for event in ledger(run_dir) if event["event"] == "end"]
    # From the first trial's end: its start pays for Ray and imports, once a sweep.
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    print(machine())
    print(
        table(
            (f"{asked.trials} trials of 1 step", "measured", "target"),
            ("seconds a trial, training included", f"{seconds:.2f}", f"under {TARGET_S}"),
        )
    )


if __name__ == "__main__":
    main()
