"""Training alone: lanes of a pack beside one LoRA run on the same rows, and beside one at a time.

    python -m benchmarks.packing                   # 1 M parameters, three kinds of rows; 40 minutes
    python -m benchmarks.packing --lengths chat --lanes-at apart --lanes 8 --micro-batches 4
    python -m benchmarks.packing --device cuda     # Llama-3.2-1B's shape in bf16
    python -m benchmarks.packing --output FILE     # each line goes there too, once it is known

Rows are all of one length (`equal`), as long as the embedded data's (`docstrings`), or as chats are
(`chat`: lognormal). Trials see them in one order (`same`: each lane has the same rows at the same
time) or each in an order of its own (`apart`: other seeds, other batch sizes, refilled lanes).
Tokens are those of the rows; what pads them is not counted.

`of the limit`: beside a plain PEFT model with all rows of all lanes as one micro-batch of one
adapter, without padding. `times padded`: beside the same pack with its rows padded to the longest
of all lanes. `liger` (`--kernels torch liger`, on a GPU): the same pack with engine.kernels=liger,
beside it. `times one`: beside a plain model with the rows of one lane, padded to their longest,
in a bare loop. All have the pack's own head, threads and AdamW. On a CPU the seconds are those of
forward and backward passes, `optimizer` says which share of a pack's step they leave out; on a GPU,
which runs behind the program, those of whole steps.

Nothing is evaluated, logged or saved while it is timed. Weights are random: speed does not depend
on them. MiB is the peak of the device; on a CPU of this process, with what else it holds. On a GPU
it ends after --minutes 7.5, and says what it has left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, table
from sweeps.config.spec import BudgetSpec, DataSpec, Kernels, ModelSpec, TrainSpec
from sweeps.core.trial import Decision
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import order
from trainers.flat import attention as flat_attention
from trainers.model import cache, kernels
from trainers.packed.compatibility import settings
from trainers.packed.engine import Engine
from trainers.packed.frozen_base import Base
from trainers.packed.lm_head import Head
from trainers.packed.micro_batches import Inputs, Placing, sent_together
from trainers.trial.failures import is_out_of_memory
from trainers.trial.meters import PeakMemory, free_memory
from trainers.trial.task import Task

LENGTHS = ("equal", "docstrings", "chat")
LANES_AT = ("same", "apart")
_ROWS = 4096
_FOREVER = 10**6  # examples of a trial: none ends while it is timed
_SPREAD = 0.9  # of the logarithm of a chat's length
_MEAN, _LONGEST = 243, 1024  # tokens of chats
_GROWTH = 2.2  # times that a row of a table takes, with twice the lanes, of the one before


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is measured, on which device."""

    device: str
    shape: dict[str, int]  # of the Llama
    equal: int  # tokens of a row, if all have one length
    micro_batches: tuple[int, ...]
    lanes: tuple[int, ...]
    steps: int  # of one timing
    rounds: int
    recomputes: bool = False
    kernels: tuple[Kernels, ...] = ("torch",)  # of the base of packs
    minutes: float | None = None  # it ends before that


