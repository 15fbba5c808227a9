"""Files as they lie on disk: containers of rows, spreadsheets' tables, encodings, compression."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest

from sweeps.config.spec import DataSpec
from sweeps.config.trial_config import trial_key
from sweeps.core.errors import ConfigError, SweepError
from trainers.data import decoding, rows
from trainers.data.readers import BadRow, read

PAIRS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(3)]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
LINES = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
COLUMNS = {"prompt": ["p0", "p1", "p2"], "completion": ["c0", "c1", "c2"]}


def values(path: Path, encoding: str | None = None) -> list[dict[str, Any]]:
    found = list(read("data.path", path, "auto", encoding))
    assert not [each for each in found if isinstance(each, BadRow)]
    return [each.values for each in found if not isinstance(each, BadRow)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"data": PAIRS}, PAIRS),
        ({"data": []}, []),
        ({"version": "1.0", "data": PAIRS}, PAIRS),
        (COLUMNS, PAIRS),
        ({name: dict(enumerate(cells)) for name, cells in COLUMNS.items()}, PAIRS),
        (PAIRS[0], PAIRS[:1]),
        ({"messages": TURNS}, [{"messages": TURNS}]),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, None),
        ({"text": ["t"], "meta": [{"a": 1}]}, [{"text": "t", "meta": {"a": 1}}]),
        (PAIRS, PAIRS),
    ],
    ids="data none version columns pandas one messages chat_pair nested list".split(),
)
def test_json_that_holds_its_rows_in_one_object(
    tmp_path: Path, content: object, expected: object, indent: int | None
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=indent))
    assert values(path) == ([content] if expected is None else expected)


def test_a_key_that_an_object_has_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES + '{"prompt": "p", "prompt": "q", "completion": "c"}\n')
    *_, last = read("data.path", path, "auto")
    assert last == BadRow(f"{path}:4", "not valid JSON: an object has the key 'prompt' twice")


def test_an_object_of_several_splits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": PAIRS, "validation": [], "test": PAIRS}))
    with pytest.raises(SweepError, match=r"a\.json: holds rows of several splits: train, test\. "):
        list(read("data.path", path, "auto"))
    path.write_text(json.dumps({"train": PAIRS, "test": []}))
    assert values(path) == PAIRS


def test_objects_over_several_lines_may_follow_one_on_a_single_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = json.dumps(PAIRS[0]) + "\n" + "\n".join(json.dumps(row, indent=1) for row in PAIRS[1:])
    path.write_text(text)
    assert rows.read(DataSpec(source="file", path=str(path))).train == PAIRS


def test_objects_over_several_lines_keep_their_places(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(pair, indent=2) for pair in PAIRS))
    found = list(read("data.path", path, "auto"))
    assert [each.where for each in found] == [f"{path}:{line}" for line in (1, 5, 9)]
    assert values(path) == PAIRS


@pytest.mark.parametrize("broken", ["first", "last"])
def test_a_broken_first_or_last_line_is_one_bad_row(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "a.jsonl"
    half = '"p", "completion": "c"}\n' if broken == "first" else '{"prompt": "p", "compl'
    path.write_text(half + LINES if broken == "first" else LINES + half)
    line = 1 if broken == "first" else 4
    with pytest.raises(SweepError, match=rf"1 of 4 rows(.|\n)*a\.jsonl:{line}: not valid JSON"):
        rows.read(DataSpec(source="file", path=str(path)))
    assert rows.read(DataSpec(source="file", path=str(path), on_bad_row="skip")).train == PAIRS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt;completion\np0;c0\np1;"a; ""b"", c"\n'),
        ("a.csv", 'prompt\tcompletion\np0\tc0\np1\t"a; ""b"", c"\n'),
        ("a.tsv", 'prompt\tcompletion\np0\tc0\np1\t"a; ""b"", c"\n'),
        ("a.csv", 'prompt|completion\np0|c0\np1|"a; ""b"", c"\n'),
        ("a.csv", 'sep=;\nprompt;completion\np0;c0\np1;"a; ""b"", c"\n'),
        ("a.csv", '"prompt","completion"\r\n"p0","c0"\r\n"p1","a; ""b"", c"\r\n'),
        ("a.csv", 'prompt, completion\np0, c0\np1, "a; ""b"", c"\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    assert values(path) == [
        {"prompt": "p0", "completion": "c0"},
        {"prompt": "p1", "completion": 'a; "b", c'},
    ]


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("a.tsv", "text\nyes, indeed\n", {"text": "yes, indeed"}),
        ("a.tab", 'a\t"b, c, d"\n1,2\t3\n', {"a": "1,2", "b, c, d": "3"}),
        ("a.csv", '"a, b",c\n1, 2\n', {"a, b": "1", "c": " 2"}),
        ("a.csv", '"a", "b"\n"1", "2"\n', {"a": "1", "b": "2"}),
        ("a.csv", '"a, b"|"c"\n1|2\n', {"a, b": "1", "c": "2"}),
        ("a.csv", '"a;b";"c|d"\n1,5; x\n', {"a;b": "1,5", "c|d": " x"}),
    ],
)
def test_a_columns_name_does_not_decide_how_cells_are_parted(
    tmp_path: Path, name: str, text: str, row: dict[str, str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert values(path) == [row]


def test_doubled_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,text\na,b\n")
    with pytest.raises(SweepError, match=r"a\.csv:1: two columns have the name 'text'; rename"):
        values(path)


@pytest.mark.parametrize(
    ("text", "encoding"), [("café", "cp1252"), ("Привет мир", "cp1251"), ("指令输出", "gb18030")]
)
def test_another_encoding_is_named_and_read(tmp_path: Path, text: str, encoding: str) -> None:
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    table.write_bytes(f"text\nfine\n{text}\n".encode(encoding))
    lines.write_bytes(f'{{"text": "fine"}}\n{{"text": "{text}"}}\n'.encode(encoding))
    for path, place in ((table, r"a\.csv:3: text holds"), (lines, r"a\.jsonl:2: not valid UTF-8")):
        with pytest.raises(SweepError, match=place) as caught:
            rows.read(DataSpec(source="file", path=str(path)))
        said = str(caught.value)
        assert "byte 0x" in said
        assert f"data.encoding={encoding}" in said
        assert text in said
        read_rows = rows.read(DataSpec(source="file", path=str(path), encoding=encoding))
        assert read_rows.train == [{"text": "fine"}, {"text": text}]


def test_wrong_encodings_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text\nfine\ncafé\n".encode())
    with pytest.raises(SweepError, match=r"a\.csv:3: byte 0xc3 at \d+ is not ascii; set data\.enc"):
        values(path, "ascii")
    with pytest.raises(ConfigError, match=r"data\.encoding = uft8: is no encoding"):
        values(path, "uft8")


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_compressed_files_are_read_by_their_ending(tmp_path: Path, ending: str) -> None:
    lines, table = tmp_path / f"a.jsonl.{ending}", tmp_path / f"a.csv.{ending}"
    lines.write_bytes(PACKERS[ending](LINES.encode()))
    table.write_bytes(PACKERS[ending](b"prompt;completion\np0;c0\n"))
    assert values(lines) == PAIRS
    assert values(table) == PAIRS[:1]


@pytest.mark.parametrize("ending", PACKERS)
def test_damaged_compressed_files_are_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    for content in (PACKERS[ending](LINES.encode() * 99)[:-20], b"not packed at all"):
        path.write_bytes(content)
        with pytest.raises(SweepError, match=rf"a\.jsonl\.{ending}.*cannot be (unpacked|read)"):
            values(path)


CALLS = [
    {"role": "user", "content": "?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {"x": 1}}}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "b", "arguments": {"y": "z"}}}]},
]


def arrow_file(table: pyarrow.Table, path: Path) -> None:
    with pyarrow.ipc.new_file(path, table.schema) as file:
        file.write_table(table, 1)


def arrow_stream(table: pyarrow.Table, path: Path) -> None:
    with pyarrow.ipc.new_stream(path, table.schema) as file:
        file.write_table(table, 1)


TABLES: dict[str, Callable[[pyarrow.Table, Path], object]] = {
    "a.parquet": pyarrow.parquet.write_table,
    "a.pq": pyarrow.parquet.write_table,
    "a.arrow": arrow_file,
    "b.arrow": arrow_stream,
    "a.feather": pyarrow.feather.write_feather,
}


@pytest.mark.parametrize("name", TABLES)
def test_nested_columns_of_tables_have_each_row_s_own_keys(tmp_path: Path, name: str) -> None:
    """A table gives every call the arguments of all others, as nulls."""
    given = [{"messages": CALLS, "source": None}, {"messages": CALLS[:1], "source": "x"}]
    table = pyarrow.Table.from_pylist(given)
    assert table.to_pylist() != given
    TABLES[name](table, tmp_path / name)
    assert values(tmp_path / name) == given


def test_maps_and_the_first_version_of_feather(tmp_path: Path) -> None:
    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    mapped = pyarrow.table({"m": pyarrow.array([[("a", "b")]], type=kind)})
    arrow_file(mapped, tmp_path / "a.arrow")
    assert values(tmp_path / "a.arrow") == [{"m": {"a": "b"}}]
    table = pyarrow.Table.from_pylist(PAIRS)
    pyarrow.feather.write_feather(table, str(tmp_path / "a.feather"), version=1)
    assert values(tmp_path / "a.feather") == PAIRS


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_none_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    TABLES[name](pyarrow.Table.from_pylist(PAIRS), path)
    whole = path.read_bytes()
    for content in (b"no table at all", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(SweepError, match=rf"{name}: not a readable (Parquet|Arrow) file: "):
            values(path)


def test_the_key_of_the_encoding_changes_no_older_trial() -> None:
    config = {"data": {"source": "docstrings"}, "seed": 0}
    later = {"data": {"source": "docstrings", "encoding": None}, "seed": 0}
    assert trial_key(config) == trial_key(later)
    assert trial_key(config) != trial_key({**later, "data": {"encoding": "cp1252"}})


@pytest.mark.parametrize(
    "content",
    [
        {"columns": ["prompt", "completion"], "index": [0, 1], "data": [["q", "a"], ["r", "b"]]},
        {"0": {"prompt": "q", "completion": "a"}, "1": {"prompt": "r", "completion": "b"}},
        {"x7": {"prompt": "q", "completion": "a"}, "x8": {"prompt": "r", "completion": "b"}},
        {"prompt": {"0": "q", "1": "r"}, "completion": {"0": "a", "1": "b"}},
        {
            "features": [],
            "rows": [
                {"row_idx": 0, "row": {"prompt": "q", "completion": "a"}, "truncated_cells": []},
                {"row_idx": 1, "row": {"prompt": "r", "completion": "b"}, "truncated_cells": []},
            ],
        },
    ],
)
def test_tables_that_pandas_and_the_hub_write_as_json(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps(content, indent=indent))
        assert values(path) == [
            {"prompt": "q", "completion": "a"},
            {"prompt": "r", "completion": "b"},
        ]


def test_one_conversation_on_one_line_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"id": "1", "items": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    path.write_text(json.dumps(row))
    assert values(path) == [row]


def test_empty_columns_and_rows_of_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt;completion;;\nq;a;;\n;;;\nr;b;;\n;;;\n")
    read = values(path)
    assert [(row["prompt"], row["completion"]) for row in read] == [("q", "a"), ("r", "b")]
    assert list(read[0]) == ["prompt", "completion", "column 3", "column 4"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        ("a.json", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.csv", b"PK\x03\x04rest", "Excel workbook: unpack it, or save it as CSV UTF-8"),
        ("a.json", b"\x1f\x8b\x08", r"let its name end in \.gz"),
        ("a.xlsx", b"PK", "is a workbook: save it as CSV UTF-8"),
        ("a.zip", b"PK", "is an archive: unpack it"),
        ("a.pkl", b"", "may run code when it is opened"),
    ],
)
def test_files_that_are_not_what_they_seem(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SweepError, match=why):
        values(tmp_path / name)


def test_a_quote_that_is_not_doubled_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"He said \\"hi\\""\n')
    with pytest.raises(SweepError, match="a quote within quotes is written twice"):
        rows.read(DataSpec(source="file", path=str(tmp_path / "a.csv")))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("処理区分,件数", "cp932"),
        ("プロンプト", "cp932"),
        ("질문과 답변", "cp949"),
        ("問題和回答", "big5"),
        ("你好", "gb18030"),
        ("Größe – „Müller“", "cp1252"),
        ("español: ¿qué?", "cp1252"),
        ("Łódź", "cp1250"),
        ("привет", "cp1251"),
    ],
)
def test_the_encoding_of_a_countrys_spreadsheets_is_among_the_two(text: str, encoding: str) -> None:
    said = decoding.explained(text.encode(encoding), 0)
    assert f"data.encoding={encoding}" in said
    assert text[:4] in said
