"""The Coordinator with many trials at once, without processes: python -m benchmarks.scale

10,000 short trials go through one Coordinator, 8, 64 or 512 at once, each with its asks, starts,
reports, checkpoints and ends, all written to a real ledger. Shown: how long one call takes, at the
beginning and at the end, and what the ledger and the memory come to. Calls must not grow with the
number of trials; a suggestion of TPE does, which looks at them all.
"""

from __future__ import annotations

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--search", choices=[*SEARCHES], default="grid")
    asked = parser.parse_args()
    head = ("at once", "call", "median, ms", "99 of 100", "median of the last 1,000", "target")
    rows: list[tuple[object, ...]] = [head]
    sizes = []
    for width in asked.widths:
        with tempfile.TemporaryDirectory() as scratch:
            times, ledger_mb, memory_mb = apart(
                simulate, Path(scratch), SEARCHES[asked.search], asked.trials, width
            )
        sizes.append(f"{width} at once: ledger {ledger_mb:.0f} MB, memory {memory_mb:.0f} MB")
        for call, taken in times.items():
            target = f"at most {REPORT_MS}, flat" if call == "report" else ""
            rows.append((width, call, *in_ms(taken), target))
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
    """Seconds of each call by its name; MB of the ledger and of memory."""
    from sweeps.coordinator import Coordinator
    from sweeps.files import RunFolder
    from sweeps.trial import Report, State

    spec, space = read_sweep(words, REPORTS)
    before = held_mb()
    coordinator = Coordinator(spec, space, RunFolder(root))
    coordinator.begin()
    times: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        answer = call(*arguments, **more)
        times[name].append(time.perf_counter() - began)
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


if __name__ == "__main__":
    main()
