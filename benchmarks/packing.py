"""Training alone: lanes of a pack beside one LoRA run on the same rows, and beside one at a time.

    python -m benchmarks.packing                   # 1 M parameters, rows of 20 tokens; minutes
    python -m benchmarks.packing --device cuda     # Llama-3.2-1B's shape in bf16, rows of 512
    python -m benchmarks.packing --output FILE     # each line goes there too, once it is known

On a GPU it ends after --minutes 7.5, and says what it has left out.

Nothing is evaluated, logged or saved while it is timed. `one batch` is the limit: a plain PEFT
model, all rows of all lanes as one micro-batch of one adapter. `one at a time` is the same model
with the rows of one lane, in a bare loop. Both have the pack's own head, attention, threads and
AdamW. Weights are random: speed does not depend on them. MiB is the peak of the device; on a CPU of
this process, with what else it holds.

Rows of one length flatter a pack: nothing is padded. The second table has rows as chats have them,
of lengths that are distributed lognormally, and trials that each see them in an order of their own,
so that a pack pads to the longest row of all lanes. Its tokens are those of the rows, no padding.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, table
from sweeps.config.spec import BudgetSpec, DataSpec, ModelSpec, TrainSpec
from sweeps.core.trial import Decision
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import order
from trainers.model import cache
from trainers.packed.compatibility import settings
from trainers.packed.engine import Engine
from trainers.packed.frozen_base import Base
from trainers.packed.lm_head import Head
from trainers.trial.failures import is_out_of_memory
from trainers.trial.meters import PeakMemory, free_memory
from trainers.trial.task import Task

_ROWS = 4096
_FOREVER = 10**6  # examples of a trial: none ends while it is timed
_SPREAD = 0.9  # of the logarithm of a chat's length
_MEAN = 243 / 512  # of chats, in lengths of the equal rows
_LONGEST = 2  # the same; longer ones are cut off
_GROWTH = 2.2  # times that a row of a table takes, with twice the lanes, of the one before


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured, on which device."""

    device: str
    shape: dict[str, int]  # of the Llama
    tokens: int  # of a row
    micro_batches: tuple[int, ...]
    lanes: tuple[int, ...]
    steps: int  # of one timing
    rounds: int
    recomputes: bool = False
    minutes: float | None = None  # it ends before that


