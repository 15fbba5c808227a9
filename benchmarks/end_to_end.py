"""A sweep from the command to its end, beside a plain Ray Tune + SFTTrainer script.

    python -m benchmarks.end_to_end             # all workloads: half an hour on two cores
    python -m benchmarks.end_to_end --only short-16 --rounds 1

Each workload trains the same trials on the same rows, with the same LoRA, batch, schedules, eight
evaluations and a checkpoint at each; as many processes at once as CPUs, one thread each. The script
does what Tune does by itself: a fresh process for each trial, which imports, loads and tokenizes
(its datasets are cached on disk between trials). The sweep keeps its workers and tokenizes once; it
also measures the base model, checks every step for finite numbers, makes each checkpoint durable
and proves the best one. They take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import ROOT, Cost, machine, run, sweep, table

_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine")  # as in the script
_MODEL = str(ROOT / "trainers" / "tiny_llama")
_SHORT_TOKENS = 20
_SHORT_ROWS = {"train": 1000, "test": 64}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained. `targets`: engine -> how many times as fast as the script."""

    what: str
    rates: Sequence[float]  # each with every scheduler
    steps: int
    batch: int
    rows: Callable[[Path], None]
    targets: dict[str, float]

    @property
    def trials(self) -> int:
        return len(self.rates) * len(_SCHEDULERS)


def short_rows(folder: Path) -> None:
    """Rows of at most 20 tokens, all of them learnt."""
    from transformers import AutoTokenizer

    from sweeps.config.spec import DataSpec
    from trainers.data.rows import read

    tokenizer = AutoTokenizer.from_pretrained(_MODEL)
    texts = [str(row["completion"]) for row in read(DataSpec(source="docstrings")).train]
    cut = dict.fromkeys(
        tokenizer.decode(tokenizer(text)["input_ids"][: _SHORT_TOKENS - 1]) for text in texts
    )
    unlike = iter(cut)
    for name, count in _SHORT_ROWS.items():
        _write(folder / f"{name}.jsonl", ({"text": next(unlike)} for _ in range(count)))


def docstring_rows(folder: Path) -> None:
    """The embedded data, as a user would have it in files."""
    from sweeps.config.spec import DataSpec
    from trainers.data.rows import read
    from trainers.data.split import split

    spec = DataSpec(source="docstrings", eval_fraction=0.08, eval_limit=300)
    parts = split(spec, read(spec))
    _write(folder / "train.jsonl", iter(parts.train))
    _write(folder / "test.jsonl", iter(parts.evaluation))


def _write(path: Path, rows: Iterator[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 2e-4, 5e-4, 2e-3, 5e-5)
WORKLOADS = {
    "docstrings": Workload(
        what="16 trials x 100 steps, micro-batch 8, docstrings (about 40 tokens a row)",
        rates=_RATES[:4],
        steps=100,
        batch=8,
        rows=docstring_rows,
        targets={"solo": 1.7},
    ),
    "short-16": Workload(
        what="16 trials x 100 steps, micro-batch 4, rows of at most 20 tokens",
        rates=_RATES[:4],
        steps=100,
        batch=4,
        rows=short_rows,
        targets={"packed": 4.0},
    ),
    "short-32": Workload(
        what="32 trials x 200 steps, micro-batch 4, rows of at most 20 tokens",
        rates=_RATES,
        steps=200,
        batch=4,
        rows=short_rows,
        targets={"packed": 5.0},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=WORKLOADS, help="one workload (default: all)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each (default: 1)")
    parser.add_argument("--cpus", type=int, default=2, help="processes at once (default: 2)")
    asked = parser.parse_args()
    for name in [asked.only] if asked.only else WORKLOADS:
        work = WORKLOADS[name]
        costs: dict[str, list[Cost]] = {"script": [], "solo": [], "packed": []}
        for _ in range(asked.rounds):
            for engine, so_far in costs.items():
                with tempfile.TemporaryDirectory() as scratch:
                    work.rows(Path(scratch))
                    so_far.append(_run(engine, work, Path(scratch), asked.cpus))
        print(machine())
        print(comparison(work, costs), flush=True)


def _run(engine: str, work: Workload, scratch: Path, cpus: int) -> Cost:
    rates = ",".join(f"{rate:g}" for rate in work.rates)
    if engine == "script":
        os.environ["HF_DATASETS_CACHE"] = str(scratch / "cache")
        script = str(ROOT / "benchmarks" / "plain_ray_trl.py")
        words = [_MODEL, str(scratch), str(scratch / "results")]
        sizes = [str(cpus), str(work.steps), str(work.batch), rates]
        return run([sys.executable, script, *words, *sizes], folder=scratch)
    space = (
        f"sweep.space={{trainer.learning_rate: 'choice({rates})', "
        f"trainer.lr_scheduler_type: 'choice({','.join(_SCHEDULERS)})'}}"
    )
    return sweep(
        scratch / "run",
        *("sweep=lr_grid", "tracking=off", f"engine={engine}", "data=file", space),
        *(f"data.path={scratch}/train.jsonl", f"data.eval_path={scratch}/test.jsonl"),
        *("data.max_length=128", f"trainer.per_device_train_batch_size={work.batch}"),
        f"sweep.budget.examples={work.steps * work.batch}",
        cpus=cpus,
    )


def comparison(work: Workload, costs: dict[str, list[Cost]]) -> str:
    script = _median(costs["script"], "seconds")
    rows = []
    for engine, runs in costs.items():
        seconds = _median(runs, "seconds")
        target = work.targets.get(engine)
        rows.append(
            (
                "plain Ray Tune + SFTTrainer script" if engine == "script" else f"engine={engine}",
                f"{seconds:.0f}",
                ", ".join(f"{cost.seconds:.0f}" for cost in runs),
                f"{script / seconds:.2f}",
                f"{target:g}" if target else "",
                f"{_median(runs, 'cpu_s'):.0f}",
                f"{_median(runs, 'peak_mb'):,.0f}",
            )
        )
    head = (work.what, "seconds", "each run", "times as fast", "target", "CPU s", "peak MiB")
    return table(head, *rows)


def _median(costs: Sequence[Cost], name: str) -> float:
    return statistics.median(getattr(cost, name) for cost in costs)


if __name__ == "__main__":
    main()
