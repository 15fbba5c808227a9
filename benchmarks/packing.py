"""Training alone: lanes of a pack beside one LoRA run on the same rows, and beside one at a time.

    python -m benchmarks.packing                   # 1 M parameters, rows of 20 tokens; minutes
    python -m benchmarks.packing --device cuda     # Llama-3.2-1B's shape in bf16, rows of 512

Nothing is evaluated, logged or saved while it is timed. `one batch` is the limit: a plain PEFT
model, all rows of all lanes as one micro-batch of one adapter. `one at a time` is the same model
with the rows of one lane, in a bare loop. Both have the pack's own head, attention, threads and
AdamW. Weights are random: speed does not depend on them. MiB is the peak of the device; on a CPU of
this process, with what else it holds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, table
from sweeps.files import RunFolder
from sweeps.spec import BudgetSpec, DataSpec, ModelSpec, TrainSpec
from sweeps.trial import Decision
from trainers.guards import PeakMemory, free_memory, is_out_of_memory
from trainers.packed.engine import Engine
from trainers.packed.head import Head
from trainers.task import Task

_ROWS = 4096
_FOREVER = 10**6  # examples of a trial: none ends while it is timed


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
)


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

    from trainers.model import load_tokenizer

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

    from trainers.data import PreparedData

    draw = np.random.default_rng(0)
    rows = draw.integers(3, 2000, (_ROWS, setup.tokens)).tolist()
    train = Dataset.from_dict({"input_ids": rows, "labels": rows})
    few = train.select(range(8))
    return PreparedData(train=train, evaluation=few, test=None, fingerprint="", report=None)  # type: ignore[arg-type]


def trial(setup: Setup, model: ModelSpec, rows: int, rank: int = 8) -> TrainSpec:
    return TrainSpec(
        model=model,
        data=DataSpec(source="docstrings", max_length=setup.tokens),
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


def packed(setup: Setup, specs: Sequence[TrainSpec], data: Any, root: Path) -> Callable[[], None]:
    """A pack of these trials; a call is one optimizer step of each."""
    engine = Engine(specs[0], data, device=setup.device)
    for place, spec in enumerate(specs):
        task = Task(
            key=f"{place:010x}",
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


def plain(setup: Setup, spec: TrainSpec, data: Any) -> Callable[[], None]:
    """A plain PEFT model and AdamW; a call is one optimizer step on a micro-batch."""
    from trainers.adapters import adapt
    from trainers.model import load_base

    base = load_base(spec.model, setup.device)
    head, model = Head(base), adapt(base, spec.peft)
    model.train()
    if setup.recomputes:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids = torch.tensor(data.train[: spec.batch_size]["input_ids"], device=setup.device)
    targets = ids[:, 1:].flatten()

    def step() -> None:
        with torch.autocast(setup.device, torch.bfloat16, enabled=setup.device == "cuda"):
            hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            losses, _ = head.score(hidden.reshape(-1, hidden.shape[-1]), targets)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def sft_trainer(setup: Setup, spec: TrainSpec, data: Any, root: Path) -> str:
    """One trial at a time as users train it; without TRL, that it is not there."""
    try:
        from trainers import solo
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
    seconds = solo.train(task, data, Silent()).totals["seconds"]
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
    built, peaks = {}, dict.fromkeys(arms, 0.0)
    for name, build in arms.items():
        free_memory()
        memory = PeakMemory(setup.device)
        try:
            step = build()
            timed(setup, step)  # caches and allocators warm up
            peaks[name] = memory.mb
            built[name] = step
        except Exception as error:
            if not is_out_of_memory(error):
                raise
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(setup.rounds):
        for name, step in built.items():
            seconds[name].append(timed(setup, step))
    medians = {name: statistics.median(s) if s else 0.0 for name, s in seconds.items()}
    return {name: (medians[name], peaks[name]) for name in arms}


def by_lanes(setup: Setup, model: ModelSpec, data: Any, root: Path, rows: int) -> str:
    """Tokens a second for each number of lanes, beside the limit and one at a time."""
    lines: list[Sequence[object]] = [
        ("lanes", "tokens/s", "ms a lane-step", "of one batch", "times one at a time", "MiB"),
    ]
    per_lane = rows * setup.tokens
    spec = trial(setup, model, rows)
    for lanes in setup.lanes:
        arms = {
            "packed": lambda: packed(setup, [spec] * lanes, data, root),  # noqa: B023
            "limit": lambda: plain(setup, trial(setup, model, rows * lanes), data),  # noqa: B023
            "one": lambda: plain(setup, spec, data),
        }
        found = compare(setup, arms)
        (step_s, peak), (limit_s, _), (one_s, _) = (found[name] for name in arms)
        lines.append(
            (
                lanes,
                f"{lanes * per_lane / step_s:,.0f}" if step_s else "does not fit",
                f"{1000 * step_s / lanes:.2f}",
                f"{limit_s / step_s:.2f}" if limit_s and step_s else "-",
                f"{lanes * one_s / step_s:.2f}" if step_s else "-",
                f"{peak:,.0f}",
            )
        )
    return table(*lines)


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
    asked = parser.parse_args()
    torch.set_num_threads(1 if asked.device == "cpu" else 8)
    setup = GPU if asked.device == "cuda" else LAPTOP
    setup = replace(
        setup,
        lanes=tuple(asked.lanes or setup.lanes),
        micro_batches=tuple(asked.micro_batches or setup.micro_batches),
        recomputes=asked.recompute,
    )
    with tempfile.TemporaryDirectory() as folder:
        model, data = random_base(setup, Path(folder, "base")), random_rows(setup)
        for rows in setup.micro_batches:
            print(
                f"\nmicro-batch {rows}, rows of {setup.tokens} tokens, r=8 on all linear layers\n"
            )
            print(by_lanes(setup, model, data, Path(folder), rows), flush=True)
            print(
                f"\n{sft_trainer(setup, trial(setup, model, rows), data, Path(folder, str(rows)))}"
            )
            print(f"\n{unlike(setup, model, data, Path(folder), rows)}\n", flush=True)
    print(torch.cuda.get_device_name() if asked.device == "cuda" else machine())


if __name__ == "__main__":
    main()
