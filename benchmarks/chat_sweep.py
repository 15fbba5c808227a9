"""A sweep on rows as long and short as chats are, its trials out of step: packed beside solo.

    python -m benchmarks.chat_sweep                          # three alternating pairs: an hour
    python -m benchmarks.chat_sweep --micro-batches 1 --rounds 1

Eight seeds of one config (`sweep.repeats=8`), so each trial sees the rows in an order of its own,
and a pack never holds eight rows of one length. The rows are seeded, of lengths distributed
lognormally, at most 512 tokens.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.lr_grid import stages
from benchmarks.measure import Cost, machine, sweep, table

_ROWS = 1000
_MEDIAN, _SPREAD, _LONGEST = 80, 0.9, 480  # tokens of a row's text; the template adds a few
_EXAMPLES = {1: 1600, 4: 2000}  # micro-batch -> budget; a packed sweep takes more than two minutes
_ENGINES = ("packed", "solo")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one sweep took."""

    seconds: float
    training_s: float


def write_chats(path: Path, rows: int = _ROWS, seed: int = 0) -> None:
    """Write chats of one question and one answer, as JSON lines."""
    from sweeps.config.spec import DataSpec, ModelSpec
    from trainers.data.rows import read
    from trainers.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(ModelSpec(path="tiny"))
    texts = (str(row["completion"]) for row in read(DataSpec(source="docstrings")).train)
    words = [token for text in texts for token in tokenizer(text)["input_ids"]]
    draw = np.random.default_rng(seed)
    lengths = np.exp(_SPREAD * draw.standard_normal(rows)) * _MEDIAN
    with open(path, "w", encoding="utf-8") as file:
        for length in np.clip(np.round(lengths), 4, _LONGEST).astype(int):
            start = int(draw.integers(len(words) - length))
            cut = start + max(1, length // 4)
            question, answer = words[start:cut], words[cut : start + length]
            turns = {"user": question, "assistant": answer}
            messages = [{"role": r, "content": tokenizer.decode(t)} for r, t in turns.items()]
            file.write(json.dumps({"messages": messages}) + "\n")


def overrides(data: Path, micro_batch: int, examples: int, engine: str) -> list[str]:
    """The words of one sweep."""
    return [
        *("sweep=base", "sweep.repeats=8", "tracking=off", f"engine={engine}"),
        *("data=file", f"data.path={data}", "data.max_length=512"),
        *(f"trainer.per_device_train_batch_size={micro_batch}", "sweep.evaluations=2"),
        f"sweep.budget.examples={examples}",
    ]


def _run(data: Path, words: Sequence[str], cpus: int) -> Run:
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        cost: Cost = sweep(run_dir, *words, cpus=cpus)
        return Run(seconds=cost.seconds, training_s=stages(run_dir, cost)["training"])


def _rows(found: dict[str, list[Run]]) -> Iterator[Sequence[object]]:
    for engine, runs in found.items():
        solo = found["solo"]
        whole = [other.seconds / run.seconds for run, other in zip(runs, solo, strict=True)]
        alone = [other.training_s / run.training_s for run, other in zip(runs, solo, strict=True)]
        yield (
            f"engine={engine}",
            f"{statistics.median(run.seconds for run in runs):.0f}",
            ", ".join(f"{run.seconds:.0f}" for run in runs),
            f"{statistics.median(whole):.2f}",
            f"{statistics.median(run.training_s for run in runs):.0f}",
            f"{statistics.median(alone):.2f}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chat_sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3, help="pairs (default: 3)")
    parser.add_argument("--examples", type=int, help="budget of a trial (default: two minutes)")
    parser.add_argument("--cpus", type=int, default=2, help="processes at once (default: 2)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "chats.jsonl"
        write_chats(data)
        for micro_batch in asked.micro_batches:
            examples = asked.examples or _EXAMPLES.get(micro_batch, max(_EXAMPLES.values()))
            found: dict[str, list[Run]] = {engine: [] for engine in _ENGINES}
            for _ in range(asked.rounds):
                for engine, runs in found.items():
                    words = overrides(data, micro_batch, examples, engine)
                    runs.append(_run(data, words, asked.cpus))
            for engine in _ENGINES:
                words = overrides(data, micro_batch, examples, engine)
                print("    python -m orchestrator", shlex.join(words))
            print(f"\n{machine()}")
            head = f"8 trials of {examples:,} examples, micro-batch {micro_batch}, {_ROWS:,} rows"
            columns = ("seconds", "each run", "times solo", "training s", "times solo's training")
            print(table((head, *columns), *_rows(found)), "\n", flush=True)


if __name__ == "__main__":
    main()
