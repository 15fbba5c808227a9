"""Cuts the stream of rows of a lane's trial into accumulation windows of micro-batches, and lays
out the rows of a pass."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from sweeps.config.spec import TrainSpec
from trainers.data.dataset import order
from trainers.model.flat_attention import Layout, grouped, laid
from trainers.model.tokenizer import IGNORED
from trainers.trial.evaluation import sent

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

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids, _ in self.rows]

    @property
    def kept(self) -> Array | None:
        """Where the rows' tokens lie in the padded micro-batch; None if all of it is theirs."""
        if all(length == self.tokens for length in self.lengths):
            return None
        rows = enumerate(self.lengths)
        return np.concatenate([row * self.tokens + np.arange(length) for row, length in rows])


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


class Placing:
    """Where the rows of a pass lie: one after another, or each padded to the longest.

    Attributes:
        starts: the first position of each row, counted through the whole pass.
        counts: positions of each lane.
        total: positions of the pass.

    Args:
        lengths: of the rows of each lane.
        device: on a GPU a flat pass is rounded up, so that its lengths are few.
        padded: rows of each lane, and tokens of each row, in a padded pass.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        device: torch.device,
        padded: tuple[Sequence[int], int] | None = None,
    ) -> None:
        self._is_cpu = device.type == "cpu"
        self._lengths = [length for own in lengths for length in own]
        self._shape: tuple[int, int] | None = None
        if padded is not None:
            rows, tokens = padded
            firsts = np.cumsum([0, *rows])
            numbers = [firsts[lane] + np.arange(len(own)) for lane, own in enumerate(lengths)]
            self.starts = tokens * np.concatenate(numbers)
            self.counts = [tokens * each for each in rows]
            self.total = sum(self.counts)
            self._shape = (sum(rows), tokens)
            return
        self._ends = np.cumsum([0, *self._lengths])
        self.starts = self._ends[:-1]
        self.counts = [sum(own) for own in lengths]
        filled = int(self._ends[-1])
        self.total = filled if self._is_cpu else rounded(filled)
        if self.total > filled:  # what fills it up is a row of its own
            self._lengths.append(self.total - filled)
            self._ends = np.append(self._ends, self.total)

    def arrays(self) -> list[Array]:
        """What `inputs` takes beside token ids, on the host."""
        if self._shape is not None:
            return []
        positions = np.arange(self.total) - np.repeat(self._ends[:-1], self._lengths)
        self._groups, arrays = grouped(self._lengths, is_cpu=self._is_cpu)
        return [positions, *arrays]

    def inputs(self, ids: torch.Tensor, arrays: Sequence[torch.Tensor]) -> Inputs:
        """What the model is given; `ids` [positions] and `arrays` are on the device."""
        if self._shape is not None:
            return Inputs(ids=ids.view(self._shape))
        positions, *there = arrays
        layout = laid(self._lengths, self._groups, there)
        return Inputs(ids=ids[None], positions=positions[None], layout=layout)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The tokens of a pass.

    Attributes:
        ids: [rows, tokens]; of a flat pass [1, tokens].
        positions: of each token in its row, [1, tokens]; None in a padded pass.
        layout: where the rows of a flat pass lie.
    """

    ids: torch.Tensor
    positions: torch.Tensor | None = None
    layout: Layout | None = None

    @property
    def options(self) -> dict[str, torch.Tensor]:
        """What the model takes beside token ids."""
        return {} if self.positions is None else {"position_ids": self.positions}


def rounded(tokens: int) -> int:
    """Round up to 32 lengths an octave: by 3.1% at most, by 1.1% on average."""
    step = 1 << max(0, tokens.bit_length() - 6)
    return -(-tokens // step) * step


def sent_together(arrays: Sequence[Array | None], device: torch.device) -> Iterator[Any]:
    """Copy arrays of integers to `device` in one piece; gives tensors, or None, in their order."""
    there = [array for array in arrays if array is not None]
    whole = sent(torch.from_numpy(np.concatenate(there, dtype=np.int64)), device)
    parts = iter(whole.split([len(array) for array in there]))
    return iter([None if array is None else next(parts) for array in arrays])
