"""The Coordinator with many trials at once, without processes: python -m benchmarks.scale

10,000 short trials go through one Coordinator, 8, 64 or 512 at once, each with its asks, starts,
reports, checkpoints and ends, all written to a real ledger. Shown: how long one call takes, at the
end too, and then without the waits for the disk (fsync); what the ledger and the memory come to.
Reports must not grow with the number of trials, nor with how many run at once; a suggestion of TPE
does, which looks at them all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.load import SEARCHES, apart, held_mb, read_sweep
from benchmarks.measure import machine, table

REPORT_MS = 10
REPORTS = 4  # of a trial
PRUNED = {
    f"grid, {pruner}": (*SEARCHES["grid"], f"sweep.pruner={pruner}")
    for pruner in ("asha", "hyperband", "median")
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--search", choices=[*SEARCHES, *PRUNED], default="grid")
    asked = parser.parse_args()
    head = ("at once", "call", "median, ms", "99 of 100", "median of the last 1,000")
    rows: list[tuple[object, ...]] = [(*head, "and without the disk", "target")]
    sizes = []
    for width in asked.widths:
        with tempfile.TemporaryDirectory() as scratch:
            times, ledger_mb, memory_mb = apart(
                simulate, Path(scratch), (SEARCHES | PRUNED)[asked.search], asked.trials, width
            )
        sizes.append(f"{width} at once: ledger {ledger_mb:.0f} MB, memory {memory_mb:.0f} MB")
        for call in ("ask", "start", "report", "committed", "end"):
            target = f"at most {REPORT_MS}, flat" if call == "report" else ""
            dry = in_ms(times[f"{call}, dry"])[2]
            rows.append((width, call, *in_ms(times[call]), dry, target))
    print(machine())
    print(f"{asked.trials:,} trials by {asked.search}, {REPORTS} reports each\n")
    print(table(*rows))
    print("\n" + "\n".join(sizes))


def in_ms(taken: list[float]) -> tuple[str, str, str]:
    ordered = sorted(taken)
    late = ordered[int(len(ordered) * 0.99)]
    figures = (statistics.median(ordered), late, statistics.median(taken[-1000:]))
    return tuple(f"{1000 * figure:.2f}" for figure in figures)  # type: ignore[return-value]


def simulate(
    root: Path, words: tuple[str, ...], trials: int, width: int
) -> tuple[dict[str, list[float]], float, float]:
    """Seconds of each call by its name, and without the disk; MB of the ledger and of memory."""
    from sweeps.coordinator.coordinator import Coordinator
    from sweeps.core.trial import Report, State
    from sweeps.storage.run_folder import RunFolder

    spec, space = read_sweep(words, REPORTS)
    before = held_mb()
    coordinator = Coordinator(spec, space, RunFolder(root))
    coordinator.begin()
    times: dict[str, list[float]] = defaultdict(list)

    disk = Disk()

    def timed(name: str, call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        began, on_disk = time.perf_counter(), disk.seconds
        answer = call(*arguments, **more)
        taken = time.perf_counter() - began
        times[name].append(taken)
        times[f"{name}, dry"].append(taken - (disk.seconds - on_disk))
        return answer

    running: list[tuple[str, int, int]] = []  # key, attempt, reports made
    asked = 0
    while running or asked < trials:
        while len(running) < width and asked < trials:
            trial = timed("ask", coordinator.ask)
            asked += 1
            attempt = timed(
                "start", coordinator.start, trial.key, worker="box:2", device="cpu", step=0
            )
            running.append((trial.key, attempt, 0))
        key, attempt, done = running.pop(0)
        if done == REPORTS:
            timed("end", coordinator.end, key, attempt, State.COMPLETED, totals={"seconds": 1.0})
            continue
        index = done + 1
        loss = int(key, 16) % 1000 / 1000 + 1 / index
        report = Report(
            index=index, step=index, examples=index, tokens=index, metrics={"eval_loss": loss}
        )
        decision = timed("report", coordinator.report, key, attempt, report)
        timed("committed", coordinator.committed, key, attempt, index, 1000)
        if decision == "prune":
            timed("end", coordinator.end, key, attempt, State.PRUNED)
        else:
            running.append((key, attempt, index))
    size_mb = (root / "ledger.jsonl").stat().st_size / 2**20
    return dict(times), size_mb, held_mb("VmHWM") - before


class Disk:
    """From when it is made, the seconds that this process has waited for its disk."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sync = os.fsync
        os.fsync = self._wait

    def _wait(self, descriptor: int) -> None:
        began = time.perf_counter()
        self._sync(descriptor)
        self.seconds += time.perf_counter() - began


if __name__ == "__main__":
    main()
