"""Columns with other names: well-known schemas, and templates over a row's columns."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sweeps.config.spec import DataSpec
from sweeps.core.errors import ConfigError, SweepError
from sweeps.space.grammar import parse, plain
from trainers.data import rows
from trainers.data.columns import filled

ALPACA = {"instruction": "Translate to French", "input": "hello", "output": "bonjour"}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def spec(folder: Path, *values: dict[str, Any], **data: Any) -> DataSpec:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return DataSpec(source="file", path=str(path), **data)


@pytest.mark.parametrize(
    ("row", "prompt", "completion", "name"),
    [
        (ALPACA, "Translate to French\n\nhello\n\n", "bonjour", "Alpaca"),
        ({**ALPACA, "input": ""}, "Translate to French\n\n", "bonjour", "Alpaca"),
        ({"instruction": "Hi", "output": "Ho"}, "Hi\n\n", "Ho", "Alpaca without input"),
        ({"instruction": "Hi", "context": "c", "response": "Ho"}, "Hi\n\nc\n\n", "Ho", "Dolly"),
        ({"question": "q", "answer": "a"}, "q\n", "a", "question and answer"),
        ({"input": "q", "output": "a"}, "q\n", "a", "input and output"),
        ({"prompt": "q ", "response": "a"}, "q ", "a", "prompt and response"),
    ],
)
def test_known_schemas_are_recognised_and_named(
    tmp_path: Path, row: dict[str, Any], prompt: str, completion: str, name: str
) -> None:
    read = rows.read(spec(tmp_path, row))
    assert read.train == [{"prompt": prompt, "completion": completion}]
    assert read.layout.unused == ()
    note = read.notes[0]
    assert note.startswith(f"the rows are read as {name}; ")
    (word,) = shlex.split(note.partition("otherwise: ")[2])  # what it says can be pasted
    columns = plain(parse(word.partition("=")[2]))
    assert rows.read(spec(tmp_path, row, columns=columns)).train == read.train


def test_sharegpt_is_recognised(tmp_path: Path) -> None:
    read = rows.read(spec(tmp_path, {"conversations": TURNS, "id": 1}))
    assert [turn["role"] for turn in read.train[0]["messages"]] == ["user", "assistant"]
    assert read.notes[0].startswith("the rows are read as ShareGPT")
    assert read.layout.unused == ("id",)


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        (r"{a}\n\n{b}", {"a": "x", "b": "y"}, "x\n\ny"),
        ("{a}\n\n{b}", {"a": "x", "b": ""}, "x"),
        ("{a}\n\n{b}", {"a": None, "b": "y"}, "y"),
        ("Q: {a}\nContext: {b}\nA: ", {"a": "x", "b": None}, "Q: x\nA: "),
        ("Context: {a}\n\nQ: {b}", {"b": "y"}, "Q: y"),
        ("{{{a}}} {b}", {"a": "x", "b": 3}, "{x} 3"),
        ("{a}", {"a": "{b} \\n"}, "{b} \\n"),
        ("Q: {a}", {"a": ""}, ""),
        ("Q: {a}", {}, None),
    ],
)
def test_empty_parts_of_a_template_leave_no_trace(
    template: str, row: dict[str, Any], text: str | None
) -> None:
    assert filled(template, row) == text


def test_templates_name_their_columns_and_bad_rows(tmp_path: Path) -> None:
    columns = {"prompt": "{instruction}: {inptu}", "completion": "{output}"}
    with pytest.raises(ConfigError) as caught:
        rows.read(spec(tmp_path, ALPACA, columns=columns))
    assert [problem.nearest for problem in caught.value.problems] == ["input"]
    columns["prompt"] = "{instruction}: {input}"
    with pytest.raises(SweepError, match=r"a\.jsonl:2: input is a list, not text"):
        rows.read(spec(tmp_path, ALPACA, {**ALPACA, "input": ["x"]}, columns=columns))
    with pytest.raises(SweepError, match=r"a\.jsonl:2: \{output\} is empty"):
        rows.read(spec(tmp_path, ALPACA, {**ALPACA, "output": ""}, columns=columns))
