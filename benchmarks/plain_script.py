"""16 trials x 100 steps, a plain script against the sweep: python -m benchmarks.plain_script

Same base, rows, batch, LoRA, evaluations and checkpoints, two trials at once, one thread each;
alternating, medians.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import machine, run

ROUNDS = 2
SPACE = (
    "sweep.space={trainer.learning_rate: choice(1e-5,3e-5,1e-4,2e-4,3e-4,5e-4,1e-3,2e-3), "
    "trainer.lr_scheduler_type: choice(constant_with_warmup,cosine)}"
)


def main() -> None:
    plain, ours = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as scratch:
            words = [sys.executable, "-m", "benchmarks.plain_ray_trl", f"{scratch}/tune"]
            plain.append(run(words, cwd=Path(scratch)).seconds)
        with tempfile.TemporaryDirectory() as scratch:
            words = [sys.executable, "-m", "orchestrator", "sweep=lr_grid", "tracking=off", SPACE]
            words += ["sweep.budget.examples=800", f"run_dir={scratch}/run"]
            ours.append(run(words, cwd=Path(scratch)).seconds)
    before, after = statistics.median(plain), statistics.median(ours)
    print(machine())
    print("| 16 trials x 100 steps | seconds | ratio |")
    print("| --- | --- | --- |")
    print(f"| plain Ray Tune + SFTTrainer script | {before:.0f} | 1.0 |")
    print(f"| python -m orchestrator | {after:.0f} | {before / after:.2f} times as fast |")


if __name__ == "__main__":
    main()
