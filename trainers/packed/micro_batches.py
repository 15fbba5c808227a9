"""Cuts the stream of rows of a lane's trial into accumulation windows of micro-batches."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from sweeps.config.spec import TrainSpec
from trainers.data.dataset import order
from trainers.model.tokenizer import IGNORED

Array = np.ndarray[Any, Any]


class Reader:
    """Reads tokens and labels of single rows from the memory-mapped Arrow buffers."""

    def __init__(self, dataset: Dataset) -> None:
        table = dataset.with_format("arrow")[:]
        self._columns = [table.column(name) for name in ("input_ids", "labels")]
        starts = np.cumsum([0] + [len(chunk) for chunk in self._columns[0].chunks])
        self._starts: list[int] = starts[:-1].tolist()
        self._open: dict[tuple[int, int], tuple[Array, Array]] = {}
        if [len(chunk) for chunk in self._columns[1].chunks] != np.diff(starts).tolist():
            self._columns = [column.combine_chunks() for column in self._columns]
            self._columns = [
                pa.chunked_array([c]) if isinstance(c, pa.Array) else c for c in self._columns
            ]
            self._starts = [0]

    def row(self, index: int) -> tuple[Array, Array]:
        """Token ids and labels of a row, [tokens] each."""
        chunk = bisect.bisect_right(self._starts, index) - 1
        place = index - self._starts[chunk]
        ids, labels = (self._cut(column, chunk, place) for column in range(2))
        return ids, labels

    def _cut(self, column: int, chunk: int, place: int) -> Array:
        if (column, chunk) not in self._open:
            lists = self._columns[column].chunk(chunk)
            offsets = np.asarray(lists.offsets)
            self._open[column, chunk] = (offsets, np.asarray(lists.values))
        offsets, values = self._open[column, chunk]
        return values[offsets[place] : offsets[place + 1]]


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward pass of a lane; their loss is divided by `window_labels`."""

    rows: list[tuple[Array, Array]]
    tokens: int  # of the longest row, padded as SFTTrainer's collator would
    labels: int  # positions that predict a label
    window_labels: int  # such positions of the whole accumulation window
    ends_window: bool


@dataclass
class Windows:
    """Gives the micro-batches of a trial, from any optimizer step on."""

    reader: Reader
    train: TrainSpec
    examples: int
    train_rows: int
    multiple: int = 1  # trainer.pad_to_multiple_of
    _order: Array = field(init=False)
    _waiting: list[MicroBatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._order = order(self.train_rows, self.examples, self.train.seed)

    def next(self, step: int) -> MicroBatch:
        """The next micro-batch; `step` optimizer steps are done."""
        if not self._waiting:
            self._waiting = self._window(step)
        return self._waiting.pop(0)

    def _window(self, step: int) -> list[MicroBatch]:
        batch = self.train.batch_size
        size = batch * self.train.accumulation_steps
        rows = [self.reader.row(int(i)) for i in self._order[step * size : (step + 1) * size]]
        labels = [int((labels[1:] != IGNORED).sum()) for _, labels in rows]
        starts = range(0, len(rows), batch)
        return [
            MicroBatch(
                rows=rows[start : start + batch],
                tokens=self._padded(max(len(ids) for ids, _ in rows[start : start + batch])),
                labels=sum(labels[start : start + batch]),
                window_labels=sum(labels),
                ends_window=start == starts[-1],
            )
            for start in starts
        ]

    def _padded(self, tokens: int) -> int:
        return -(-tokens // self.multiple) * self.multiple
