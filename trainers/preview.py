"""Shows rows as the model will see them: their text, and which parts of it are learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.config.spec import TrainSpec
from trainers.data.preparation import DataReport, counted, lengths, tokenized_whole
from trainers.data.rows import RawData
from trainers.model.tokenizer import IGNORED, load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A row as it is trained on.

    Attributes:
        parts: the text, in order, and whether it is learnt.
        tokens, learnt: how many tokens there are, and how many of them are learnt.
        left_out: tokens that data.max_length cuts off at the end.
        where: the row's file and line; empty if it is not known.
    """

    parts: tuple[tuple[str, bool], ...]
    tokens: int
    learnt: int
    left_out: int = 0
    where: str = ""


def first_rows(train: TrainSpec, rows: Dataset, count: int) -> list[Preview]:
    """Preview the first prepared rows of a split."""
    tokenizer = load_tokenizer(train.model)
    return [_preview(tokenizer, rows[index]) for index in range(min(count, len(rows)))]


def training_rows(
    train: TrainSpec, raw: RawData, *, count: int, longest: bool
) -> tuple[list[Preview], DataReport]:
    """Prepare raw rows and preview the first, or the longest, of those that are trained on.

    Raises:
        ConfigError, SweepError: as `trainers.data.preparation.tokenized`.
    """
    found = tokenized_whole(train, raw)
    _, report = counted(train.data, found)
    rows, places = found.rows["train"], found.places["train"]
    order = np.argsort(-lengths(rows), kind="stable") if longest else range(len(rows))
    limit, tokenizer = train.data.max_length, load_tokenizer(train.model)
    chosen = [int(index) for index in order[:count]]
    return [_preview(tokenizer, rows[i], limit, places[i]) for i in chosen], report


def _preview(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, Sequence[int]],
    limit: int | None = None,
    where: str = "",
) -> Preview:
    ids, labels = row["input_ids"][:limit], row["labels"][:limit]
    return Preview(
        parts=tuple(_parts(tokenizer, ids, labels)),
        tokens=len(ids),
        learnt=sum(label != IGNORED for label in labels),
        left_out=len(row["input_ids"]) - len(ids),
        where=where,
    )


def _parts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], labels: Sequence[int]
) -> list[tuple[str, bool]]:
    """Cut the text where what is learnt begins or ends."""
    parts, before, end = [], "", 0
    for learnt, run in groupby(labels, lambda label: label != IGNORED):
        start, end = end, end + len(list(run))
        # With what stands before it: some tokenizers drop the blank at the start of a text.
        text = _text(tokenizer, ids[:end])
        own = (
            text.removeprefix(before)
            if text.startswith(before)
            else _text(tokenizer, ids[start:end])
        )
        parts.append((own, learnt))
        before = text
    return parts


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
