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
        (
            {**ALPACA, "system": "Be terse", "history": [["a?", "b"], ["c?", "d"]]},
            "Be terse\n\na?\n\nb\n\nc?\n\nd\n\nTranslate to French\n\nhello\n\n",
            "bonjour",
            "Alpaca with a system prompt and the turns before",
        ),
        ({**ALPACA, "history": []}, "Translate to French\n\nhello\n\n", "bonjour", "Alpaca"),
        (
            {"system_prompt": "s", "question": "q", "response": "a"},
            "s\n\nq\n",
            "a",
            "question and response with a system prompt",
        ),
        (
            {"system": "s", "prompt": "q", "completion": "a"},
            "s\n\nq",
            "a",
            "prompt and completion with a system prompt",
        ),
        (
            {"history": [["a", "b"]], "query": "q", "response": "r"},
            "a\n\nb\n\nq\n",
            "r",
            "query and response with the turns before",
        ),
    ],
)
def test_known_schemas_are_recognised_and_named(
    tmp_path: Path, row: dict[str, Any], prompt: str, completion: str, name: str
) -> None:
    read = rows.read(spec(tmp_path, row))
    assert read.train == [{"prompt": prompt, "completion": completion}]
    assert read.layout.unused == ()
    note = read.notes[0]
    assert note.startswith(f"the rows are read as {name}")
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


def test_the_older_functions_of_a_chat_are_its_tools(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    function = {"name": "clock", "parameters": {}}
    read = rows.read(spec(tmp_path, {"messages": messages, "functions": [function]}))
    assert json.loads(read.train[0]["tools"]) == [{"type": "function", "function": function}]
    assert read.layout.unused == ()


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
FOREIGN = [
    ({"custom_id": "1", "body": {"model": "m", "messages": CHAT}}, {"messages": CHAT}),
    (
        {
            "input": {"messages": CHAT[:1]},
            "preferred_output": CHAT[1:],
            "non_preferred_output": CHAT[1:],
        },
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
    ),
    (
        {"id": "7", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
        {"prompt": "q", "completion": "a"},
    ),
    ({"chosen": "Human: q", "rejected": "Human: r"}, {"text": "Human: q"}),
    ({"content": "q", "summary": "a"}, {"prompt": "q", "completion": "a"}),
    (
        {"Instruction": "Translate", "Input": "hello", "Output": "bonjour"},
        {"prompt": "Translate\n\nhello\n\n", "completion": "bonjour"},
    ),
    (
        {"System": "Be terse", "Prompt": "q", "Response": "a"},
        {"prompt": "Be terse\n\nq", "completion": "a"},
    ),
    ({"uid": "1", "Frage": "q", "Antwort": "a"}, {"prompt": "q", "completion": "a"}),
]


@pytest.mark.parametrize(("row", "meant"), FOREIGN)
def test_what_is_suggested_for_foreign_rows_reads_them(
    tmp_path: Path, row: dict[str, Any], meant: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        rows.read(spec(tmp_path, row, row))
    (word,) = shlex.split(str(caught.value).partition("are ours: ")[2])
    columns = plain(parse(word.partition("=")[2]))
    read = rows.read(spec(tmp_path, row, row, columns=columns))
    assert read.train[0] == meant
    assert not set(read.layout.unused) & {"body", "input", "answers"}


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "data": {"prompt": "q"}, "annotations": [{"result": [{"value": "a"}]}]},
        {"id": 1, "score": 0.5},
        {"title": "t", "mapping": {"x": {"message": {"author": {"role": "user"}}}}},
    ],
)
def test_rows_that_no_mapping_brings_into_shape_get_none(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="None of them can be mapped to these as it is: write"):
        rows.read(spec(tmp_path, row, row))


def test_a_nested_value_that_a_row_lacks_is_named_with_the_row(tmp_path: Path) -> None:
    full = {"body": {"messages": CHAT}}
    with pytest.raises(SweepError, match=r"a\.jsonl:2: body\.messages is missing"):
        rows.read(spec(tmp_path, full, {"body": {}}, columns={"messages": "body.messages"}))
