"""Splits rows into those to train on, to evaluate on, and to keep for a final test.

A row's content alone decides, so identical rows always fall on the same side, and neither the order
of the file nor new rows in it move a row across.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.config.spec import DataSpec
from sweeps.core.errors import SweepError
from trainers.data.readers import FileRow
from trainers.data.rows import RawData

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of each split, in the order of the source.

    Attributes:
        evaluation: at most `eval_limit` rows; those beyond it are left out of the training too.
        test: None if `test_fraction` is 0.
        overlap_prompts: evaluation rows whose prompt is also a training row's: they measure memory
            as well. A prompt is the `prompt`, or the messages before the last assistant turn, or
            the whole `text`.
        notes: what became of rows to measure on whose prompt is trained on.
    """

    train: list[FileRow]
    evaluation: list[FileRow]
    test: list[FileRow] | None
    overlap_prompts: int
    notes: tuple[str, ...] = ()


def split(spec: DataSpec, raw: RawData) -> Split:
    """Divide the rows as `spec` says.

    Raises:
        SweepError: no row is left to train on, to evaluate on, or to test on.
    """
    own = raw.evaluation_rows is not None
    eval_end = 0.0 if own else spec.eval_fraction
    rows = raw.train_rows
    places = [place(row.values) for row in rows]
    test_end = eval_end + spec.test_fraction
    chosen = [row for row, at in zip(rows, places, strict=True) if at < eval_end]
    evaluation = chosen if raw.evaluation_rows is None else [*raw.evaluation_rows]
    test = [row for row, at in zip(rows, places, strict=True) if eval_end <= at < test_end]
    train = [row for row, at in zip(rows, places, strict=True) if at >= test_end]
    notes: list[str] = []
    if spec.shared_prompts is not None and train:
        every = [*rows, *(evaluation if own else ())]
        place_of = {id(row): index for index, row in enumerate(every)}
        evaluation = _apart(spec, "evaluation", evaluation, train, notes)
        test = _apart(spec, "test", test, train, notes)
        test = _apart(spec, "test", test, evaluation, notes)
        train, evaluation = (
            sorted(part, key=lambda row: place_of[id(row)]) for part in (train, evaluation)
        )
    _refuse_empty(spec, raw, train=len(train), evaluation=len(evaluation), test=len(test))
    evaluation = limited(evaluation, spec.eval_limit)
    return Split(
        train=train,
        evaluation=evaluation,
        test=test if spec.test_fraction else None,
        overlap_prompts=_overlap(train, evaluation),
        notes=tuple(notes),
    )


def _apart(
    spec: DataSpec,
    name: str,
    rows: list[FileRow],
    others: list[FileRow],
    notes: list[str],
) -> list[FileRow]:
    """The rows whose prompt no other row has; the rest is moved to the others, or left out."""
    seen = {_digest(_prompt(row.values)) for row in others}
    shared = [row for row in rows if _digest(_prompt(row.values)) in seen]
    if not shared:
        return rows
    moves = spec.shared_prompts == "move"
    if moves:
        others += shared
    became = "moved to these" if moves else "left out"
    whose = "training" if name == "evaluation" else "training or evaluation"
    notes.append(f"{len(shared):,} {name} rows share a prompt with {whose} rows: {became}")
    left = {id(row) for row in shared}
    return [row for row in rows if id(row) not in left]


def place(row: Values) -> float:
    """Hash a row to a number from 0 to 1, the same for the same content."""
    return int.from_bytes(_digest(row)[:7], "big") / (1 << 56)  # 7 bytes: exact in a float


def limited(rows: list[FileRow], limit: int | None) -> list[FileRow]:
    """Choose at most `limit` rows by their content, and keep their order."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[index] for index in _chosen([row.values for row in rows], limit)]


def _chosen(rows: Sequence[Values], limit: int) -> list[int]:
    # From the hash's other end: its beginning chose the split, and is small for evaluation rows.
    ranked = sorted(range(len(rows)), key=lambda index: (_digest(rows[index])[::-1], index))
    return sorted(ranked[:limit])


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _overlap(train: Sequence[FileRow], evaluation: Sequence[FileRow]) -> int:
    seen = {_digest(_prompt(row.values)) for row in train}
    return sum(_digest(_prompt(row.values)) in seen for row in evaluation)


def prompt_numbers(rows: Sequence[Values]) -> list[int]:
    """Number the prompts of rows from 0 in their order: rows that share one have equal numbers."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(_digest(_prompt(row)), len(numbers)) for row in rows]


def _prompt(row: Values) -> object:
    """The part of a row that the model is given, if the row's shape tells it from the answer."""
    if "messages" not in row:
        return row.get("prompt", row.get("text"))
    messages = row["messages"]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: answers[-1]] if answers else messages


def _refuse_empty(spec: DataSpec, raw: RawData, *, train: int, evaluation: int, test: int) -> None:
    rows = len(raw.train_rows)
    counts = f"{rows} rows of {raw.source} gave {train} to train on, {evaluation} to evaluate on"
    if spec.test_fraction:
        counts += f", {test} to test on"
    skipped = f" ({raw.skipped} bad rows were skipped)" if raw.skipped else ""
    if spec.shared_prompts is not None:
        skipped += f", with data.shared_prompts={spec.shared_prompts}"
    if not train:
        raise SweepError(
            f"no row is left to train on: {counts}{skipped}. Bring more rows, or lower "
            f"data.eval_fraction={spec.eval_fraction} and data.test_fraction={spec.test_fraction}"
        )
    if not evaluation:
        raise SweepError(
            f"the evaluation split is empty: {counts}{skipped}. Without it no trial can be ranked: "
            f"raise data.eval_fraction={spec.eval_fraction}, or name rows with data.eval_path"
        )
    if spec.test_fraction and not test:
        raise SweepError(
            f"the test split is empty: {counts}{skipped}. Raise "
            f"data.test_fraction={spec.test_fraction}, or set it to 0"
        )
