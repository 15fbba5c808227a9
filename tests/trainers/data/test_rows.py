"""Raw rows: every format and shape is read, and every bad row is named by its file and line."""

from __future__ import annotations

import csv
import json
import shlex
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sweeps.config.spec import DataSpec
from sweeps.core.errors import ConfigError, SweepError
from sweeps.space.grammar import parse, plain
from trainers.data import rows
from trainers.model import hub

PAIRS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(3)]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write_lines(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{x if isinstance(x, str) else json.dumps(x)}\n" for x in lines))
    return path


def spec(path: object, **values: Any) -> DataSpec:
    return DataSpec(source="file", path=str(path), **values)


def test_all_formats_of_the_same_rows_read_alike(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", *PAIRS)
    listed = tmp_path / "a.json"
    listed.write_text("\ufeff" + json.dumps(PAIRS, indent=1), encoding="utf-8")
    table = tmp_path / "a.csv"
    table.write_text("prompt,completion\n" + "".join(f"p{i},c{i}\n" for i in range(3)))
    columns = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), columns)
    for path in (lines, listed, table, columns):
        assert rows.read(spec(path)).train == PAIRS, path


def test_json_file_may_hold_lines_and_any_ending_may_be_named(tmp_path: Path) -> None:
    assert rows.read(spec(write_lines(tmp_path / "a.json", *PAIRS))).train == PAIRS
    odd = write_lines(tmp_path / "a.txt", *PAIRS)
    assert rows.read(spec(odd, format="json")).train == PAIRS
    with pytest.raises(SweepError, match=r"data\.format=json"):
        rows.read(spec(odd))


def test_csv_cells_may_hold_line_breaks_and_long_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    long = "x" * 200_000
    path.write_text(f'text\n"one\ntwo"\n{long}\nthree,four\n')
    with pytest.raises(SweepError, match=r"a\.csv:5: 2 cells under 1 columns"):
        rows.read(spec(path))
    read = rows.read(spec(path, on_bad_row="skip"))
    assert [row["text"] for row in read.train] == ["one\ntwo", long]
    assert read.skipped == 1


@pytest.mark.parametrize("odd", [["c0"], [], {"a": "b"}, 5])
def test_a_completion_that_is_neither_text_nor_messages_does_not_say_what_rows_are(
    odd: object, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "p0", "completion": odd}, PAIRS[1])
    assert rows.read(spec(path, on_bad_row="skip")).train == PAIRS[1:2]


def test_globs_are_read_in_order_and_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "shards" / "b.jsonl", *PAIRS[2:])
    write_lines(tmp_path / "shards" / "a.jsonl", *PAIRS[:2])
    monkeypatch.chdir(tmp_path)
    assert rows.read(spec("shards/*.jsonl")).train == PAIRS
    assert rows.read(spec("**/*.jsonl", limit=2)).train == PAIRS[:2]


