"""Evaluation loss: the mean over labelled tokens, whatever the batches, and never half a number."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.training import LORA, TINY, prepared

from sweeps.config.spec import ModelSpec
from trainers.model.loading import load_base
from trainers.model.lora import adapt
from trainers.model.tokenizer import IGNORED
from trainers.trial import evaluation
from trainers.trial.evaluation import Rows, rows_for
from trainers.trial.ranks import Ranks


@pytest.fixture(scope="module")
def model() -> Any:
    return load_base(TINY, "cpu")


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return prepared().evaluation


@pytest.fixture(scope="module")
def expected(model: Any, rows: Dataset) -> tuple[float, int]:
    """Loss and tokens, computed row by row without padding, summed in float64."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
            log_probs = logits.log_softmax(-1)
            for place, label in enumerate(row["labels"][1:]):
                if label != IGNORED:
                    total -= log_probs[place, label].item()
                    tokens += 1
    return total / tokens, tokens


class Spoilt(torch.nn.Module):
    """A model whose logits are `value` in its batch number `batch`, counted from 0."""

    def __init__(self, model: Any, batch: int, value: float) -> None:
        super().__init__()
        self.model, self.batch, self.value, self.calls = model, batch, value, 0

    def forward(self, **inputs: Any) -> Any:
        output = self.model(**inputs)
        if self.calls == self.batch:
            output.logits[:] = self.value
        self.calls += 1
        return output


def small_batches(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(evaluation, "_MOST_TOKENS", tokens)


def test_loss_is_the_mean_over_labelled_tokens(
    model: Any, rows: Dataset, expected: tuple[float, int]
) -> None:
    measured = rows_for(rows, model, TINY).measure(model)
    assert measured.loss == pytest.approx(expected[0], rel=1e-6)
    assert measured.tokens == expected[1]


@pytest.mark.parametrize("budget", [1, 100, 700])
def test_the_size_of_the_batches_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    rows: Dataset,
    expected: tuple[float, int],
    budget: int,
) -> None:
    small_batches(monkeypatch, budget)
    assert rows_for(rows, model, TINY).measure(model).loss == pytest.approx(expected[0], rel=1e-6)


def test_batches_keep_to_their_budget_and_a_longer_row_stands_alone() -> None:
    lists = [([1] * length, [1] * length) for length in (2, 3, 3, 5, 9)]
    sizes = [[len(ids) for ids, _ in batch] for batch in evaluation._batches(lists, 8)]
    assert sizes == [[2, 3], [3], [5], [9]]


def test_a_large_vocabulary_makes_small_batches(rows: Dataset) -> None:
    small = Rows(rows, pad_token_id=0, vocab_size=4096)
    large = Rows(rows, pad_token_id=0, vocab_size=2**20)
    assert len(large.batches) > len(small.batches)
    assert max(batch.ids.numel() for batch in large.batches) <= 64
    assert large.tokens == small.tokens


def test_the_order_of_the_rows_does_not_matter(
    model: Any, rows: Dataset, expected: tuple[float, int]
) -> None:
    other = rows.select(range(len(rows) - 1, -1, -1))
    assert rows_for(other, model, TINY).measure(model).loss == pytest.approx(expected[0], rel=1e-6)


def plain_rows(model: Any, rows: Dataset) -> list[tuple[float, int]]:
    """Each row's sum of -log p and its labelled tokens, computed without padding."""
    found = []
    model.eval()
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
            labels = torch.tensor(row["labels"][1:])
            places = (labels != IGNORED).nonzero()[:, 0]
            chosen = logits.log_softmax(-1)[places, labels[places]]
            found.append((-chosen.sum().item(), len(places)))
    return found


@pytest.mark.parametrize("budget", [1, 700])
def test_the_loss_of_each_row_stands_in_the_order_of_the_data(
    monkeypatch: pytest.MonkeyPatch, model: Any, rows: Dataset, budget: int
) -> None:
    small_batches(monkeypatch, budget)
    measured = rows_for(rows, model, TINY).measure(model)
    assert measured.rows is not None
    assert measured.rows.dtype == np.float32
    sums, tokens = zip(*plain_rows(model, rows), strict=True)
    assert measured.rows[0] == pytest.approx(sums, rel=1e-5)
    assert measured.rows[1].tolist() == list(tokens)
    totals = measured.rows.astype(np.float64).sum(1)
    assert totals[0] / totals[1] == pytest.approx(measured.loss, abs=1e-6)


def test_ranks_measure_the_rows_between_them(
    monkeypatch: pytest.MonkeyPatch, model: Any, rows: Dataset
) -> None:
    """Also if there are fewer batches than ranks: one is measured twice, and counted once."""
    small_batches(monkeypatch, 2**20)
    for ranks in ([Ranks(rank=rank, world=3) for rank in range(3)], [Ranks()]):
        parts: list[np.ndarray[Any, Any]] = []

        def noted(_: Ranks, values: Any, parts: list[Any] = parts) -> Any:
            parts.append(values)
            return values

        monkeypatch.setattr(Ranks, "sum", lambda _, value: value)
        monkeypatch.setattr(Ranks, "sum_of_each", noted)
        for each in ranks:
            rows_for(rows, model, TINY).measure(model, each)
        sums = [total for total, _ in plain_rows(model, rows)]
        assert sum(parts) == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [0, 2])
def test_one_bad_batch_makes_the_loss_not_finite(
    monkeypatch: pytest.MonkeyPatch, model: Any, rows: Dataset, batch: int, value: float
) -> None:
    small_batches(monkeypatch, 400)
    measured = rows_for(rows, model, TINY).measure(Spoilt(model, batch, value))
    assert not math.isfinite(measured.loss)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_training_mode_comes_back(rows: Dataset, training: bool) -> None:
    torch.manual_seed(0)
    adapted = adapt(load_base(TINY, "cpu"), {**LORA, "lora_dropout": 0.5})
    shake(adapted)
    measure = functools.partial(rows_for(rows, adapted, TINY).measure, adapted)
    adapted.train(training)
    assert measure().loss == measure().loss
    assert {module.training for module in adapted.modules()} == {training}


def test_the_training_mode_comes_back_after_an_error(model: Any, rows: Dataset) -> None:
    class Full(Spoilt):
        def forward(self, **inputs: Any) -> Any:
            raise torch.OutOfMemoryError("no room")

    full = Full(model, 0, 0.0)
    full.train()
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        rows_for(rows, model, TINY).measure(full)
    assert full.training


def shake(adapted: Any) -> None:
    """Make the adapter count: a new one adds nothing."""
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)


def test_with_the_adapter_off_it_is_the_base(model: Any, rows: Dataset) -> None:
    torch.manual_seed(0)
    adapted = adapt(load_base(TINY, "cpu"), LORA)
    shake(adapted)
    measured = rows_for(rows, model, TINY)
    base = measured.measure(model)
    assert abs(measured.measure(adapted).loss - base.loss) > 0.1
    with adapted.disable_adapter():
        assert measured.measure(adapted) == base


def test_half_precision_is_measured_under_the_trainers_autocast(rows: Dataset) -> None:
    """With or without the Trainer's wrapper, one number."""
    spec = ModelSpec(path="tiny", dtype="bfloat16")
    torch.manual_seed(0)
    adapted = adapt(load_base(spec, "cpu"), LORA)
    shake(adapted)
    measured = rows_for(rows, adapted, spec)
    alone = measured.measure(adapted, autocast=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measured.measure(adapted) == alone
    assert measured.measure(adapted) != alone  # else this test could not fail
