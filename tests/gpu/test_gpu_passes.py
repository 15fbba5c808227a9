"""What a pass costs: no waits, no plans made anew, few passes of an evaluation, true seconds."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cards import CUDA, body, counted, llama, rows_of
from support.packs import Pack, pack, small

from sweeps.config.spec import ModelSpec, TrainSpec
from trainers.data.dataset import PreparedData
from trainers.trial.meters import free_memory

pytestmark = pytest.mark.gpu

FOREVER = 10**6


def endless(model: ModelSpec, seed: int = 1, rows: int = 2, tokens: int = 512) -> TrainSpec:
    """A trial that neither logs nor evaluates while it is watched."""
    spec = small(
        model=model,
        seed=seed,
        evaluations=1,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        logging_steps=FOREVER,
        logging_first_step=False,
        learning_rate=1e-4,
    )
    return replace(spec, data=replace(spec.data, max_length=tokens))


def endless_pack(root: Path, specs: list[TrainSpec], data: PreparedData) -> Pack:
    return pack(root, specs, examples=FOREVER, data=data, device=CUDA)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_host_does_not_wait_for_the_device_within_a_micro_step(
    tmp_path: Path, dropout: float
) -> None:
    specs = [
        replace(s, peft={**s.peft, "lora_dropout": dropout, "r": 4 * s.seed})
        for s in (endless(llama(), seed) for seed in (1, 2, 2))
    ]
    made = endless_pack(tmp_path, specs, rows_of([64, 100, 200, 40] * 8))
    made.advance(3)  # whatever is made once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.advance(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not made.ended


def seconds_of(made: Pack, passes: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    made.advance(passes)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def test_rows_of_random_lengths_cost_no_more_than_the_longest_and_memory_does_not_grow(
    tmp_path: Path,
) -> None:
    """Attention that makes a plan for each shape does, and an allocator that cannot reuse."""
    passes, lanes = 40, 4
    lengths = np.random.default_rng(3).integers(60, 513, 2 * lanes * passes).tolist()
    model = llama(layers=4, hidden=512)
    specs = [endless(model, seed) for seed in range(lanes)]
    longest = endless_pack(tmp_path / "longest", specs, rows_of([512] * len(lengths)))
    seconds_of(longest, 5)
    whole = seconds_of(longest, passes)
    del longest
    free_memory()
    random = endless_pack(tmp_path / "random", specs, rows_of(lengths))
    times = [seconds_of(random, passes) for _ in range(2)]
    assert min(times) < 1.3 * whole, (times, whole)
    held = torch.cuda.memory_reserved() / torch.cuda.max_memory_allocated()
    assert held < 1.3, f"{held:.2f} times what was needed at the most is reserved"


def test_an_evaluation_takes_few_passes(tmp_path: Path) -> None:
    """Sized by hidden states: logits are never held whole. Of all lanes at once, too."""
    vocabulary, lanes = 128_256, 8
    model = llama(vocabulary=vocabulary)
    lengths = np.random.default_rng(5).integers(300, 500, 120).tolist()
    data = rows_of([64] * 32, lengths, vocabulary=vocabulary)
    made = endless_pack(tmp_path, [endless(model, seed) for seed in range(lanes)], data)
    made.advance()
    with counted(body(made), "forward") as calls:
        found = made.engine._evaluation.measure(made.engine._lanes)
    batches = made.engine._evaluation._rows.batches
    most = math.ceil(sum(lengths) * lanes / 8192) + len(batches)
    assert 0 < len(calls) <= most, f"{len(calls)} passes, {most} are plenty"
    losses = [measured.loss for measured in found if not isinstance(measured, Exception)]
    assert len(losses) == lanes
    assert all(math.isfinite(loss) for loss in losses)


def test_tokens_a_second_are_those_that_the_device_has_done(tmp_path: Path) -> None:
    """Beside CUDA's own clock; with a lane that comes in the middle."""
    steps = 40
    data = rows_of([256] * 256)
    spec = replace(endless(llama(layers=4, hidden=512)), evaluations=1)
    spec = replace(spec, trainer={**spec.trainer, "logging_steps": steps})
    made = endless_pack(tmp_path, [spec], data)
    made.advance(5)
    seen: Any = made.engine._lanes[0].record
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before = seen.totals()
    begin.record()
    made.advance(steps - 5)  # the last one logs, and so waits
    end.record()
    torch.cuda.synchronize()
    after = seen.totals()
    ours = (after["tokens"] - before["tokens"]) / (after["seconds"] - before["seconds"])
    true = (after["tokens"] - before["tokens"]) / (begin.elapsed_time(end) / 1000)
    assert ours == pytest.approx(true, rel=0.05)


def test_the_peak_of_a_second_engine_is_its_own(tmp_path: Path) -> None:
    data = rows_of([512] * 64)
    large = endless_pack(tmp_path / "large", [endless(llama(), s, rows=8) for s in range(4)], data)
    large.advance(2)
    peak = large.engine._lanes[0].record.totals()["peak_memory_mb"]
    del large
    free_memory()
    small_one = endless_pack(tmp_path / "small", [endless(llama(), rows=1)], data)
    small_one.advance(2)
    assert small_one.engine._lanes[0].record.totals()["peak_memory_mb"] < 0.5 * peak
