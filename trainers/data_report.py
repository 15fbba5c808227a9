"""What became of the rows between the source and the trials: counted, and said in a few lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

MASKED = -100  # the label of a token that is not learnt


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Counts of one prepared data set. Rows are counted after bad and fully masked ones are gone.

    Attributes:
        source: where the rows came from.
        shape: what the rows hold.
        rows_read: good rows of the source.
        skipped_rows: bad rows left out.
        train_tokens: tokens of the training rows, prompt included.
        eval_labelled_tokens: evaluation tokens that carry a label: what eval_loss is a mean over.
        mean_tokens, max_tokens: length of the training rows, after the cut.
        truncated_rows: rows cut at max_length, of all splits.
        truncated_share: of all rows.
        masked_rows: rows dropped because the cut left none of their labels.
        overlap_prompts: evaluation rows whose prompt is a training row's too.
        notes: what else a user should know.
    """

    source: str
    shape: str
    rows_read: int
    skipped_rows: int
    train_rows: int
    eval_rows: int
    test_rows: int
    train_tokens: int
    eval_labelled_tokens: int
    mean_tokens: float
    max_tokens: int
    max_length: int
    truncated_rows: int
    truncated_share: float
    masked_rows: int
    overlap_prompts: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for a person; what is zero is not mentioned."""
        test = f", {self.test_rows:,} for testing" if self.test_rows else ""
        lines = [
            f"data: {self.source}; {self.shape}",
            f"  {self.train_rows:,} rows to train on, {self.eval_rows:,} to evaluate on{test}",
            f"  {self.train_tokens:,} training tokens, {self.mean_tokens:.0f} a row (longest "
            f"{self.max_tokens:,}); {self.eval_labelled_tokens:,} labelled evaluation tokens",
        ]
        warned = {
            f"{self.skipped_rows:,} bad rows skipped": self.skipped_rows,
            f"{self.truncated_rows:,} rows ({self.truncated_share:.1%}) cut at "
            f"{self.max_length:,} tokens": self.truncated_rows,
            f"{self.masked_rows:,} rows dropped: the cut left no label": self.masked_rows,
            f"{self.overlap_prompts:,} evaluation rows have a prompt that is also trained on": (
                self.overlap_prompts
            ),
        }
        lines += [f"  {words}" for words, count in warned.items() if count]
        return lines + [f"  note: {note}" for note in self.notes]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DataReport:
        return cls(**{**data, "notes": tuple(data["notes"])})


def lengths(dataset: Dataset) -> np.ndarray:
    """Tokens of each row, [rows]."""
    table = dataset.with_format("arrow")[:]
    counts = pc.list_value_length(table.column("input_ids"))
    return np.asarray(counts.to_numpy(), dtype=np.int64)


def labelled_tokens(dataset: Dataset) -> int:
    """Tokens that a loss is taken over: labelled, and not a row's first, which nothing predicts."""
    table = dataset.with_format("arrow")[:]
    labels = pc.list_flatten(table.column("labels")).to_numpy()  # all rows in one
    counts = np.asarray(pc.list_value_length(table.column("labels")).to_numpy(), dtype=np.int64)
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    return int((labels != MASKED).sum() - (labels[firsts] != MASKED).sum())
