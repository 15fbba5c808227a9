"""How far lanes are from SFTTrainer's runs: every optimizer, and every architecture built tiny.

    python -m benchmarks.parity --output FILE                 # all of it: half an hour on one core
    python -m benchmarks.parity --output FILE --minutes 4     # again and again: it goes on
    python -m benchmarks.parity --output FILE --only adamw_torch qwen3

An optimizer has twelve trials: four schedules, each with accumulations of 1, 2 and 4, over 32
optimizer steps of a small random Llama; trials of one accumulation are a pack. `unlike lanes` is
a pack of four optimizers, ranks, dropouts, micro-batches and accumulations. An architecture has
two trials, one with dropout, over one window of two micro-batches. Rows are short (4 to 14 tokens)
or of unlike length (2 to 60, most of them short); passes are flat, or padded to their longest row.

Numbers are the largest relative distance of any loss, of training or evaluation, from the same
trial's in SFTTrainer, and the largest relative L2 distance of the last checkpoint's weights. All in
float32. A dash: the model's rows are padded in any case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import ROOT, machine, table

sys.path.insert(0, str(ROOT / "tests"))  # models, trials and rows are those of the tests

if TYPE_CHECKING:
    from sweeps.config.spec import TrainSpec

ROWS = ("short", "unlike")
_WAYS = ("flat", "padded")
LANES = "unlike lanes"
_SPREAD = 1.5  # times that one takes longer than the longest before


@dataclass(frozen=True, kw_only=True)
class Distance:
    """From SFTTrainer, over all trials of one name: losses, weights; None if none were compared."""

    losses: float | None = None
    weights: float | None = None

    def __or__(self, other: Distance) -> Distance:
        pairs = (self.losses, other.losses), (self.weights, other.weights)
        largest = [max((one for one in pair if one is not None), default=None) for pair in pairs]
        return Distance(losses=largest[0], weights=largest[1])

    def __str__(self) -> str:
        return "-" if self.losses is None else f"{self.losses:.0e}, {self.weights:.0e}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one name came to with one kind of rows."""

    name: str
    rows: str
    flat: Distance
    padded: Distance
    seconds: float

    @classmethod
    def read(cls, line: str) -> Found:
        given: dict[str, Any] = json.loads(line)
        distances = {name: Distance(**given.pop(name)) for name in ("flat", "padded")}
        return cls(**given, **distances)


def compared(name: str, specs: Sequence[TrainSpec], examples: int, rows: str) -> Found:
    """Train some trials by SFTTrainer, as lanes of a flat and of a padded pack."""
    from support.packs import alone, distance, key, pack, short_rows, unlike_rows

    from sweeps.storage.run_folder import RunFolder

    began, data = time.monotonic(), short_rows() if rows == "short" else unlike_rows()
    found = dict.fromkeys((False, True), Distance())
    with tempfile.TemporaryDirectory() as scratch:
        theirs = [
            alone(Path(scratch, f"alone-{place}"), spec, examples=examples, data=data)
            for place, spec in enumerate(specs)
        ]
        for pads in (False, True):
            root = Path(scratch, f"padded-{pads}")
            made = pack(root, specs, examples=examples, data=data, pads=pads)
            if not pads and not made.engine._base.is_flat:
                continue
            made.finish()
            for place, other in enumerate(theirs):
                made.state(place)  # raises what a lane ended with
                step = other.commits[-1][0]
                its = RunFolder(Path(scratch, f"alone-{place}")).checkpoint(key(0), step)
                found[pads] |= Distance(
                    losses=_apart(losses_of(made.seen[place]), losses_of(other)),
                    weights=distance(made.checkpoint(place, step), its),
                )
    seconds = time.monotonic() - began
    return Found(name=name, rows=rows, flat=found[False], padded=found[True], seconds=seconds)


def losses_of(seen: Any) -> list[float]:
    """All losses that a trial told, of training and of evaluation."""
    return [*seen.losses, *(report.metrics["eval_loss"] for report in seen.reports)]


def _apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return max(abs(mine / other - 1) for mine, other in zip(ours, theirs, strict=True))


def everything() -> dict[str, Callable[[str], Found]]:
    """What there is to compare, by name; each takes the kind of rows."""
    from support.parity import (
        FAMILIES,
        SCHEDULES,
        STEPS,
        of_family,
        optimizers,
        trial,
        unlike_lanes,
    )

    def of_optimizer(name: str, rows: str) -> Found:
        parts = [
            compared(
                name,
                [trial(name, schedule, accumulation) for schedule in SCHEDULES],
                STEPS * 2 * accumulation,
                rows,
            )
            for accumulation in (1, 2, 4)
        ]
        whole = parts[0]
        for part in parts[1:]:
            whole = Found(
                name=name,
                rows=rows,
                flat=whole.flat | part.flat,
                padded=whole.padded | part.padded,
                seconds=whole.seconds + part.seconds,
            )
        return whole

    return {
        **{name: (lambda rows, name=name: of_optimizer(name, rows)) for name in optimizers()},
        LANES: lambda rows: compared(LANES, unlike_lanes(), 200, rows),
        **{
            name: (lambda rows, name=name: compared(name, of_family(name), 16, rows))
            for name in FAMILIES
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="JSON lines")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=ROWS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="optimizers, architectures")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end before that")
    asked = parser.parse_args()
    began, longest = time.monotonic(), 0.0
    there = everything()
    if unknown := set(asked.only or ()) - set(there):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    lines: list[str] = []
    with suppress(FileNotFoundError):
        lines = asked.output.read_text(encoding="utf-8").splitlines()
    found = {(one.name, one.rows): one for one in map(Found.read, lines)}
    wanted = [(name, rows) for name in asked.only or there for rows in asked.rows]
    for name, rows in wanted:
        if (name, rows) in found:
            continue
        if time.monotonic() - began + _SPREAD * longest >= 60 * asked.minutes:
            break
        one = found[name, rows] = there[name](rows)
        longest = max(longest, one.seconds)
        with open(asked.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(one)) + "\n")
        print(f"{name}, {rows}: flat {one.flat}; padded {one.padded}", file=sys.stderr, flush=True)
    _show([found[each] for each in wanted if each in found])
    if left := sum(each not in found for each in wanted):
        print(f"\n{left} of {len(wanted)} are left: the same command goes on with them.")


def _show(found: Sequence[Found]) -> None:
    by_name: dict[str, dict[str, Found]] = {}
    for one in found:
        by_name.setdefault(one.name, {})[one.rows] = one
    head = ["losses, weights", *(f"{rows} rows, {way}" for rows in ROWS for way in _WAYS)]
    lines = [
        [name, *(getattr(one[r], way) if r in one else "" for r in ROWS for way in _WAYS)]
        for name, one in by_name.items()
    ]
    print(table(head, *lines))
    print(f"\n{sum(one.seconds for one in found):,.0f} s in all, {machine()}", end="")


if __name__ == "__main__":
    main()