LAPTOP = Setup(
    device="cpu",
    shape={"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "vocab_size": 2048}
    | {"num_attention_heads": 4, "num_key_value_heads": 4},
    tokens=20,
    micro_batches=(4,),
    lanes=(1, 2, 4, 8, 16, 32),
    steps=10,
    rounds=5,
)
GPU = Setup(
    device="cuda",
    shape={"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256},
    tokens=512,
    micro_batches=(1, 4),
    lanes=(1, 2, 4, 8, 16, 32),
    steps=4,
    rounds=3,
    minutes=7.5,
)


@dataclass(kw_only=True)
class Pages:
    """Where results go, line by line, and how much time is left for more."""

    output: Path | None
    minutes: float | None
    _began: float = field(default_factory=lambda: time.monotonic())

    def write(self, text: str) -> None:
        print(text, flush=True)
        if self.output is not None:
            with open(self.output, "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether something that takes so long ends in time."""
        spent = time.monotonic() - self._began + seconds
        return self.minutes is None or spent < 60 * self.minutes

    def table(self, head: Sequence[object], rows: Iterator[Callable[[], Sequence[object]]]) -> None:
        """A Markdown table, each row as soon as it is known, as long as there is time."""
        last_s, begun = 0.0, False
        for make in rows:
            if not self.has_time(_GROWTH * last_s):
                self.write("\nThe rest of it is left out: there is no time for more (--minutes).")
                return
            began = time.monotonic()
            lines = table(head, make()).splitlines()
            self.write("\n".join(lines[-1:] if begun else lines))
            last_s, begun = time.monotonic() - began, True


class Silent:
    """An observer that lets a trial train."""

    attempt = 1

    def begin(self, *_: Any) -> bool:
        return True

    def wants_base(self) -> bool:
        return False

    def log(self, _: Any) -> Decision:
        return Decision.CONTINUE

    def report(self, _: Any) -> Decision:
        return Decision.CONTINUE

    def may_commit(self) -> None: ...

    def committed(self, *_: Any) -> None: ...


def random_base(setup: Setup, folder: Path) -> ModelSpec:
    """A Llama with random weights on disk, with the embedded model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainers.model.tokenizer import load_tokenizer

    load_tokenizer(ModelSpec(path="tiny")).save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(**setup.shape, max_position_embeddings=2048, tie_word_embeddings=True)
    dtype = torch.bfloat16 if setup.device == "cuda" else torch.float32
    torch.set_default_dtype(dtype)
    try:
        with torch.device(setup.device):
            LlamaForCausalLM(config).save_pretrained(str(folder))
    finally:
        torch.set_default_dtype(torch.float32)
    return ModelSpec(path=str(folder))


def random_rows(setup: Setup) -> Any:
    """Prepared data: rows of one length, all tokens labelled."""
    from datasets import Dataset

    from trainers.data.dataset import PreparedData

    draw = np.random.default_rng(0)
    rows = draw.integers(3, 2000, (_ROWS, setup.tokens)).tolist()
    train = Dataset.from_dict({"input_ids": rows, "labels": rows})
    few = train.select(range(8))
    return PreparedData(train=train, evaluation=few, test=None, fingerprint="", report=None)  # type: ignore[arg-type]


def chat_rows(setup: Setup) -> Any:
    """The same, with rows of lengths as chats have them."""
    from datasets import Dataset

    from trainers.data.dataset import PreparedData

    draw = np.random.default_rng(0)
    spread = np.exp(_SPREAD * draw.standard_normal(_ROWS))
    lengths, scale = spread, 1.0
    for _ in range(50):  # to that mean, after the longest were cut off
        scale *= _MEAN * setup.tokens / lengths.mean()
        lengths = np.clip(np.round(scale * spread), 3, _LONGEST * setup.tokens)
    rows = [draw.integers(3, 2000, int(length)).tolist() for length in lengths]
    train = Dataset.from_dict({"input_ids": rows, "labels": rows})
    few = train.select(range(8))
    return PreparedData(train=train, evaluation=few, test=None, fingerprint="", report=None)  # type: ignore[arg-type]


def trial(setup: Setup, model: ModelSpec, rows: int, rank: int = 8) -> TrainSpec:
    return TrainSpec(
        model=model,
        data=DataSpec(source="docstrings", max_length=_LONGEST * setup.tokens),
        peft={"method": "lora", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"},
        trainer={
            "learning_rate": 1e-4,
            "per_device_train_batch_size": rows,
            "logging_steps": _FOREVER,
            "logging_first_step": False,
            "gradient_checkpointing": setup.recomputes,
        },
        seed=0,
        budget=BudgetSpec(examples=_FOREVER),
        evaluations=1,
    )


def packed(
    setup: Setup, specs: Sequence[TrainSpec], data: Any, root: Path, engine: Engine | None = None
) -> Callable[[], None]:
    """A pack of these trials; a call is one optimizer step of each.

    Args:
        engine: that has the first of them as lanes already.
    """
    engine = engine or Engine(
        specs[0], data, device=setup.device, base=_loaded_once(setup, specs[0])
    )
    for place, spec in enumerate(specs):
        key = f"{place:010x}"
        if key in engine.keys:
            continue
        task = Task(
            key=key,
            train=replace(spec, seed=place),
            examples=_FOREVER,
            folder=RunFolder(root),
            device=setup.device,
        )
        engine.attach(task, Silent())

    def step() -> None:
        ended = engine.advance()
        assert not ended, ended

    return step


_bases: dict[str, Base] = {}


def _loaded_once(setup: Setup, spec: TrainSpec) -> Base | None:
    """On a GPU, where loading takes longer than what is timed, all packs have one base."""
    if setup.device == "cpu":
        return None
    if spec.model.path not in _bases:
        _bases[spec.model.path] = Base(spec, settings(spec), setup.device)
    return _bases[spec.model.path]


def plain(setup: Setup, spec: TrainSpec, data: Any) -> Callable[[], None]:
    """A plain PEFT model and AdamW; a call is one optimizer step on a micro-batch."""
    train = _plain(setup, spec)
    ids = torch.tensor(data.train[: spec.batch_size]["input_ids"], device=setup.device)
    targets = ids[:, 1:].flatten()

    def step() -> None:
        train(ids, None, targets)

    return step


Train = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], None]


def _plain(setup: Setup, spec: TrainSpec) -> Train:
    """Takes a step on token ids [rows, tokens]; on all positions but the last of each row, or on
    those of an index into all positions; and the targets of those."""
    from trainers.model.loading import load_base
    from trainers.model.lora import adapt

    on_cpu = setup.device == "cpu"
    base = load_base(spec.model, "cpu") if on_cpu else cache.base_for(spec, setup.device)
    head, model = Head(base), adapt(base, spec.peft)
    model.train()
    if setup.recomputes:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(ids: torch.Tensor, index: torch.Tensor | None, targets: torch.Tensor) -> None:
        with torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda"):
            hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
            if index is None:
                hidden = hidden[:, :-1]
            hidden = hidden.reshape(-1, hidden.shape[-1])
            losses, _ = head.score(hidden if index is None else hidden[index], targets)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class Chats:
    """Micro-batches of trials that each see the rows in an order of their own."""

    def __init__(self, data: Any, rows: int, device: str) -> None:
        self._ids: list[list[int]] = data.train["input_ids"][:]
        self._rows, self._device = rows, device

    def of(self, seed: int) -> Iterator[list[list[int]]]:
        """Of one trial, one after another."""
        seen = order(len(self._ids), 100 * self._rows, seed)
        for start in range(0, len(seen), self._rows):
            yield [self._ids[row] for row in seen[start : start + self._rows]]

    def of_all(self, lanes: int) -> Iterator[list[list[int]]]:
        """The next of each trial, as one."""
        for many in zip(*(self.of(seed) for seed in range(lanes)), strict=True):
            yield [row for micro_batch in many for row in micro_batch]

    def train(
        self, setup: Setup, spec: TrainSpec, batches: Iterator[list[list[int]]]
    ) -> tuple[Callable[[], None], Callable[[], int]]:
        """A plain PEFT model on these, padded on the right; and the tokens it has seen."""
        step, seen = _plain(setup, spec), 0

        def act() -> None:
            nonlocal seen
            rows = next(batches)
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            places = [p * longest + t for p, row in enumerate(rows) for t in range(len(row) - 1)]
            targets = torch.tensor([token for row in rows for token in row[1:]])
            index = torch.tensor(places)
            step(*(tensor.to(self._device) for tensor in (ids, index, targets)))
            seen += sum(map(len, rows))

        return act, lambda: seen


def sft_trainer(setup: Setup, spec: TrainSpec, data: Any, root: Path) -> str:
    """One trial at a time as users train it; without TRL, that it is not there."""
    try:
        from trainers.sft import trainer as sft_trainer
    except ImportError:
        return "SFTTrainer: TRL is not installed"
    steps = 20 * setup.steps
    task = Task(
        key="f" * 10,
        train=spec,
        examples=steps * spec.batch_size,
        folder=RunFolder(root),
        device=setup.device,
    )
    seconds = sft_trainer.train(task, data, Silent()).totals["seconds"]
    speed = steps * spec.batch_size * setup.tokens / seconds
    return (
        f"SFTTrainer, one at a time: {speed:,.0f} tokens/s, {1000 * seconds / steps:.1f} ms a step"
    )


def timed(setup: Setup, step: Callable[[], None]) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    for _ in range(setup.steps):
        step()
    if setup.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / setup.steps


def compare(
    setup: Setup, arms: dict[str, Callable[[], Callable[[], None]]]
) -> dict[str, tuple[float, float]]:
    """Seconds of a step (median of alternating rounds) and peak MiB of each arm; 0 where it does
    not fit."""
    seconds, peaks = rounds(setup, arms)
    medians = {name: statistics.median(s) if s else 0.0 for name, s in seconds.items()}
    return {name: (medians[name], peaks[name]) for name in arms}


def rounds(
    setup: Setup, arms: dict[str, Callable[[], Callable[[], None]]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Of each arm the seconds of a step in each round, none where it does not fit; and its peak
    MiB."""
    built, peaks = {}, dict.fromkeys(arms, 0.0)
    for name, build in arms.items():
        free_memory()
        memory = PeakMemory(setup.device)
        try:
            step = build()
            timed(setup, step)  # caches and allocators warm up
            # A GPU's is of this process alone, and the base that plain models start from stays.
            peaks[name] = memory.mb - (cache.held_mb() if setup.device == "cuda" else 0)
            built[name] = step
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(setup.rounds):
        for name, step in built.items():
            seconds[name].append(timed(setup, step))
    return seconds, peaks


HEAD = ("lanes", "tokens/s", "ms a lane-step", "of one batch", "times one at a time", "MiB")


def by_lanes(
    setup: Setup, model: ModelSpec, data: Any, root: Path, rows: int
) -> Iterator[Callable[[], Sequence[object]]]:
    """Tokens a second for each number of lanes, beside the limit and one at a time."""
    per_lane = rows * setup.tokens
    spec = trial(setup, model, rows)
    packs = Packs(setup)

    def row(lanes: int) -> Sequence[object]:
        arms = {
            "packed": lambda: packs.of([spec] * lanes, data, root),
            "limit": lambda: plain(setup, trial(setup, model, rows * lanes), data),
            "one": lambda: plain(setup, spec, data),
        }
        found = compare(setup, arms)
        (step_s, peak), (limit_s, _), (one_s, _) = (found[name] for name in arms)
        return (
            lanes,
            f"{lanes * per_lane / step_s:,.0f}" if step_s else "does not fit",
            f"{1000 * step_s / lanes:.2f}",
            f"{limit_s / step_s:.2f}" if limit_s and step_s else "-",
            f"{lanes * one_s / step_s:.2f}" if step_s else "-",
            f"{peak:,.0f}",
        )

    return (lambda lanes=lanes: row(lanes) for lanes in setup.lanes)  # type: ignore[misc]


class Packs:
    """The packs of a table: on a GPU one that grows, since a lane takes longer to make than to
    time."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.engine: Engine | None = None

    def of(self, specs: Sequence[TrainSpec], data: Any, root: Path) -> Callable[[], None]:
        before = self.engine if self._setup.device == "cuda" else None
        self.engine = before or Engine(
            specs[0],
            data,
            device=self._setup.device,
            base=_loaded_once(self._setup, specs[0]),
        )
        return packed(self._setup, specs, data, root, self.engine)

    def tokens(self) -> int:
        """That all lanes have seen."""
        assert self.engine is not None
        return sum(lane.record.tokens for lane in self.engine._lanes)


def by_lanes_of_chats(
    setup: Setup, model: ModelSpec, data: Any, root: Path, rows: int
) -> Iterator[Callable[[], Sequence[object]]]:
    """The same for rows of unlike lengths, by their own tokens."""
    spec = trial(setup, model, rows)
    packs, chats = Packs(setup), Chats(data, rows, setup.device)

    def row(lanes: int) -> Sequence[object]:
        seen: dict[str, list[int]] = {name: [] for name in ("packed", "limit", "one")}

        def noted(name: str, act: Callable[[], None], tokens: Callable[[], int]) -> Any:
            """Note the tokens that each round has seen."""
            calls = count(1)

            def step() -> None:
                act()
                if next(calls) % setup.steps == 0:
                    seen[name].append(tokens())

            return step

        arms = {
            "packed": lambda: noted("packed", packs.of([spec] * lanes, data, root), packs.tokens),
            "limit": lambda: noted("limit", *chats.train(setup, spec, chats.of_all(lanes))),
            "one": lambda: noted("one", *chats.train(setup, spec, chats.of(0))),
        }
        seconds, peaks = rounds(setup, arms)
        speeds = {
            name: statistics.median(
                tokens / (setup.steps * each)
                for tokens, each in zip(np.diff(seen[name]), seconds[name], strict=True)
            )
            if seconds[name]
            else 0.0
            for name in arms
        }
        ours, limit, one = speeds.values()
        return (
            lanes,
            f"{ours:,.0f}" if ours else "does not fit",
            f"{1000 * statistics.median(seconds['packed']) / lanes:.2f}" if ours else "-",
            f"{ours / limit:.2f}" if limit and ours else "-",
            f"{ours / one:.2f}" if one and ours else "-",
            f"{peaks['packed']:,.0f}",
        )

    return (lambda lanes=lanes: row(lanes) for lanes in setup.lanes)  # type: ignore[misc]


def unlike(setup: Setup, model: ModelSpec, data: Any, root: Path, rows: int) -> str:
    """Eight lanes alike, of unlike ranks, and of unlike ranks and micro-batches."""
    alike = [trial(setup, model, rows)] * 8
    ranks = [trial(setup, model, rows, rank) for rank in (4, 8, 16, 32) for _ in range(2)]
    mixed = [
        trial(setup, model, max(1, rows + change), rank)
        for rank in (4, 8, 16, 32)
        for change in (-rows // 2, rows // 2)
    ]
    packs = {
        "r=8": alike,
        "r=4, 8, 16, 32, two each": ranks,
        "the same, micro-batches half and one and a half": mixed,
    }
    arms = {
        name: (lambda specs=specs: packed(setup, specs, data, root))
        for name, specs in packs.items()
    }
    found = compare(setup, arms)
    lines: list[Sequence[object]] = [("8 lanes", "tokens/s", "MiB")]
    for name, specs in packs.items():
        seconds, peak = found[name]
        tokens = sum(spec.batch_size for spec in specs) * setup.tokens
        lines.append(
            (name, f"{tokens / seconds:,.0f}" if seconds else "does not fit", f"{peak:,.0f}")
        )
    return table(*lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lanes", type=int, nargs="*")
    parser.add_argument("--micro-batches", type=int, nargs="*")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in all")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append each line to it, too")
    parser.add_argument("--minutes", type=float, help="end before that; on a GPU 7.5")
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.device == "cpu" else 8)
    setup = GPU if asked.device == "cuda" else LAPTOP
    setup = replace(
        setup,
        lanes=tuple(asked.lanes or setup.lanes),
        micro_batches=tuple(asked.micro_batches or setup.micro_batches),
        recomputes=asked.recompute,
    )
    pages = Pages(output=asked.output, minutes=asked.minutes or setup.minutes)
    if asked.device == "cuda":  # first: a run that is cut short has said where it ran
        pages.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        model, data = random_base(setup, Path(folder, "base")), random_rows(setup)
        for rows in setup.micro_batches:
            what = f"micro-batch {rows}, rows of {setup.tokens} tokens, r=8 on all linear layers"
            pages.write(f"\n{what}\n")
            pages.table(HEAD, by_lanes(setup, model, data, Path(folder, "equal"), rows))
            chats = chat_rows(setup)
            lengths = np.array([len(ids) for ids in chats.train["input_ids"]])
            what = f"mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, at most"
            pages.write(
                f"\nthe same, rows of unlike lengths ({what} {lengths.max()} tokens), trials out "
                "of step\n"
            )
            place = Path(folder, "chats")
            pages.table(HEAD, by_lanes_of_chats(setup, model, chats, place, rows))
            if pages.has_time(60):
                place = Path(folder, str(rows))
                pages.write(f"\n{sft_trainer(setup, trial(setup, model, rows), data, place)}")
            if pages.has_time(60):
                pages.write(f"\n{unlike(setup, model, data, Path(folder, 'unlike'), rows)}\n")
    if asked.device == "cpu":
        pages.write(machine())


if __name__ == "__main__":
    main()
