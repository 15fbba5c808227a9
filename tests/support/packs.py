"""Packs for tests: a very small random Llama, short rows, and trials run as lanes or alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from support.training import EXAMPLES, LORA, Recorder, scratch, train_spec

from sweeps.config.spec import DataSpec, Kernels, ModelSpec, TrainSpec
from sweeps.core.trial import State
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import PreparedData
from trainers.model.tokenizer import load_tokenizer
from trainers.packed.engine import Ended, Engine
from trainers.sft import trainer as sft_trainer
from trainers.trial.task import Task


@functools.cache
def small_base() -> ModelSpec:
    """Two layers of random weights; some adapters are large enough for 8-bit optimizer states."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    folder = scratch()
    load_tokenizer(ModelSpec(path="tiny")).save_pretrained(str(folder))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=32,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.2,  # losses far from the uniform one, and gradients worth the name
        )
        LlamaForCausalLM(config).save_pretrained(str(folder))
    return ModelSpec(path=str(folder))


@functools.cache
def short_rows() -> PreparedData:
    """Rows of 4 to 14 tokens whose first ones are a prompt."""
    draw = np.random.default_rng(7)

    def rows(count: int) -> Dataset:
        ids = [draw.integers(3, 60, draw.integers(4, 15)).tolist() for _ in range(count)]
        labels = [[-100] * (1 + len(row) // 4) + row[1 + len(row) // 4 :] for row in ids]
        return Dataset.from_dict({"input_ids": ids, "labels": labels})

    train, evaluation, report = rows(120), rows(24), SimpleNamespace(stops=())
    return PreparedData(
        train=train, evaluation=evaluation, test=None, fingerprint="", report=report
    )


@functools.cache
def unlike_rows() -> PreparedData:
    """Rows of 2 to 60 tokens, most of them short."""
    draw = np.random.default_rng(7)

    def rows(count: int) -> Dataset:
        lengths = np.clip(np.exp(draw.normal(2.2, 0.9, count)).astype(int), 2, 60)
        ids = [draw.integers(3, 60, length).tolist() for length in lengths]
        return Dataset.from_dict({"input_ids": ids, "labels": ids})

    train, evaluation = rows(120), rows(24)
    return PreparedData(train=train, evaluation=evaluation, test=None, fingerprint="", report=None)


def small(
    *,
    peft: Mapping[str, Any] | None = None,
    seed: int = 3,
    model: ModelSpec | None = None,
    **more: Any,
) -> TrainSpec:
    """A trial that logs each of its steps; `more` goes to `train_spec`."""
    spec = train_spec(peft=LORA | dict(peft or {}), model=model or small_base(), **more)
    return replace(spec, data=DataSpec(source="docstrings", max_length=16), seed=seed)


def key(place: int) -> str:
    return f"{place:010x}"


@dataclass
class Pack:
    """An engine whose lanes' observers and endings are kept, by place."""

    root: Path
    engine: Engine
    specs: list[TrainSpec]
    seen: list[Recorder]
    ended: dict[int, Ended]
    examples: int
    device: str = "cpu"

    def attach(self, spec: TrainSpec, seen: Recorder | None = None) -> bool:
        place = len(self.specs)
        self.specs.append(spec)
        self.seen.append(seen or Recorder())
        one = task(self.root, spec, place, self.examples, self.device)
        return self.engine.attach(one, self.seen[place])

    def advance(self, times: int = 1) -> None:
        for _ in range(times):
            for ended in self.engine.advance():
                self.ended[int(ended.task.key, 16)] = ended

    def finish(self) -> Pack:
        while self.engine.keys:
            self.advance()
        return self

    def state(self, place: int) -> State:
        """How a lane ended; what it raised is raised here."""
        ended = self.ended[place]
        if ended.error is not None:
            raise ended.error
        assert ended.outcome is not None
        return ended.outcome.state

    def checkpoint(self, place: int, step: int) -> Path:
        return RunFolder(self.root).checkpoint(key(place), step)


def task(root: Path, spec: TrainSpec, place: int, examples: int, device: str = "cpu") -> Task:
    folder = RunFolder(root)
    return Task(key=key(place), train=spec, examples=examples, folder=folder, device=device)


def pack(
    root: Path,
    specs: Sequence[TrainSpec],
    seen: Sequence[Recorder] | None = None,
    *,
    examples: int = EXAMPLES,
    data: PreparedData | None = None,
    device: str = "cpu",
    pads: bool = False,
    kernels: Kernels = "torch",
) -> Pack:
    """A pack with a lane for each trial; flat if the model can be, however small it is."""
    torch.set_num_threads(1)
    engine = Engine(specs[0], data or short_rows(), device=device, pads=pads, kernels=kernels)
    made = Pack(root, engine, [], [], {}, examples, device)
    for place, spec in enumerate(specs):
        made.attach(spec, seen[place] if seen else None)
    return made


def alone(
    root: Path,
    spec: TrainSpec,
    seen: Recorder | None = None,
    *,
    place: int = 0,
    examples: int = EXAMPLES,
    data: PreparedData | None = None,
    device: str = "cpu",
) -> Recorder:
    """The same trial by SFTTrainer; what it told."""
    torch.set_num_threads(1)
    seen = seen or Recorder()
    sft_trainer.train(task(root, spec, place, examples, device), data or short_rows(), seen)
    return seen


@functools.cache
def _alone(text: str, examples: int) -> tuple[Path, Recorder]:
    root = scratch()
    return root, alone(root, _by_text[text], examples=examples)


_by_text: dict[str, TrainSpec] = {}


def alone_once(spec: TrainSpec, examples: int = EXAMPLES) -> tuple[Path, Recorder]:
    """`alone`, remembered; its folder is for looking only."""
    _by_text[repr(spec)] = spec
    return _alone(repr(spec), examples)


def adapter(folder: Path) -> torch.Tensor:
    """All weights of a checkpoint's adapter, in one vector."""
    from safetensors.torch import load_file

    weights = load_file(str(folder / "adapter_model.safetensors"))
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def distance(ours: Path, theirs: Path) -> float:
    """Relative L2 between the adapters of two checkpoints."""
    a, b = adapter(ours), adapter(theirs)
    return float((a - b).norm() / b.norm())