def test_missing_file_names_what_is_there(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", *PAIRS)
    with pytest.raises(SweepError, match=r"trian\.jsonl: no such file\. Did you mean .*/train\."):
        rows.read(spec(tmp_path / "trian.jsonl"))
    with pytest.raises(SweepError, match="nor is there a folder"):
        rows.read(spec(tmp_path / "nowhere" / "a.jsonl"))


BAD_ROWS = {
    '{"prompt": "p", "completion": "c"': "not valid JSON: Expecting ',' delimiter at column",
    '["p", "c"]': "a row is an object {...}, and this is a list",
    '{"prompt": "p"}': "completion is missing",
    '{"prompt": "p", "completion": null}': "completion is missing",
    '{"prompt": "p", "completion": ""}': "completion is empty",
    '{"prompt": "p", "completion": 3}': "completion is the int 3, not text",
    '{"prompt": {"a": 1}, "completion": "c"}': "prompt is an object, not text",
    '{"prompt": "p", "completion": "\\ud800"}': "not valid Unicode",
    '{"prompt": [], "completion": [{"role": "assistant", "content": "c"}]}': "prompt is a list",
}


def test_every_kind_of_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", PAIRS[0], "", *BAD_ROWS, PAIRS[1])
    with pytest.raises(SweepError) as caught:
        rows.read(spec(path))
    said = str(caught.value).splitlines()
    assert said[0] == f"{len(BAD_ROWS)} of {len(BAD_ROWS) + 2} rows cannot be used:"
    for why in BAD_ROWS.values():
        assert any(why in line for line in said), why
    assert {f"  {path}:{number}" for number in range(3, 3 + len(BAD_ROWS))} == {
        line.rsplit(": ", line.count(": "))[0] for line in said[1:-1]
    }
    assert "data.on_bad_row=skip" in said[-1]


def test_bad_rows_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", PAIRS[0], *BAD_ROWS, PAIRS[1])
    read = rows.read(spec(path, on_bad_row="skip"))
    assert (read.train, read.skipped) == (PAIRS[:2], len(BAD_ROWS))


def test_at_most_twenty_bad_rows_are_shown(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", PAIRS[0], *["{"] * 37)
    with pytest.raises(SweepError, match="37 of 38 rows cannot be used, the first 20") as caught:
        rows.read(spec(path))
    assert str(caught.value).count("not valid JSON") == 20


def test_nothing_but_bad_rows_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", "{", "[")
    path.write_text(" {\n")
    with pytest.raises(SweepError, match=r"1 of 1 rows cannot be used(.|\n)*none would be left"):
        rows.read(spec(path, on_bad_row="skip"))


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(SweepError, match=r"a\.json: there are no rows in it"):
        rows.read(spec(path))


def test_undecodable_bytes_are_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(SweepError, match=r"a\.jsonl:2: not valid UTF-8: byte 0xe9"):
        rows.read(spec(path))
    table = tmp_path / "a.csv"
    table.write_bytes(b"text\nfine\ncaf\xe9\n")
    with pytest.raises(SweepError, match=r"a\.csv:3: text holds characters"):
        rows.read(spec(table))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    listed, columns = tmp_path / "a.json", tmp_path / "a.parquet"
    listed.write_text('[{"text": "a"},\n {"text": }]')
    columns.write_bytes(b"not parquet at all")
    with pytest.raises(SweepError, match=r"a\.json:2: not valid JSON: .* at column 11"):
        rows.read(spec(listed))
    with pytest.raises(SweepError, match=r"a\.parquet: not a readable Parquet file"):
        rows.read(spec(columns))


def test_pickle_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(SweepError, match="may run code when it is opened, and is not read"):
        rows.read(spec(path))


def test_columns_are_mapped_and_the_others_reported(tmp_path: Path) -> None:
    theirs = [{"question": "p", "answer": "c", "id": 7}]
    path = write_lines(tmp_path / "a.jsonl", *theirs)
    read = rows.read(spec(path, columns={"prompt": "question", "completion": "answer"}))
    assert read.train == [{"prompt": "p", "completion": "c"}]
    assert read.layout.unused == ("id",)


def test_missing_columns_say_what_there_is_and_how_to_map_it(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"Instruction": "p", "output": "c"})
    with pytest.raises(ConfigError, match=r"has the columns Instruction, output;") as caught:
        rows.read(spec(path))
    assert "'data.columns={prompt: Instruction, completion: output}'" in str(caught.value)


def test_the_mapping_that_is_suggested_can_be_pasted(tmp_path: Path) -> None:
    theirs = {"Prompt": "p", "completion: 100%, 'ü'": "c"}
    path = write_lines(tmp_path / "a.jsonl", theirs)
    with pytest.raises(ConfigError) as caught:
        rows.read(spec(path))
    (word,) = shlex.split(str(caught.value).partition("ours: ")[2])
    key, _, text = word.partition("=")
    columns = plain(parse(text))
    assert (key, list(columns.values())) == ("data.columns", list(theirs))
    assert rows.read(spec(path, columns=columns)).train == [{"prompt": "p", "completion": "c"}]


def test_of_two_columns_the_second_is_suggested_as_the_answer(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"Frage": "Wer?", "Antwort": "Ich."})
    with pytest.raises(ConfigError, match=r"data\.columns=\{prompt: Frage, completion: Antwort\}"):
        rows.read(spec(path))


@pytest.mark.parametrize(
    ("first", "second"),
    [("Question (EN)", "Answer"), ("指令", "输出"), ("a b", "c=d, {e}"), ("x", "y")],
)
def test_a_mapping_is_suggested_for_names_that_say_nothing(
    tmp_path: Path, first: str, second: str
) -> None:
    table = tmp_path / "a.csv"
    table.write_text(f'"{first}","{second}"\np,c\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        rows.read(spec(table))
    (word,) = shlex.split(str(caught.value).partition("ours: ")[2])
    columns = plain(parse(word.partition("=")[2]))
    assert rows.read(spec(table, columns=columns)).train == [{"prompt": "p", "completion": "c"}]


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *(("pair", name) for name in ("label", "kto_tag")),
        *((shape, "kto_tag") for shape in ("chat", "alpaca")),
    ],
)
def test_what_is_marked_as_undesirable_is_not_learnt(tmp_path: Path, shape: str, name: str) -> None:
    """As data for KTO marks it: TRL's beside prompt and completion, LLaMA-Factory's anywhere."""
    own = {
        "pair": PAIRS,
        "chat": [{"messages": CHAT}] * 3,
        "alpaca": [{"instruction": f"p{i}", "input": "", "output": f"c{i}"} for i in range(3)],
    }[shape]
    bare = rows.read(spec(write_lines(tmp_path / "bare.jsonl", *own))).train
    marked = [{**row, name: place != 1} for place, row in enumerate(own)]
    path = write_lines(tmp_path / "a.jsonl", *marked)
    with pytest.raises(SweepError, match=rf"a\.jsonl:2: {name} is false") as caught:
        rows.read(spec(path))
    assert rows.read(spec(path, on_bad_row="skip")).train == [bare[0], bare[2]]
    (words,) = (line for line in str(caught.value).splitlines() if "a.jsonl:2" in line)
    (word,) = shlex.split(words.partition("all the same; ")[2].removesuffix(" learns it"))
    columns = plain(parse(word.partition("=")[2]))
    assert rows.read(spec(path, columns=columns)).train == bare
    named = write_lines(tmp_path / "b.jsonl", *({**row, name: "a"} for row in own))
    assert rows.read(spec(named)).train == bare


def test_marks_in_csv_are_read_and_a_label_of_a_text_is_no_mark(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("prompt,completion,label\np0,c0,True\np1,c1,False\n")
    assert rows.read(spec(table, on_bad_row="skip")).train == PAIRS[:1]
    some = write_lines(tmp_path / "b.jsonl", PAIRS[0], {**PAIRS[1], "label": False})
    assert rows.read(spec(some, on_bad_row="skip")).train == PAIRS[:1]
    texts = write_lines(tmp_path / "a.jsonl", {"text": "t", "label": False})
    assert rows.read(spec(texts)).train == [{"text": "t"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "chosen": "c", "rejected": "no"},
        {"chosen": CHAT, "rejected": [{"role": "user", "content": "no"}]},
        {"dialog": CHAT, "output": "no"},
    ],
)
def test_what_is_suggested_fits_the_first_row(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "a.jsonl", row)
    if "dialog" in row:
        path = write_lines(path, {"Dialog": CHAT, "output": "no"})
    with pytest.raises(ConfigError) as caught:
        rows.read(spec(path))
    (word,) = shlex.split(str(caught.value).partition("ours: ")[2])
    (read,) = rows.read(spec(path, columns=plain(parse(word.partition("=")[2])))).train
    assert read in ({"prompt": "p", "completion": "c"}, {"messages": CHAT})


def test_a_blank_before_a_column_s_name_is_none_of_it(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("prompt, completion\np, c\n")
    assert rows.read(spec(table)).train == [{"prompt": "p", "completion": "c"}]


@pytest.mark.parametrize(
    ("odd", "usual"),
    [
        ({"prompt": "p", "completion": "c"}, {"messages": CHAT}),
        ({"prompt": CHAT[:1], "completion": "c"}, {"prompt": CHAT[:1], "completion": CHAT[1:]}),
        ({"prompt": "p", "completion": CHAT[1:]}, {"prompt": "p", "completion": "c"}),
    ],
)
def test_one_row_of_another_shape_is_the_bad_one(
    tmp_path: Path, odd: dict[str, Any], usual: dict[str, Any]
) -> None:
    path = write_lines(tmp_path / "a.jsonl", odd, usual, usual)
    with pytest.raises(SweepError, match=r"1 of 3 rows cannot be used:\n  .*a\.jsonl:1: "):
        rows.read(spec(path))


def test_wrong_mapping_names_the_nearest_column(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"question": "p", "answer": "c"})
    wrong = {"promt": "question", "completion": "anser"}
    with pytest.raises(ConfigError) as caught:
        rows.read(spec(path, columns=wrong))
    first, second = caught.value.problems
    assert (first.key, first.nearest) == ("data.columns.promt", "prompt")
    assert (second.key, second.nearest) == ("data.columns.completion", "answer")


def test_mapping_decides_where_a_data_set_has_several_shapes(tmp_path: Path) -> None:
    both = {"prompt": "p", "completion": "c", "body": "whole"}
    path = write_lines(tmp_path / "a.jsonl", both)
    assert rows.read(spec(path)).layout.shape == "prompt and completion"
    assert rows.read(spec(path, columns={"text": "body"})).train == [{"text": "whole"}]


def test_chats_are_read_from_lists_json_text_and_sharegpt(tmp_path: Path) -> None:
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = write_lines(
        tmp_path / "a.jsonl",
        {"messages": CHAT},
        {"messages": json.dumps(CHAT)},
        {"messages": sharegpt},
    )
    read = rows.read(spec(path))
    assert read.train == [{"messages": CHAT}] * 3
    assert read.layout.words == "messages (chat)"
    tools = write_lines(tmp_path / "b.jsonl", {"messages": CHAT, "tools": []})
    assert rows.read(spec(tools)).layout.words == "messages (chat with tools)"


def test_a_table_holds_chats_as_json_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"

    def read(*columns: str, rows_: list[list[object]]) -> list[dict[str, Any]]:
        cells = [
            [each if isinstance(each, str) else json.dumps(each) for each in row] for row in rows_
        ]
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([columns, *cells])
        return rows.read(spec(path, on_bad_row="skip")).train

    pair = {"prompt": CHAT[:1], "completion": CHAT[1:]}
    assert read(*pair, rows_=[["?", "["], list(pair.values()), list(pair.values())]) == [pair] * 2
    answer = json.dumps(CHAT)  # a text that happens to be JSON
    assert read("prompt", "completion", rows_=[["Write a chat", answer]]) == [
        {"prompt": "Write a chat", "completion": answer}
    ]
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert read("conversations", rows_=[["[{"], [turns]]) == [{"messages": CHAT}]


def test_one_bad_row_does_not_decide_what_the_others_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "completion": ["c"]}, *PAIRS)
    assert rows.read(spec(path, on_bad_row="skip")).train == PAIRS


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("Hi", "messages is text, not a list of messages"),
        ([], "messages is an empty list"),
        (["Hi"], r"messages\[0\] is text, not \{role"),
        ([{"content": "Hi"}], r"messages\[0\]\.role is missing, not text"),
        ([*CHAT, {"role": "user"}], r"messages\[2\]\.content is missing"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content is the int 3"),
        ([{"from": ["x"], "value": 1}], r"messages\[0\]\.role is a list, not text"),
        ([{"from": "gpt", "value": 1}], r"messages\[0\]\.content is the int 1"),
    ],
)
def test_bad_messages_are_named(tmp_path: Path, messages: object, why: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"messages": CHAT}, {"messages": messages})
    with pytest.raises(SweepError, match=rf"a\.jsonl:2: {why}"):
        rows.read(spec(path))


