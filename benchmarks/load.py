"""A large sweep's ledger, read back: python -m benchmarks.load

Writes the ledger of 10,000 trials with 20 reports each, then measures, each in a process of its
own: the replay and the first suggestion after it, as a driver does at its start, by grid, TPE and
TPE with ASHA; and `status`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, table

SPACE = (
    "sweep.space={trainer.learning_rate: 'tag(log, interval(1e-5, 1e-2))', "
    "trainer.weight_decay: 'interval(0, 0.1)', trainer.optim: 'choice(sgd, adamw_torch)'}"
)
GRID = (
    "sweep.space={peft.r: 'range(1, 101, 1)', peft.lora_alpha: 'range(1, 101, 1)', "
    "trainer.optim: 'choice(sgd, adamw_torch)'}"
)
SEARCHES = {
    "grid": (GRID, "sweep.search=grid"),
    "tpe": (SPACE, "sweep.search=tpe"),
    "tpe, asha": (SPACE, "sweep.search=tpe", "sweep.pruner=asha"),
    "tpe, median": (SPACE, "sweep.search=tpe", "sweep.pruner=median"),
}
REPLAY_S, STATUS_S = 10, 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--reports", type=int, default=20, help="of each trial")
    asked = parser.parse_args()
    rows: list[tuple[object, ...]] = [("", "seconds", "target", "most memory, MB")]
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in SEARCHES.items():
            root = Path(scratch) / name.replace(", ", "-")
            apart(write_ledger, root, words, asked.trials, asked.reports)
            size_mb = (root / "ledger.jsonl").stat().st_size / 2**20
            replayed, asked_s, memory_mb = apart(replay, root, words, asked.reports)
            label = f"replay and one suggestion, {name} ({size_mb:.0f} MB)"
            shown = f"{replayed:.1f} + {asked_s:.2f}"
            rows.append((label, shown, f"under {REPLAY_S}", f"{memory_mb:.0f}"))
        taken, memory_mb = apart(status, root)
        rows.append(("status", f"{taken:.1f}", f"under {STATUS_S}", f"{memory_mb:.0f}"))
    print(machine())
    print(f"{asked.trials:,} trials, {asked.trials * asked.reports:,} reports\n")
    print(table(*rows))


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a fresh process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def read_sweep(words: tuple[str, ...], reports: int, trials: int = 20_000) -> tuple[Any, Any]:
    from orchestrator.config.command import read_command

    more = (f"sweep.evaluations={reports}", f"sweep.trials={trials}", "engine=solo")
    return read_command(["sweep=lr_grid", *words, *more])


def write_ledger(root: Path, words: tuple[str, ...], trials: int, reports: int) -> None:
    """Trials as a driver would have written them, one after another, a checkpoint at the end."""
    from sweeps.core.trial import fingerprint
    from sweeps.ledger import events
    from sweeps.search.samplers import NOTING_PRUNERS
    from sweeps.search.study import Suggestion

    spec, space = read_sweep(words, reports)
    root.mkdir(parents=True)
    draw = random.Random(0)
    grid = space.grid() if spec.sweep.search == "grid" else None
    with open(root / "ledger.jsonl", "w", encoding="utf-8") as file:

        def add(event: events.Event) -> None:
            timed = replace(event, time=round(1.7e9 + file.tell() / 1000, 3))
            file.write(json.dumps(timed.to_json()) + "\n")

        add(events.Sweep(name="load", spec=spec.public))
        add(events.Attempt(number=1, spec=spec.public, host="box", pid=1, examples=1600))
        for number in range(trials):
            picked = next(grid) if grid is not None else picked_by_chance(draw)
            values, key = space.values(picked), fingerprint([number])
            asked = Suggestion(number, picked, values).to_json()
            of = {"trial": key, "attempt": 1}
            add(events.Ask(trial=key, number=number, repeat=0, seed=0, **asked))
            add(events.Start(**of, worker="box:2", device="cpu", step=0))
            floor = 1.0 + draw.random()
            for index in range(1, reports + 1):
                report = events.Report(**of, **a_report(index, floor), decision="continue")
                if spec.sweep.pruner in NOTING_PRUNERS:
                    report = replace(report, noted=noted(index, report.metrics["eval_loss"]))
                add(report)
            add(events.Checkpoint(**of, step=10 * index, path="x", bytes=1000))
            totals = {"steps": 200, "seconds": 9.0, "tokens": 32000, "examples": 1600}
            add(events.End(**of, state="completed", totals=totals))


def picked_by_chance(draw: random.Random) -> dict[str, Any]:
    return {
        "trainer.learning_rate": 10 ** draw.uniform(-5, -2),
        "trainer.weight_decay": draw.uniform(0, 0.1),
        "trainer.optim": draw.choice(("sgd", "adamw_torch")),
    }


def a_report(index: int, floor: float) -> dict[str, Any]:
    metrics = {
        "eval_loss": floor + 1 / index,
        "train_loss": floor + 1.1 / index,
        "seconds": 0.45 * index,
        "tokens_per_second": 3555.5,
        "peak_memory_mb": 612.25,
        "optimizer_state_mb": 1.5,
    }
    counts = {"step": 10 * index, "examples": 80 * index, "tokens": 1600 * index}
    return {"index": index, **counts, "metrics": metrics}


def noted(index: int, loss: float) -> dict[str, float]:
    """What halving by 2 notes in a trial at its report 1, 2, 4, 8, ..."""
    is_rung = index & (index - 1) == 0
    return {f"completed_rung_{index.bit_length() - 1}": loss} if is_rung else {}


def replay(root: Path, words: tuple[str, ...], reports: int) -> tuple[float, float, float]:
    """Seconds of the replay and of the first ask; the most memory, MB."""
    spec, space = read_sweep(words, reports)
    from sweeps.coordinator.coordinator import Coordinator
    from sweeps.storage.run_folder import RunFolder

    before = held_mb()
    began = time.perf_counter()
    coordinator = Coordinator(spec, space, RunFolder(root))
    replayed = time.perf_counter()
    coordinator.begin()
    trial = coordinator.ask()
    assert trial is not None
    asked = time.perf_counter()
    return replayed - began, asked - replayed, held_mb("VmHWM") - before


def status(root: Path) -> tuple[float, float]:
    import io

    from rich.console import Console

    began = time.perf_counter()
    from orchestrator.terminal.status import status as show

    show(root, Console(width=120, file=io.StringIO()))
    return time.perf_counter() - began, held_mb("VmHWM")


def held_mb(field: str = "VmRSS") -> float:
    """MB of this process; VmHWM is the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