LAPTOP = Setup(
    device="cpu",
    shape={"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "vocab_size": 2048}
    | {"num_attention_heads": 4, "num_key_value_heads": 4},
    equal=20,
    micro_batches=(1, 4),
    lanes=(1, 4, 8, 16),
    steps=4,
    rounds=5,
)
GPU = Setup(
    device="cuda",
    shape={"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256},
    equal=512,
    micro_batches=(1, 4),
    lanes=(1, 4, 8, 16, 32),
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

    def told(self) -> Decision:
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


def lengths_of(kind: str, setup: Setup) -> list[int]:
    """Tokens of the rows of a kind."""
    if kind == "equal":
        return [setup.equal] * _ROWS
    if kind == "docstrings":
        return _docstrings()
    draw = np.random.default_rng(0)
    spread = np.exp(_SPREAD * draw.standard_normal(_ROWS))
    lengths, scale = spread, 1.0
    for _ in range(50):  # to that mean, after the longest were cut off
        scale *= _MEAN / lengths.mean()
        lengths = np.clip(np.round(scale * spread), 3, _LONGEST)
    return [int(length) for length in lengths]


def _docstrings() -> list[int]:
    from trainers.data.rows import read
    from trainers.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(ModelSpec(path="tiny"))
    rows = read(DataSpec(source="docstrings", limit=_ROWS)).train
    texts = [f"{row['prompt']}{row['completion']}" for row in rows]
    return [min(len(ids), 511) + 1 for ids in tokenizer(texts)["input_ids"]]


def random_rows(lengths: Sequence[int]) -> Any:
    """Prepared data: random rows of these lengths, all tokens labelled."""
    from datasets import Dataset

    from trainers.data.dataset import PreparedData

    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 2000, length).tolist() for length in lengths]
    train = Dataset.from_dict({"input_ids": rows, "labels": rows})
    few = train.select(range(8))
    return PreparedData(train=train, evaluation=few, test=None, fingerprint="", report=None)  # type: ignore[arg-type]


def trial(setup: Setup, model: ModelSpec, rows: int, rank: int = 8) -> TrainSpec:
    return TrainSpec(
        model=model,
        data=DataSpec(source="docstrings", max_length=_LONGEST),
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


@dataclass
class Arm:
    """One way to train, and what it has done so far."""

    step: Callable[[], None] = lambda: None  # a micro-step of each trial, and its optimizer's
    tokens: int = 0  # of rows
    passes_s: float = 0.0  # forward and backward

    @contextmanager
    def passing(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.passes_s += time.perf_counter() - began


class Packs:
    """The packs of a table: on a GPU one that grows, since a lane takes longer to make than to
    time."""

    def __init__(
        self,
        setup: Setup,
        data: Any,
        root: Path,
        *,
        pads: bool | None,
        apart: bool,
        kernels: Kernels = "torch",
    ) -> None:
        self._setup, self._data, self._root = setup, data, root
        self._pads, self._apart, self._kernels = pads, apart, kernels
        self._bases: dict[str, Base] = {}
        self._engine: Engine | None = None

    def of(self, specs: Sequence[TrainSpec]) -> Arm:
        """A pack of these trials, some of which the one before may have as lanes already."""
        arm, setup = Arm(), self._setup
        before = self._engine if setup.device == "cuda" else None
        engine = self._engine = before or Engine(
            specs[0],
            self._data,
            device=setup.device,
            base=self._base(specs[0]),
            pads=self._pads,
            kernels=self._kernels,
        )
        for place, spec in enumerate(specs):
            key = f"{place:010x}"
            if key in engine.keys:
                continue
            task = Task(
                key=key,
                train=replace(spec, seed=place if self._apart else 0),
                examples=_FOREVER,
                folder=RunFolder(self._root),
                device=setup.device,
            )
            engine.attach(task, Silent())
        train_pass = type(engine._base).train_pass

        def passed(lanes: Any, batches: Any) -> Any:
            with arm.passing():
                found = train_pass(engine._base, lanes, batches)
            arm.tokens += sum(len(ids) for batch in batches for ids, _ in batch.rows)
            return found

        def step() -> None:
            engine._base.train_pass = passed  # type: ignore[method-assign]
            ended = engine.advance()
            assert not ended, ended

        arm.step = step
        return arm

    def _base(self, spec: TrainSpec) -> Base | None:
        """On a GPU, where loading takes longer than what is timed, all packs have one base."""
        if self._setup.device == "cpu":
            return None
        if spec.model.path not in self._bases:
            self._bases[spec.model.path] = Base(
                spec,
                settings(spec),
                self._setup.device,
                pads=self._pads,
                kernels=self._kernels,
            )
        return self._bases[spec.model.path]


def micro_batches(data: Any, rows: int, seeds: Sequence[int]) -> Iterator[list[list[int]]]:
    """The next micro-batches of trials with these seeds, as one list of rows."""
    ids: list[list[int]] = data.train["input_ids"][:]
    orders = {seed: order(len(ids), 400 * rows, seed) for seed in seeds}
    for start in range(0, 400 * rows, rows):
        yield [ids[row] for seed in seeds for row in orders[seed][start : start + rows]]


def plain(
    setup: Setup, spec: TrainSpec, batches: Iterator[list[list[int]]], *, is_flat: bool
) -> Arm:
    """A plain PEFT model and AdamW: rows without padding, or padded to their longest."""
    from trainers.model.loading import load_base
    from trainers.model.lora import adapt

    on_cpu, arm = setup.device == "cpu", Arm()
    device = torch.device(setup.device)
    base = load_base(spec.model, "cpu") if on_cpu else cache.base_for(spec, setup.device)
    head, model = Head(base), adapt(base, spec.peft)
    if is_flat:
        flat_attention.register()
        base.set_attn_implementation(flat_attention.NAME)
    model.train()
    if setup.recomputes:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def loss(inputs: Inputs, index: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(setup.device, torch.bfloat16, enabled=not on_cpu):
            found = base.base_model(input_ids=inputs.ids, use_cache=False, **inputs.options)
            hidden = found.last_hidden_state.flatten(0, 1).index_select(0, index)
            return head.score(hidden, targets)[0].mean()

    def step() -> None:
        rows = next(batches)
        with arm.passing():
            lengths = [len(row) for row in rows]
            longest = max(lengths)
            placing = Placing([lengths], device, None if is_flat else ([len(rows)], longest))
            ids = np.zeros(placing.total, dtype=np.int64)
            starts = placing.starts[: len(rows)]
            for start, row in zip(starts, rows, strict=True):
                ids[start : start + len(row)] = row
            index = [
                start + np.arange(len(row) - 1) for start, row in zip(starts, rows, strict=True)
            ]
            targets = np.concatenate([row[1:] for row in rows])
            arrays = [ids, np.concatenate(index), targets, *placing.arrays()]
            there = list(sent_together(arrays, device))
            inputs = placing.inputs(there[0], there[3:])
            if inputs.layout is None:
                loss(inputs, there[1], there[2]).backward()
            else:
                with flat_attention.laid_out(inputs.layout):
                    loss(inputs, there[1], there[2]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        arm.tokens += sum(lengths)

    arm.step = step
    return arm


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
    totals = sft_trainer.train(task, data, Silent()).totals
    speed = totals["tokens"] / totals["seconds"]
    step_ms = 1000 * totals["seconds"] / steps
    return f"SFTTrainer, one at a time: {speed:,.0f} tokens/s, {step_ms:.1f} ms a step"


@dataclass(frozen=True)
class Timing:
    """One timing of an arm."""

    tokens: int
    seconds: float
    passes_s: float

    @property
    def speed(self) -> float:
        """Tokens a second, of passes on a CPU and of whole steps on a GPU."""
        return self.tokens / self.passes_s

    @property
    def optimizer_share(self) -> float:
        return 1 - self.passes_s / self.seconds


def timed(setup: Setup, arm: Arm) -> Timing:
    """Some steps of an arm."""
    tokens, passes_s = arm.tokens, arm.passes_s
    began = time.perf_counter()
    for _ in range(setup.steps):
        arm.step()
    if setup.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    passes_s = arm.passes_s - passes_s if setup.device == "cpu" else seconds
    return Timing(arm.tokens - tokens, seconds, passes_s)


def rounds(
    setup: Setup, arms: dict[str, Callable[[], Arm]]
) -> tuple[dict[str, list[Timing]], dict[str, float]]:
    """Timings of each arm, which take turns, none if it does not fit; and its peak MiB."""
    built, peaks = {}, dict.fromkeys(arms, 0.0)
    for name, build in arms.items():
        free_memory()
        memory = PeakMemory(setup.device)
        try:
            arm = build()
            timed(setup, arm)  # caches and allocators warm up
            # A GPU's is of this process alone, and the base that plain models start from stays.
            peaks[name] = memory.mb - (cache.held_mb() if setup.device == "cuda" else 0)
            built[name] = arm
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    found: dict[str, list[Timing]] = {name: [] for name in arms}
    for _ in range(setup.rounds):
        for name, arm in built.items():
            found[name].append(timed(setup, arm))
    return found, peaks


def head(setup: Setup) -> tuple[str, ...]:
    """Names of a table's columns."""
    names = ("lanes", "tokens/s", "ms a lane-step", "optimizer", "of the limit", "times padded")
    return (*names, "times one", "MiB", *(["liger"] if "liger" in setup.kernels else []))


def ratio(ours: Sequence[Timing], theirs: Sequence[Timing]) -> str:
    """How many times as fast, median of the rounds, and the lowest and highest."""
    if not ours or not theirs:
        return "-"
    found = [one.speed / other.speed for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def by_lanes(
    setup: Setup, model: ModelSpec, data: Any, root: Path, rows: int, *, apart: bool
) -> Iterator[Callable[[], Sequence[object]]]:
    """Tokens a second for each number of lanes, beside the other ways to train."""
    spec = trial(setup, model, rows)
    has_liger = "liger" in setup.kernels
    packs = {
        name: Packs(
            setup,
            data,
            root / name,
            pads=True if name == "padded" else None,
            apart=apart,
            kernels="liger" if name == "liger" else "torch",
        )
        for name in ("flat", "padded", *(["liger"] if has_liger else []))
    }

    def row(lanes: int) -> Sequence[object]:
        seeds = range(lanes) if apart else [0] * lanes
        arms = {
            **{name: (lambda made=made: made.of([spec] * lanes)) for name, made in packs.items()},
            "limit": lambda: plain(setup, spec, micro_batches(data, rows, seeds), is_flat=True),
            "one": lambda: plain(setup, spec, micro_batches(data, rows, [0]), is_flat=False),
        }
        found, peaks = rounds(setup, arms)
        ours = found["flat"]
        if not ours:
            return (lanes, "does not fit", *"-" * (len(head(setup)) - 2))
        steps = [1000 * each.seconds / setup.steps / lanes for each in ours]
        return (
            lanes,
            f"{statistics.median(each.speed for each in ours):,.0f}",
            f"{statistics.median(steps):.2f}",
            f"{statistics.median(each.optimizer_share for each in ours):.0%}",
            *(ratio(ours, found[name]) for name in ("limit", "padded", "one")),
            f"{peaks['flat']:,.0f}",
            *([ratio(found["liger"], ours)] if has_liger else []),
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
        name: (
            lambda name=name, specs=specs: Packs(
                setup, data, root / str(len(name)), pads=None, apart=True
            ).of(specs)
        )
        for name, specs in packs.items()
    }
    found, peaks = rounds(setup, arms)
    lines: list[Sequence[object]] = [("8 lanes apart", "tokens/s", "MiB")]
    for name, timings in found.items():
        speed = f"{statistics.median(t.speed for t in timings):,.0f}" if timings else "does not fit"
        lines.append((name, speed, f"{peaks[name]:,.0f}"))
    return table(*lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lengths", choices=LENGTHS, nargs="+", default=LENGTHS)
    parser.add_argument("--lanes-at", choices=LANES_AT, nargs="+", default=LANES_AT)
    parser.add_argument("--lanes", type=int, nargs="+")
    parser.add_argument("--micro-batches", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, help="timings of each way, in turns")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in all")
    parser.add_argument("--output", type=Path, metavar="FILE", help="append each line to it, too")
    parser.add_argument("--minutes", type=float, help="end before that; on a GPU 7.5")
    parser.add_argument("--kernels", choices=("torch", "liger"), nargs="+", default=["torch"])
    asked = parser.parse_args()
    if "liger" in asked.kernels and (asked.device == "cpu" or kernels.lacking()):
        parser.error(f"--kernels liger needs --device cuda, and liger-kernel ({kernels.EXTRA})")
    torch.set_num_threads(1 if asked.device == "cpu" else 8)
    setup = GPU if asked.device == "cuda" else LAPTOP
    setup = replace(
        setup,
        lanes=tuple(asked.lanes or setup.lanes),
        micro_batches=tuple(asked.micro_batches or setup.micro_batches),
        rounds=asked.rounds or setup.rounds,
        recomputes=asked.recompute,
        kernels=tuple(asked.kernels),
    )
    pages = Pages(output=asked.output, minutes=asked.minutes or setup.minutes)
    if asked.device == "cuda":  # first: a run that is cut short has said where it ran
        pages.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        model = random_base(setup, Path(folder, "base"))
        for kind in asked.lengths:
            lengths = lengths_of(kind, setup)
            data = random_rows(lengths)
            what = f"mean {np.mean(lengths):.0f}, median {np.median(lengths):.0f}, at most"
            pages.write(f"\n## {kind}: rows of {what} {max(lengths)} tokens")
            for rows in setup.micro_batches:
                for at in asked.lanes_at:
                    pages.write(f"\nmicro-batch {rows}, lanes {at}, r=8 on all linear layers\n")
                    place = Path(folder, f"{kind}-{rows}-{at}")
                    lines = by_lanes(setup, model, data, place, rows, apart=at == "apart")
                    pages.table(head(setup), lines)
                place = Path(folder, f"{kind}-{rows}")
                if pages.has_time(60):
                    pages.write(f"\n{sft_trainer(setup, trial(setup, model, rows), data, place)}")
                if kind == "equal" and pages.has_time(60):
                    pages.write(f"\n{unlike(setup, model, data, place / 'unlike', rows)}\n")
    if asked.device == "cpu":
        pages.write(machine())


if __name__ == "__main__":
    main()
