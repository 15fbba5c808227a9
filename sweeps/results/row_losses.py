"""Keeps the losses of each evaluation row for the best checkpoint of each trial.

A file trials/KEY/row_losses.npy is [2, rows] float32, rows in the order of the data: the sum of
-log p over a row's labelled tokens, in nats, and the number of these tokens. data/eval_prompts.npy
says which rows share a prompt. Both are written once whole and read without pickles.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.ledger.history import History, Record
from sweeps.storage.durable_writes import write_bytes
from sweeps.storage.run_folder import REPORT, RunFolder

Array = np.ndarray[Any, Any]

_AGREES = 1e-6  # nats; sums that are further from the ledger's eval_loss are another checkpoint's


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """What one checkpoint made of the evaluation rows.

    Attributes:
        sums: [rows], of -log p over a row's labelled tokens.
        tokens: [rows], how many these are.
    """

    sums: Array
    tokens: Array

    @property
    def loss(self) -> float:
        """Nats per labelled token over all rows: eval_loss."""
        return float(self.sums.sum() / self.tokens.sum())


def keep(folder: RunFolder, key: str, found: Array) -> None:
    """Replace a trial's file by `found`, [2, rows].

    Raises:
        OSError: it cannot be written.
    """
    with io.BytesIO() as file:
        np.save(file, found.astype(np.float32), allow_pickle=False)
        write_bytes(folder.row_losses(key), file.getvalue(), "rows")


def of_trial(folder: RunFolder, history: History, record: Record) -> RowLosses | None:
    """The row losses of a trial's best checkpoint.

    None if they were not kept, as by older versions, or are not those of the ledger's eval_loss.
    """
    best = record.best(history.metric, history.direction)
    found = _read(folder.row_losses(record.key))
    if best is None or found is None or found.ndim != 2 or len(found) != 2:
        return None
    sums, tokens = found.astype(np.float64)
    if not tokens.sum() > 0:
        return None
    rows = RowLosses(sums=sums, tokens=tokens)
    told = best.metrics.get("eval_loss", math.nan)
    return rows if abs(rows.loss - told) <= _AGREES * max(1.0, abs(told)) else None


def prompts(folder: RunFolder) -> Array | None:
    """Which evaluation rows share a prompt, [rows]: equal numbers; None if it was not noted."""
    found = _read(folder.eval_prompts)
    return found if found is not None and found.ndim == 1 else None


def shared_prompts(folder: RunFolder) -> tuple[int, int]:
    """How many evaluation rows have a prompt that is trained on, and how many rows there are."""
    try:
        report = json.loads((folder.data / REPORT).read_text(encoding="utf-8"))["report"]
        return int(report["overlap_prompts"]), int(report["eval_rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0


def _read(path: Path) -> Array | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) else None
