"""Holds what the product makes of a generated data file against what its author meant."""

from __future__ import annotations

import functools
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from support.data_files import DataCase
from support.plain_labels import MASKED, TEMPLATES, labels

from sweeps.config.spec import BudgetSpec, DataSpec, ModelSpec, TrainSpec
from sweeps.core.errors import SweepError
from sweeps.space.grammar import parse, plain
from trainers.data import preparation
from trainers.data.preparation import DataReport, tokenized
from trainers.data.rows import read
from trainers.model.tokenizer import load_tokenizer

Rows = list[tuple[list[int], list[int]]]


def check_case(case: DataCase) -> str:
    """Read and tokenize the files of a case; says what became of it.

    Raises:
        AssertionError: it was not accepted as meant, or not refused in words that name the place.
    """
    with tempfile.TemporaryDirectory() as folder:
        expected = meant(case)
        refused = case.refused or ("" if expected else r"data\.max_length")  # cut before any label
        train = train_spec(case, Path(folder))
        try:
            found, report = prepared(train, case.adds)
        except SweepError as error:
            refusal = str(error)
            assert refused, f"not accepted: {refusal}"
            assert re.search(refused, refusal), f"{refused!r} is not named: {refusal}"
            assert "\n\n" not in refusal, refusal
            return "broken and refused" if case.refused else "cut too short and refused"
        said = "\n".join(report.lines())
        _check_pasted(train.data, said)
    assert not refused, f"accepted, though {refused!r} was to be refused"
    assert found == expected
    for words in case.told:
        assert words in said, f"{words!r} is not told: {said}"
    return "valid and accepted"


def _check_pasted(data: DataSpec, said: str) -> None:
    """The mapping that a report names reads the same rows if it is typed."""
    if " otherwise: " not in said:
        return
    (word,) = shlex.split(said.partition(" otherwise: ")[2].partition("\n")[0])
    columns = plain(parse(word.removeprefix("data.columns=")))
    assert read(replace(data, columns=columns)).train == read(data).train, word


def prepared(spec: TrainSpec, adds: str) -> tuple[Rows, DataReport]:
    """The token ids and labels of each row that is trained on, and the report."""
    with one_tokenizer(adds):
        parts, report = tokenized(spec, read(spec.data))
    return [(row["input_ids"], row["labels"]) for row in parts["train"]], report


def train_spec(case: DataCase, folder: Path) -> TrainSpec:
    """Write the files of a case to a folder; the training that reads them, and measures on them."""
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    template = TEMPLATES[case.template]
    if template is not None:
        (folder / "own.jinja").write_text(template)
    named = case.data["path"]
    path: Any = str(folder / named) if isinstance(named, str) else [str(folder / n) for n in named]
    return TrainSpec(
        model=ModelSpec(path="tiny", chat_template=template and str(folder / "own.jinja")),
        data=DataSpec(source="file", **{**case.data, "path": path, "eval_path": path}),
        peft={"method": "lora"},
        trainer=case.trainer,
        seed=0,
        budget=BudgetSpec(examples=10),
        evaluations=1,
    )


def meant(case: DataCase) -> Rows:
    """The plain computation of the same, without the rows that the cut leaves no label."""
    trainer = case.trainer
    found = [
        labels(
            row,
            case.template,
            max_length=case.data["max_length"],
            assistant_only=trainer.get("assistant_only_loss", False),
            completion_only=trainer.get("completion_only_loss", True),
            begins="bos" in case.adds,
        )
        for row in case.rows
    ]
    return [row for row in found if any(label != MASKED for label in row[1])]


@functools.cache
def _loaded(adds: str) -> Any:
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = load_tokenizer(ModelSpec(path="tiny"))
    if adds:
        whole = "<|bos|> $A <|eos|>" if "eos" in adds else "<|bos|> $A"
        special = [("<|bos|>", 1), ("<|eos|>", 2)]
        processor = TemplateProcessing(single=whole, special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer, tokenizer.chat_template


@contextmanager
def one_tokenizer(adds: str = "") -> Iterator[None]:
    """Load the tokenizer once a process: only its template differs."""

    def load(spec: ModelSpec, notes: list[str] | None = None) -> Any:
        tokenizer, own = _loaded(adds)
        tokenizer.chat_template = (
            Path(spec.chat_template).read_text() if spec.chat_template else own
        )
        return tokenizer

    with mock.patch.object(preparation, "load_tokenizer", load):
        yield
