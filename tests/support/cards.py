"""For tests on a GPU: a base that flash attention takes, rows as long as chats, what is watched.

All of it runs on a CPU as well; tests/test_cards.py shows that it sees what it is to see.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from support.packs import Pack
from support.training import scratch
from torch.utils._python_dispatch import TorchDispatchMode

from sweeps.config.spec import ModelSpec
from trainers.data.dataset import PreparedData
from trainers.model.tokenizer import load_tokenizer
from trainers.trial import checkpoint

CUDA = "cuda"
VOCABULARY = 256
CONTEXT = 1024


@functools.cache
def llama(*, vocabulary: int = VOCABULARY, layers: int = 2, hidden: int = 256) -> ModelSpec:
    """Random weights; heads of 64 and grouped queries, as the models that users train have them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = scratch()
    load_tokenizer(ModelSpec(path="tiny")).save_pretrained(str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=max(1, hidden // 256),
            head_dim=64,
            max_position_embeddings=CONTEXT,
            initializer_range=0.08,  # losses far from the uniform one
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(str(folder))
    return ModelSpec(path=str(folder))


def rows_of(
    lengths: Sequence[int], evaluated: Sequence[int] = (), *, vocabulary: int = VOCABULARY
) -> PreparedData:
    """Rows of these lengths, a prompt first; of the training rows the first few are evaluated where
    nothing else is said."""
    draw = np.random.default_rng(11)

    def rows(chosen: Sequence[int]) -> Dataset:
        ids = [draw.integers(3, vocabulary, length).tolist() for length in chosen]
        labels = [[-100] * (1 + len(row) // 4) + row[1 + len(row) // 4 :] for row in ids]
        return Dataset.from_dict({"input_ids": ids, "labels": labels})

    train, evaluation = rows(lengths), rows(evaluated or lengths[:8])
    return PreparedData(train=train, evaluation=evaluation, test=None, fingerprint="", report=None)


class Matmuls(TorchDispatchMode):
    """The number types that this thread's matrix multiplications get, counted."""

    def __init__(self) -> None:
        super().__init__()
        self.types: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket._qualified_op_name in ("aten::mm", "aten::addmm", "aten::bmm"):
            self.types[args[-1].dtype] += 1
        return op(*args, **(kwargs or {}))


def operators(act: Callable[[], object]) -> Counter[str]:
    """What torch calls by name while `act` runs, counted."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        act()
    return Counter({event.key: event.count for event in profile.key_averages()})


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[Any]]:
    """The calls of a function within, each with its arguments by name."""
    whole, calls = getattr(owner, name), []

    @functools.wraps(whole)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return whole(*args, **kwargs)

    setattr(owner, name, call)
    try:
        yield calls
    finally:
        setattr(owner, name, whole)


def body(made: Pack) -> Any:
    """The base model of a pack, without its head."""
    return made.engine._base.model.base_model


def reseal(folder: Path, change: Callable[[Path], None]) -> None:
    """Change a checkpoint's files as another writer would have written them."""
    manifest = checkpoint.verify(folder)
    draft = folder.with_name(".draft")
    folder.rename(draft)
    (draft / checkpoint.MANIFEST).unlink()
    change(draft)
    checkpoint.commit(draft, folder, replace(manifest, files={}))


def child(text: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, as what it does to its device may be for good."""
    words = [sys.executable, "-c", text]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


@contextmanager
def stranger(mb: float) -> Iterator[None]:
    """Another process holds so much of the GPU within."""
    text = (
        "import sys, torch; "
        f"held = torch.empty({int(mb * 2**20)}, dtype=torch.uint8, device='cuda'); "
        "torch.cuda.synchronize(); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.stdin.close()
        process.wait(60)
