"""What a trial of one step costs beside its training: python -m benchmarks.overhead

One hundred trials of one step, one at a time, through Ray, the Coordinator, the ledger and
trials.csv; then the same trials in a bare loop, which loads, trains, evaluates and writes
checkpoints alike. The difference is orchestration.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import ledger, machine, sweep, table

TARGET_S = 0.5
_SETTINGS = ("engine=solo", "tracking=off", "sweep.budget.examples=8", "sweep.evaluations=1")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    asked = parser.parse_args()
    rates = ",".join(f"{(index + 1) * 1e-6:.6f}" for index in range(asked.trials))
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        space = f"sweep.space={{trainer.learning_rate: 'choice({rates})'}}"
        sweep(run_dir, "sweep=lr_grid", *_SETTINGS, space, "data.eval_limit=20", cpus=1)
        swept = seconds_a_trial(run_dir)
        bare = bare_loop(run_dir, Path(scratch) / "bare")
    print(machine())
    print(
        table(
            (f"{asked.trials} trials of 1 step", "seconds a trial", "target"),
            ("python -m orchestrator", f"{swept:.2f}", ""),
            ("a bare loop", f"{bare:.2f}", ""),
            ("orchestration", f"{swept - bare:.2f}", f"under {TARGET_S}"),
        )
    )


def seconds_a_trial(run_dir: Path) -> float:
    """From the first trial's end to the last one's: the first start pays for imports."""
    ends = [event["time"] for event in ledger(run_dir) if event["event"] == "end"]
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def bare_loop(run_dir: Path, folder: Path) -> float:
    import yaml

    from sweeps.files import RunFolder
    from sweeps.reading import read_train
    from trainers import solo
    from trainers.data import load

    data = load(RunFolder(run_dir).data)
    times = []
    for path in run_dir.glob("trials/*/config.yaml"):
        task = solo.Task(
            key=path.parent.name,
            train=read_train(yaml.safe_load(path.read_text(encoding="utf-8"))),
            examples=8,
            folder=RunFolder(folder),
            device="cpu",
        )
        solo.train(task, data, _Nobody())
        times.append(time.time())
    return (times[-1] - times[0]) / (len(times) - 1)


class _Nobody:
    """An observer that wants nothing; see `trainers.solo.Observer`."""

    attempt = 1

    def begin(self, step: int, reports: object) -> bool:
        return True

    def wants_base(self) -> bool:
        return False

    def log(self, row: Mapping[str, float]) -> object:
        return _go_on()

    def report(self, report: object) -> object:
        return _go_on()

    def committed(self, step: int, size_bytes: int) -> None:
        pass


def _go_on() -> object:
    from sweeps.trial import Decision

    return Decision.CONTINUE


if __name__ == "__main__":
    main()