def test_evaluation_file_must_have_the_shape_of_the_training_rows(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", *PAIRS)
    chats = write_lines(tmp_path / "eval.jsonl", {"messages": CHAT})
    with pytest.raises(SweepError, match=r"completion \(text\) and the evaluation rows .* \(chat"):
        rows.read(spec(train, eval_path=str(chats)))
    same = write_lines(tmp_path / "same.jsonl", PAIRS[0])
    assert rows.read(spec(train, eval_path=str(same))).evaluation == PAIRS[:1]


def test_contradictions_in_the_spec_are_shown_together() -> None:
    with pytest.raises(ConfigError) as caught:
        rows.read(DataSpec(source="file", eval_split="x", limit=0, eval_fraction=1.5, max_length=0))
    assert {problem.key for problem in caught.value.problems} == {
        "data.path",
        "data.eval_split",
        "data.limit",
        "data.eval_fraction",
        "data.max_length",
    }


@pytest.mark.slow
def test_docstrings_are_rows() -> None:
    read = rows.read(DataSpec(source="docstrings", limit=50))
    assert len(read.train) == 50
    assert all(row.keys() == {"prompt", "completion"} for row in read.train)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Hub that refuses connections, and an empty cache."""
    from datasets import config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.usefixtures("no_hub")
def test_unreachable_data_set_is_one_quick_error_with_ways_out() -> None:
    from datasets import config

    start = time.monotonic()
    with pytest.raises(SweepError, match=r"data\.path = nobody/nothing: ") as caught:
        rows.read(DataSpec(source="hub", path="nobody/nothing"))
    assert time.monotonic() - start < 20
    for way_out in ("data=file data.path=", "HF_HOME", "HF_TOKEN", "http://127.0.0.1:9"):
        assert way_out in str(caught.value)
    assert caught.value.__cause__ is None  # no stack trace of the libraries
    assert config.HF_HUB_OFFLINE is False  # the switch is back where it was


@pytest.mark.usefixtures("no_hub")
def test_a_hub_that_never_answers_costs_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "PROBE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        start = time.monotonic()
        with pytest.raises(SweepError, match="cannot be reached"):
            rows.read(DataSpec(source="hub", path="nobody/nothing"))
    assert time.monotonic() - start < 9  # the libraries' own timeout is 10 s


@pytest.mark.usefixtures("no_hub")
def test_folder_laid_out_like_a_data_set_is_read_without_a_network(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_lines(folder / "train.jsonl", *PAIRS)
    write_lines(folder / "test.jsonl", PAIRS[0])
    read = rows.read(DataSpec(source="hub", path=str(folder), eval_split="test"))
    assert (read.train, read.evaluation) == (PAIRS, PAIRS[:1])
    with pytest.raises(SweepError, match="Unknown split"):
        rows.read(DataSpec(source="hub", path=str(folder), split="trian"))
    with pytest.raises(SweepError, match="there is no such folder"):
        rows.read(DataSpec(source="hub", path=f"{folder}/deeper"))
