"""Measures what W&B costs a sweep, with a server that works or is of no use.

    python -m benchmarks.tracking

The same sweep with tracking off, and with W&B pointed at a server on this machine that works,
refuses, hangs, or dies in the middle; they take turns. Compared is the time from the command to its
end, and, since a short sweep is mostly starting and leaving, from the first step to the last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT, ledger, machine, sweep, table

TARGET = 0.05
KEY = "0123456789" * 4
WAYS = ("off", "works", "refuses", "hangs", "dies in the middle", "hangs in the middle")
_SETTINGS = ("data.eval_limit=100",)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one sweep took.

    Attributes:
        command_s: from the command to its end.
        training_s: from the first trial's start to the last one's end.
        cpu_s: of all its processes.
    """

    command_s: float
    training_s: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=800, help="of each of 8 trials")
    parser.add_argument("--engine", choices=("solo", "packed"), default="solo")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    asked = parser.parse_args()
    taken: dict[str, list[Run]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(asked.rounds):
            for way in asked.ways:
                run_dir = Path(scratch) / f"{way} {number}".replace(" ", "-")
                taken[way].append(timed(run_dir, way, asked.examples, asked.engine))
    print(machine())
    what = f"8 trials x {asked.examples} examples, {asked.engine}"
    print(f"{what}, medians of {asked.rounds} rounds in turn\n")
    off = taken["off"]
    rows: list[tuple[object, ...]] = [
        ("tracking", "command, s", "against off", "training, s", "against off", "each", "cores")
    ]
    for way in asked.ways:
        runs = taken[way]
        command, training = _median(runs, "command_s"), _median(runs, "training_s")
        against = ["", "", ""]
        if off:
            more = (_median(runs, "cpu_s") - _median(off, "cpu_s")) / command
            against = [
                f"{command / _median(off, 'command_s') - 1:+.1%}",
                f"{training / _median(off, 'training_s') - 1:+.1%}",
                f"{more:+.2f}",
            ]
        each = ", ".join(f"{run.training_s:.1f}" for run in runs)
        rows.append(
            (way, f"{command:.1f}", against[0], f"{training:.1f}", against[1], each, against[2])
        )
    print(table(*rows))
    if off:
        middle = _median(off, "training_s")
        apart = [f"{pick(run.training_s for run in off) / middle - 1:+.1%}" for pick in (min, max)]
        print(f"\nspread of training with tracking off: {' to '.join(apart)}")
    if set(asked.ways) - {"off", "works"}:
        print(f"target for a server that is of no use: within {TARGET:.0%}")


def _median(runs: Sequence[Run], what: str) -> float:
    return statistics.median(getattr(run, what) for run in runs)


def timed(run_dir: Path, way: str, examples: int, engine: str) -> Run:
    """Run one sweep, and measure it."""
    words = ("sweep=lr_grid", f"sweep.budget.examples={examples}", f"engine={engine}", *_SETTINGS)
    cpus = len(os.sched_getaffinity(0))
    if way == "off":
        cost = sweep(run_dir, *words, "tracking=off", cpus=cpus)
    else:
        with Server(way, run_dir) as url:
            os.environ.update(WANDB_BASE_URL=url, WANDB_API_KEY=KEY)
            cost = sweep(run_dir, *words, "tracking.mode=auto", cpus=cpus)
    events = ledger(run_dir)
    starts = [event["time"] for event in events if event["event"] == "start"]
    ends = [event["time"] for event in events if event["event"] == "end"]
    return Run(command_s=cost.seconds, training_s=max(ends) - min(starts), cpu_s=cost.cpu_s)


class Server:
    """The tests' stand-in for W&B, which turns bad at once or after the second trial's end."""

    def __init__(self, way: str, run_dir: Path) -> None:
        sys.path.insert(0, str(ROOT / "tests"))
        from support.wandb_stub import WandbStub

        at_once = {"refuses": "refuse", "hangs": "hang"}
        self._stub = WandbStub(at_once.get(way, "ok"))
        self._way = way
        self._run_dir = run_dir
        self._over = threading.Event()

    def __enter__(self) -> str:
        self._stub.__enter__()
        if self._way.endswith("in the middle"):
            threading.Thread(target=self._turn, daemon=True).start()
        return str(self._stub.url)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stub.die()

    def _turn(self) -> None:
        path = self._run_dir / "ledger.jsonl"
        while not self._over.wait(0.1):
            if path.exists() and path.read_text().count('"event": "end"') >= 2:
                break
        if self._way.startswith("dies"):
            self._stub.die()
        else:
            self._stub.manner = "hang"


if __name__ == "__main__":
    main()
