"""The cost of a config alone, measured for real on the tiny model."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import EXAMPLES, Recorder, prepared, run, train_spec

from sweeps.core.cost import Parts
from sweeps.storage.run_folder import RunFolder
from trainers.data.preparation import lengths
from trainers.sft.cost import MicroBatches, measure
from trainers.trial.task import Task

DROPOUT = {"method": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}


def task(root: Path, *, examples: int = EXAMPLES, **trainer: object) -> Task:
    spec = train_spec(peft=DROPOUT, **trainer)
    folder = RunFolder(root / "cost")
    return Task(key="k", train=spec, examples=examples, folder=folder, device="cpu")


@pytest.mark.slow
def test_a_measurement_between_two_trials_changes_no_number_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    spec = train_spec(peft=DROPOUT)
    first = run(tmp_path / "without", spec, Recorder(base=True))
    without = first.seen
    torch.manual_seed(5)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    parts = measure(task(tmp_path), prepared())
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    seen = run(tmp_path / "with", spec, Recorder(base=True)).seen
    assert seen.trained == without.trained
    assert seen.measured == without.measured
    assert not (tmp_path / "cost").exists()
    assert is_plausible(parts)
    assert parts.state_mb == first.outcome.totals["optimizer_state_mb"]


def is_plausible(parts: Parts) -> bool:
    seconds = min(parts.micro_s, parts.update_s)
    return seconds > 0 and parts.padded >= parts.tokens > 0 and parts.passes_mb > 100


@pytest.mark.slow
def test_a_budget_below_one_micro_batch_is_measured_with_what_it_has(tmp_path: Path) -> None:
    assert is_plausible(measure(task(tmp_path, examples=3), prepared()))


def test_the_rows_stand_for_the_lengths_of_the_whole_stream(tmp_path: Path) -> None:
    data = prepared()
    batches = MicroBatches.of(data, task(tmp_path, examples=160))
    counts = lengths(data.train)
    assert batches.rows.shape == (40, 4)
    assert batches.tokens.tolist() == counts[batches.rows].sum(axis=1).tolist()
    chosen = counts[batches.spread()].reshape(-1, 4)
    padded = 4 * chosen.max(axis=1)
    assert padded.tolist() == sorted(padded)
    assert batches.mean_of(0.5 + 0.25 * padded) == pytest.approx(0.5 + 0.25 * batches.padded.mean())
    last = batches.with_largest(batches.spread())[-4:]
    assert 4 * counts[last].max() == batches.padded.max()
