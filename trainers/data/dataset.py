"""Prepares the data of a sweep once, in the driver, and memory-maps it in every worker.

prepared = prepare(train_spec, folder)    # driver: read, check, split, tokenize, save
prepared = load(folder)                   # worker: maps the Arrow files, reads nothing
rows = stream(prepared.train, examples, seed)
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, load_from_disk

from sweeps.config.spec import TrainSpec
from sweeps.core.errors import SweepError
from sweeps.storage.durable_writes import publish, write_text
from sweeps.storage.run_folder import PROMPTS, REPORT
from trainers.data import rows as data_rows
from trainers.data.fingerprint import fingerprint
from trainers.data.preparation import DataReport, lengths, tokenized
from trainers.data.tokenization import COLUMNS, PROMPT, silence
from trainers.model.tokenizer import IGNORED

_SPLITS = ("train", "eval", "test")


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """Tokenized rows (columns input_ids and labels), each split in a fixed order.

    Attributes:
        test: None if the spec sets no rows aside for it.
        test_prompts: [rows], equal for test rows that share a prompt; None if it was not noted.
        fingerprint: hash of everything that decided these rows.
    """

    train: Dataset
    evaluation: Dataset
    test: Dataset | None
    fingerprint: str
    report: DataReport
    test_prompts: np.ndarray[Any, Any] | None = None


def prepare(train: TrainSpec, folder: Path) -> PreparedData:
    """Prepare the data of `train` in `folder`, unless the same data is there already.

    A kill at any moment leaves either the whole folder or none.

    Raises:
        ConfigError, SweepError: the data cannot be trained on or measured with.
    """
    if (folder / REPORT).is_file():
        held = load(folder)
        if held.fingerprint == fingerprint(train):
            return held
    raw = data_rows.read(train.data)
    identity = fingerprint(train)  # before the tokenizer is given another eos token
    parts, report = tokenized(train, raw)
    _save(folder, parts, {"fingerprint": identity, "report": report.to_json()})
    return load(folder)


def load(folder: Path) -> PreparedData:
    """Memory-map the data that `prepare` left in `folder`.

    Raises:
        SweepError: there is none, or it is damaged.
    """
    try:
        saved = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        parts = {
            name: load_from_disk(str(folder / name)) for name in _SPLITS if (folder / name).is_dir()
        }
        return PreparedData(
            train=parts["train"],
            evaluation=parts["eval"],
            test=parts.get("test"),
            fingerprint=saved["fingerprint"],
            report=DataReport.from_json(saved["report"]),
            test_prompts=_prompts(folder / PROMPTS["test"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"{folder} holds no whole prepared data ({type(error).__name__}: {error}). Remove it: "
            "the next start prepares it again"
        ) from error


def _prompts(path: Path) -> np.ndarray[Any, Any] | None:
    """Read which rows share a prompt; older versions did not write it."""
    return np.load(path, allow_pickle=False) if path.is_file() else None


def stream(train: Dataset, examples: int, seed: int) -> Dataset:
    """Select the rows that a trial trains on, in the order in which it sees them.

    Each epoch is a permutation of its own, drawn from `seed` and the epoch's number; the last one
    may be partial. Two streams of the same seed agree as far as the shorter one goes.
    """
    return train.select(order(len(train), examples, seed))


def filled_up(rows: Dataset, multiple: int) -> Dataset:
    """Add empty rows up to a multiple; nothing in them is learnt or counted.

    Ranks must have the same number and size of batches, or they would wait for each other.
    """
    missing = -len(rows) % multiple
    if not missing:
        return rows
    ids = rows[len(rows) - 1]["input_ids"][:2]
    empty = Dataset.from_dict(
        {"input_ids": [ids] * missing, "labels": [[IGNORED] * len(ids)] * missing},
        features=rows.select_columns(["input_ids", "labels"]).features,
    )
    return concatenate_datasets([rows.select_columns(["input_ids", "labels"]), empty])


def tokens_seen(train: Dataset, examples: int, seed: int) -> np.ndarray[Any, Any]:
    """Count the stream's tokens up to and with each of its rows, [examples]; reads no token."""
    return np.cumsum(lengths(train)[order(len(train), examples, seed)])


def order(rows: int, examples: int, seed: int) -> np.ndarray[Any, Any]:
    """Draw which of `rows` rows a trial sees, in its order, [examples]."""
    epochs = [
        np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)
        for epoch in range(math.ceil(examples / rows))
    ]
    return np.concatenate(epochs)[:examples]


def _save(folder: Path, parts: Mapping[str, Dataset], report: Mapping[str, Any]) -> None:
    """Write a folder beside `folder` and rename it once everything is on disk."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a driver that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for name, part in parts.items():
            with silence():
                part.select_columns(COLUMNS).save_to_disk(str(draft / name))
            if PROMPT in part.column_names:
                numbers = np.array(part[PROMPT], dtype=np.int32)
                np.save(draft / PROMPTS[name], numbers, allow_pickle=False)
        write_text(draft / REPORT, json.dumps(report, indent=1))
        publish(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
