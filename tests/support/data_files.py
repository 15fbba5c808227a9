"""Generates data files as people have them, each with what its author meant by the rows in it.

A file is made by construction: rows are drawn, written in one of the shapes, formats, dialects and
encodings that docs/data.md names, and may then be damaged in a way that has to be refused.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
from hypothesis import strategies as st
from support.plain_labels import OWN, PLAIN, RICH, Meant, Turn

Draw = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class DataCase:
    """Files, the keys that name them, and what has to come of them.

    Attributes:
        files: name -> content.
        data: keys of `data`; paths are relative to the folder of the files.
        rows: what the rows mean, in the order in which they are read.
        refused: a pattern of what the refusal names; "" if the files have to be accepted.
        told: words that the report has to have.
        adds: what the tokenizer puts around a text: nothing, "bos", or "bos eos".
        kind: shape, format and damage, for statistics.
    """

    files: Mapping[str, bytes]
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    template: str
    rows: tuple[Meant, ...]
    kind: str
    refused: str = ""
    told: tuple[str, ...] = ()
    adds: str = ""


# ---------------------------------------------------------------------- texts

_WRITTEN = (
    r"""a|Hello| world|Paris|12|3456|0.5|.|...|?|!|'|"|""|,|;|\|\n|\"|{x}|{{|}|[|]|[]|{}|null|NaN"""
    r"""|true|#|=1+2|-|é|ß|日本|語|🎉|<|<b>|&amp;|sep=;|  | |__|Привет|%s|$HOME|${x}|/|:|a, b|a;b"""
)
FRAGMENTS = [
    *_WRITTEN.split("|"),
    *("e\u0301", "\u200b", "\u2028", "\x85", "\xa0", "\ufeff", "\x0b", "\t", "a\tb", "|"),
    *("\n", "\n\n", "\r\n", "\r", "<|eos|>", "<|im_end|>", "<|im_start|>user\n", "<|bos|>"),
]
_PIECES = st.one_of(
    st.sampled_from(FRAGMENTS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)


_EDGES = st.sampled_from([*[""] * 6, "\n", "\n\n", " "])  # letters that grow together at a seam


def texts(*, least: int = 0, most: int = 5) -> st.SearchStrategy[str]:
    """Texts of at least `least` letters."""
    joined = st.lists(_PIECES, min_size=least, max_size=most).map("".join)
    joined = st.builds("{}{}{}".format, _EDGES, joined, _EDGES)
    return joined.filter(lambda text: len(text) >= least)


LONG = st.builds(lambda text, times: text * times, texts(least=3), st.integers(10, 60))
ANY = texts()
FILLED = st.one_of(texts(least=1), texts(least=1), texts(least=1), LONG)


# ---------------------------------------------------------------------- shapes


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows before they are written: what each says, and what it means.

    Attributes:
        values: column -> value of each row; a column that a row lacks is absent.
        columns: `data.columns`.
        learnt: the columns whose damage makes a row unusable.
        is_typed: each column has one type, as Parquet needs it.
    """

    shape: str
    values: list[dict[str, Any]]
    meant: list[Meant]
    learnt: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    template: str = OWN
    told: tuple[str, ...] = ()
    is_typed: bool = True


_ODD_NAMES = (
    "Question, in full",
    "a;b",
    "Question",
    "the answer",
    "réponse",
    "q.1",
    "问题",
    "a-b",
    "Prompt (en)",
    "x=y",
    "C#",
)


def _texts_table(draw: Draw, count: int) -> Table:
    name = draw(st.sampled_from(["text", "text", *_ODD_NAMES]))
    found = [draw(FILLED) for _ in range(count)]
    return Table(
        shape="text",
        values=[{name: text} for text in found],
        meant=[Meant(completion=text, is_text=True) for text in found],
        learnt=(name,),
        columns={} if name == "text" else {"text": name},
    )


def _pairs_table(draw: Draw, count: int) -> Table:
    names = ["prompt", "completion"]
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(_ODD_NAMES), min_size=2, max_size=2, unique=True))
    elif draw(st.booleans()):
        names = ["prompt", draw(st.sampled_from(["response", "output", "answer"]))]
    is_known = names[0] == "prompt"
    pairs = [(draw(ANY), draw(FILLED)) for _ in range(count)]
    only = draw(st.sampled_from([None, None, True, False]))
    return Table(
        shape="pair",
        values=[dict(zip(names, pair, strict=True)) for pair in pairs],
        meant=[Meant(prompt=prompt, completion=completion) for prompt, completion in pairs],
        learnt=(names[1],),
        columns={} if is_known else {"prompt": names[0], "completion": names[1]},
        trainer={} if only is None else {"completion_only_loss": only},
        told=(f"prompt and {names[1]}",) if is_known and names[1] != "completion" else (),
    )


# name, columns of the prompt, what stands between and after them
_SCHEMAS = [
    ("Alpaca", ("instruction", "input"), "\n\n"),
    ("Alpaca without input", ("instruction",), "\n\n"),
    ("Alpaca with a system prompt", ("system", "instruction", "input"), "\n\n"),
    ("Dolly", ("instruction", "context"), "\n\n"),
    ("question with context", ("context", "question"), "\n"),
    ("question and", ("question",), "\n"),
    ("query and", ("query",), "\n"),
    ("input and", ("input",), "\n"),
]


def _schema_table(draw: Draw, count: int) -> Table:
    known, parts, end = draw(st.sampled_from(_SCHEMAS))
    answer = draw(st.sampled_from(["output", "response", "completion", "answer"]))
    values, meant = [], []
    for _ in range(count):
        cells = {part: draw(st.one_of(FILLED, FILLED, st.just(""))) for part in parts}
        completion = draw(FILLED)
        filled = [cell for cell in cells.values() if cell]
        prompt = "\n\n".join(filled) + end if filled else ""
        kept = cells
        if values and filled:  # an empty column may be absent, but not all of them
            kept = {part: each for part, each in cells.items() if each or draw(st.booleans())}
        values.append({**kept, answer: completion})
        meant.append(Meant(prompt=prompt, completion=completion))
    return Table(shape="schema", values=values, meant=meant, learnt=(answer,), told=(known,))


def _template_table(draw: Draw, count: int) -> Table:
    a, b, c = draw(st.permutations(["q", "the hint", "réponse", "topic", "a.b", "Answer"]))[:3]
    between = draw(st.sampled_from(["\\n\\n", "\n", " | ", ""]))
    before, end = draw(st.sampled_from(["Q: ", ""])), draw(st.sampled_from(["\\nA: ", "\n", ""]))
    plain = [each.replace("\\n", "\n") for each in (before, between, end)]
    values, meant = [], []
    for _ in range(count):
        cells = {a: draw(FILLED), b: draw(FILLED), c: draw(FILLED)}
        prompt = f"{plain[0]}{cells[a]}{plain[1]}{cells[b]}{plain[2]}"
        values.append(cells)
        meant.append(Meant(prompt=prompt, completion=cells[c]))
    template = f"{before}{{{a}}}{between}{{{b}}}{end}"
    whole = draw(st.sampled_from([c, f"{{{c}}}"]))
    columns = {"prompt": template, "completion": whole}
    return Table(shape="template", values=values, meant=meant, learnt=(c,), columns=columns)


# ---------------------------------------------------------------------- chats

_WORDS = {
    "system": ("system", "system", "System", "SYSTEM"),
    "user": ("user", "user", "User", "human", "Human"),
    "assistant": ("assistant", "assistant", "Assistant", "gpt", "GPT", "chatgpt", "bot", "model"),
    "tool": ("tool", "function", "observation", "tool_response", "Tool"),
}
_NAMES = st.sampled_from(["weather", "get_time", "find", "größe", "a.b"])
_ARGUMENTS = st.dictionaries(
    st.sampled_from(["city", "n", "é", "deep", "list", "flag"]),
    st.one_of(
        texts(most=2),
        st.integers(-5, 10**9),
        st.booleans(),
        st.none(),
        st.sampled_from([0.5, 1e-7, {"x": 1}, [1, "2"], [], {}]),
    ),
    max_size=3,
)


def _turns(draw: Draw, template: str, *, nulls: bool) -> list[Turn]:
    found = []
    if draw(st.booleans()):
        found.append(Turn(role="system", content=draw(ANY)))
    for _ in range(draw(st.integers(1, 3))):
        found.append(Turn(role="user", content=draw(ANY)))
        if draw(st.integers(0, 9)) == 9:  # a role of their own goes to the template as it is
            found.append(Turn(role="critic", content=draw(ANY)))
        if template == RICH and draw(st.booleans()):
            arguments = _ARGUMENTS if nulls else _ARGUMENTS.map(_without_nulls)
            given = st.one_of(arguments, arguments.map(json.dumps))
            calls = draw(st.lists(st.tuples(_NAMES, given), min_size=1, max_size=2))
            content = draw(st.sampled_from(["", "", "Let me see."]))
            found.append(Turn(role="assistant", content=content, calls=tuple(calls)))
            found.append(Turn(role="tool", content=draw(ANY)))
        thought = draw(FILLED) if template == RICH and draw(st.booleans()) else ""
        found.append(Turn(role="assistant", content=draw(FILLED), thought=thought))
    return found


def _without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if each is not None}


def _written_turn(draw: Draw, turn: Turn, *, sharegpt: bool, plain: bool) -> dict[str, Any]:
    """A message in one of the forms that it may have. `plain`: none that Parquet cannot hold."""
    word = turn.role if plain else draw(st.sampled_from(_WORDS.get(turn.role, (turn.role,))))
    role, content = ("from", "value") if sharegpt else ("role", "content")
    written: dict[str, Any] = {role: word, content: turn.content}
    if turn.calls and not turn.content and draw(st.booleans()):
        written[content] = None
    elif not plain and not sharegpt and draw(st.integers(0, 4)) == 4:
        cut = draw(st.integers(0, len(turn.content)))
        parts = [turn.content[:cut], turn.content[cut:]]
        written[content] = [{"type": "text", "text": part} for part in parts]
    if turn.calls:
        calls = [{"name": name, "arguments": arguments} for name, arguments in turn.calls]
        if len(calls) == 1 and not plain and draw(st.booleans()):
            written["function_call"] = calls[0]
        else:
            written["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    if turn.thought:
        written["reasoning_content"] = turn.thought
    key = draw(st.sampled_from(["weight", "train", "loss"]))
    if not turn.learnt:
        written[key] = draw(st.sampled_from([0, False] if key != "train" else [False]))
    elif not plain and draw(st.integers(0, 5)) == 5:
        written[key] = draw(st.sampled_from([1, True]))
    return written


def _chats_table(draw: Draw, count: int) -> Table:
    template = draw(st.sampled_from([OWN, RICH, PLAIN]))
    plain = draw(st.booleans())  # could be a Parquet file: one type for all messages
    is_pair = draw(st.integers(0, 3)) == 3
    sharegpt = not is_pair and draw(st.integers(0, 2)) == 2
    name = draw(st.sampled_from(["messages", "messages", "the chat"]))
    if sharegpt:
        name = draw(st.sampled_from(["conversations", "conversation", "messages"]))
    assistant_only = draw(st.booleans())
    weighs = draw(st.integers(0, 2)) == 2
    has_tools = template == RICH and draw(st.booleans())
    note = draw(st.sampled_from([None, None, "id", "timestamp"]))
    apart_systems = draw(st.integers(0, 3)) == 3  # in a column of their own
    values, meant, words = [], [], set()
    for _ in range(count):
        turns = _turns(draw, template, nulls=not plain)
        if weighs:
            turns = [
                replace(turn, learnt=turn.role != "assistant" or draw(st.booleans()))
                for turn in turns[:-1]
            ] + turns[-1:]
        given = next(i for i in reversed(range(len(turns))) if turns[i].role == "user") + 1
        given += turns[given].role == "critic"
        given = given if is_pair else 0
        written = [_written_turn(draw, turn, sharegpt=sharegpt, plain=plain) for turn in turns]
        apart = apart_systems and turns[0].role == "system" and turns[0].content != ""
        written, start = (written[1:], 1) if apart else (written, 0)
        for each, turn in zip(written, turns[start:], strict=True):
            said = each["from" if sharegpt else "role"]
            if said != turn.role:
                words.add(f"{said} as {turn.role}")
        if note:
            written[0][note] = 7
        row: dict[str, Any] = {name: written}
        if is_pair:
            row = {"prompt": written[: given - start], "completion": written[given - start :]}
        if apart:
            row["system"] = turns[0].content
        tools = None
        if has_tools:
            parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
            function = {"name": draw(_NAMES), "description": draw(ANY), "parameters": parameters}
            tools = [{"type": "function", "function": function}]
            row["tools"] = json.dumps(tools) if plain else tools
        values.append(row)
        meant.append(Meant(turns=tuple(turns), given=given, tools=tools))
    if any(turn.role == "critic" for row in meant for turn in row.turns):
        words.add("roles that go to the chat template as they are: critic")
    told = sorted(words) + ([f"keys of messages not used: {note}"] if note else [])
    known = is_pair or name in ("messages", "conversations", "conversation")
    return Table(
        shape="chat pair" if is_pair else "sharegpt" if sharegpt else "chat",
        values=values,
        meant=meant,
        learnt=("completion",) if is_pair else (name,),
        columns={} if known else {"messages": name},
        trainer={"assistant_only_loss": True} if assistant_only else {},
        template=template,
        told=tuple(told),
        is_typed=plain,
    )


_TABLES = [
    *(_texts_table, _pairs_table, _pairs_table, _schema_table, _schema_table, _template_table),
    *(_chats_table, _chats_table, _chats_table, _chats_table),
]
_EXTRA = {
    "id": st.integers(0, 10**6),
    "source": texts(most=2),
    "score": st.sampled_from([0.5, 1.25, -3.0]),
    "lang": st.sampled_from(["de", "", "日本"]),
    "meta": st.sampled_from([{"a": 1}, {"a": 2}]),
    "tags": st.sampled_from([["x"], ["x", "y"]]),
}


def _with_extras(draw: Draw, table: Table) -> Table:
    names = draw(st.lists(st.sampled_from(sorted(_EXTRA)), max_size=2, unique=True))
    if not names:
        return table
    rows = [{**row, **{name: draw(_EXTRA[name]) for name in names}} for row in table.values]
    if draw(st.booleans()):
        rows = [{name: row[name] for name in [*names, *row]} for row in rows]
    return replace(table, values=rows, told=(*table.told, *names))


# ---------------------------------------------------------------------- formats


@dataclass(frozen=True, kw_only=True)
class Written:
    """One file's content in parts: a head, each row, and a tail; `name` has the ending."""

    name: str
    parts: list[bytes]  # head, rows, tail
    format: str  # jsonl, list, whole, csv, parquet
    places: list[str]  # a pattern of each row's place
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return b"".join(self.parts)


_LINE_END = re.compile(r"\r\n|\r|\n")
_ENCODINGS = ("cp1252", "latin-1", "utf-16-le", "utf-16-be", "gb18030", "shift_jis", "koi8-r")


def _encoding(draw: Draw, text: str) -> tuple[str, bytes, dict[str, str]]:
    """(codec, mark, keys): UTF-8 for the most part, with or without a mark."""
    chosen = draw(st.sampled_from(["utf-8"] * 6 + ["bom", "le", "be", "named"]))
    if chosen == "bom":
        return "utf-8", b"\xef\xbb\xbf", {}
    if chosen == "le":
        return "utf-16-le", b"\xff\xfe", {}
    if chosen == "be":
        return "utf-16-be", b"\xfe\xff", {}
    if chosen == "named":
        codec = draw(st.sampled_from(_ENCODINGS))
        try:
            if text.encode(codec).decode(codec) == text:
                return codec, b"", {"encoding": codec}
        except UnicodeError:
            pass
    return "utf-8", b"", {}


def _in_bytes(draw: Draw, parts: Sequence[str]) -> tuple[list[bytes], dict[str, str]]:
    codec, mark, keys = _encoding(draw, "".join(parts))
    encoded = [part.encode(codec) for part in parts]
    return [mark + encoded[0], *encoded[1:]], keys


def _json_file(draw: Draw, name: str, rows: Sequence[Mapping[str, Any]]) -> Written:
    ascii_ = draw(st.booleans())
    form = draw(
        st.sampled_from(["jsonl"] * 4 + ["list", "list", "held", "columns", "pandas", "pretty"])
    )
    indent = draw(st.sampled_from([None, None, 2]))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))

    def text(value: Any, indent: int | None = indent) -> str:
        written = json.dumps(value, ensure_ascii=ascii_, indent=indent)
        # Half of a character can only be written in letters of ASCII.
        return written if written.isascii() or _is_whole(written) else json.dumps(value)

    names = list(dict.fromkeys(name for row in rows for name in row))
    if form in ("columns", "pandas") and not _can_be_columns(rows, names):
        form = "list"
    ending = ".json"
    if form == "jsonl":
        ending = draw(st.sampled_from([".jsonl", ".jsonl", ".ndjson", ".json"]))
        blank = draw(st.sampled_from(["", "", end]))
        lines = [blank, *(text(row, None) + end for row in rows), blank]
        if not blank and draw(st.booleans()):
            lines[-2] = lines[-2].removesuffix(end)
        places = [f":{number + (2 if blank else 1)}" for number in range(len(rows))]
    elif form in ("list", "held"):
        head, tail = "[", "]" + draw(st.sampled_from(["", "\n"]))
        if form == "held":
            key = draw(
                st.sampled_from(["data", "rows", "train", "examples", "instances", "records"])
            )
            extra = draw(st.sampled_from(["", '"version": "1.0", ']))
            head, tail = f'{{{extra}"{key}": [', "]}"
        lines = [head, *(text(row) + ",\n" for row in rows), tail]
        lines[-2] = lines[-2].removesuffix(",\n")
        places = [f": item {number}" for number in range(1, len(rows) + 1)]
    elif form == "pretty":
        lines = ["", *(text(row, 2) + end for row in rows), ""]
        places = [""] * len(rows)
    else:
        whole: Any = {name: [row[name] for row in rows] for name in names}
        if form == "pandas":
            whole = {name: {str(i): cell for i, cell in enumerate(whole[name])} for name in names}
        lines = [text(whole), *[""] * len(rows), ""]
        places = [f": item {number}" for number in range(1, len(rows) + 1)]
    parts, keys = _in_bytes(draw, lines)
    kind = "jsonl" if form == "jsonl" else "list" if form == "list" else "whole"
    return Written(name=name + ending, parts=parts, format=kind, places=places, keys=keys)


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _can_be_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Whether each row has each column."""
    return all(name in row for row in rows for name in names)


def _csv_file(draw: Draw, name: str, rows: Sequence[Mapping[str, Any]]) -> Written:
    names = list(dict.fromkeys(name for row in rows for name in row))
    ending = draw(st.sampled_from([".csv", ".csv", ".csv", ".tsv", ".tab"]))
    delimiter = "\t" if ending != ".csv" else draw(st.sampled_from([",", ",", ";", "\t", "|"]))
    if len(names) == 1 and ending == ".csv":
        delimiter = ","  # nothing in the file says which it is
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    awkward = any("\r" in cell or "\n" in cell for row in cells for cell in row)
    quoting = (
        csv.QUOTE_ALL if awkward else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    )
    lines = [_csv_line(row, delimiter, end, quoting) for row in cells]
    of_names = csv.QUOTE_ALL if any(letter in "".join(names) for letter in ",;|") else quoting
    lines.insert(0, _csv_line(names, delimiter, end, of_names))
    if quoting == csv.QUOTE_ALL and delimiter == "," and draw(st.integers(0, 4)) == 4:
        lines = [_spaced_line(row, end) for row in (names, *cells)]
    if ending == ".csv" and draw(st.integers(0, 5)) == 5:
        lines[0] = f"sep={delimiter}{end}{lines[0]}"
    if draw(st.booleans()):
        lines[-1] = lines[-1].removesuffix(end)
    parts, keys = _in_bytes(draw, [*lines, ""])
    befores = ["".join(lines[:index]) for index in range(1, len(lines))]
    places = [f":{1 + len(_LINE_END.findall(before))}" for before in befores]
    return Written(name=name + ending, parts=parts, format="csv", places=places, keys=keys)


def _csv_line(cells: Sequence[str], delimiter: str, end: str, quoting: int) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, delimiter=delimiter, lineterminator=end, quoting=quoting).writerow(cells)  # type: ignore[arg-type]
    return line.getvalue()


def _spaced_line(cells: Sequence[str], end: str) -> str:
    """Quoted cells with a blank after each comma, as people write it."""
    return ", ".join('"' + cell.replace('"', '""') + '"' for cell in cells) + end


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _typed_file(draw: Draw, name: str, rows: Sequence[Mapping[str, Any]]) -> Written:
    """Parquet or Arrow, whose columns have one type for all rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    ending = draw(st.sampled_from([".parquet", ".parquet", ".pq", ".arrow", ".feather"]))
    out = io.BytesIO()
    if ending in (".parquet", ".pq"):
        pyarrow.parquet.write_table(table, out)
    elif ending == ".feather":
        pyarrow.feather.write_feather(table, out)
    else:
        kind = draw(st.sampled_from([pyarrow.ipc.new_stream, pyarrow.ipc.new_file]))
        with kind(out, table.schema) as writer:
            writer.write_table(table)
    places = [f": row {number}" for number in range(1, len(rows) + 1)]
    parts = [out.getvalue(), *[b""] * len(rows), b""]
    return Written(name=name + ending, parts=parts, format="parquet", places=places)


def _packed(ending: str, content: bytes) -> bytes:
    if ending == ".zst":
        return pyarrow.compress(content, codec="zstd", asbytes=True)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": bytes}
    return pack[ending](content)


def _written(draw: Draw, name: str, format_: str, rows: Sequence[Mapping[str, Any]]) -> Written:
    if format_ == "json":
        return _json_file(draw, name, rows)
    if format_ == "parquet":
        try:
            return _typed_file(draw, name, rows)
        except (pyarrow.ArrowException, UnicodeError):  # arguments of several types
            return _json_file(draw, name, rows)
    return _csv_file(draw, name, rows)


# ---------------------------------------------------------------------- damage


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A table or file with one bad row; `refused` says what the refusal must name."""

    refused: str
    bad_row: int | None = None  # of the file; None if the file cannot be read at all
    files: Mapping[str, bytes] = field(default_factory=dict)


def _damaged_values(draw: Draw, table: Table, at: int) -> Table | None:
    """The table with one row that says something else than text."""
    rows = [dict(row) for row in table.values]
    name = table.learnt[-1]
    if table.shape in ("text", "pair", "schema", "template"):
        bad = [True, {"a": "b"}, "\ud800x"]
        if any(each not in (None, "") for key, each in rows[at].items() if key != name):
            bad += [None, ""]  # a table's row without anything is passed over
        if len(rows) > 1:  # one object of lists is a table by columns
            bad += [["a"]]
        if table.shape in ("text", "pair"):  # a template writes a number as text
            bad += [5, 0.5]
        rows[at][name] = draw(st.sampled_from(bad))
    else:
        messages = [dict(each) for each in rows[at][name]]
        last = messages[-1]
        content = "value" if "value" in last else "content"
        damage = draw(
            st.sampled_from(["null", "number", "picture", "role", "weight", "none", "text"])
        )
        if damage == "null":
            last.pop("tool_calls", None)
            last[content] = None
        elif damage == "number":
            last[content] = 5
        elif damage == "picture":
            last[content] = [{"type": "image_url", "image_url": {"url": "a.png"}}]
        elif damage == "role":
            last["role" if content == "content" else "from"] = draw(st.sampled_from(["", None, 5]))
        elif damage == "weight":
            last["weight"] = draw(st.sampled_from([0.5, "yes", -1]))
        rows[at][name] = {"none": [], "text": "Hello"}.get(damage, messages)
    return replace(table, values=rows)


@st.composite
def data_cases(draw: Draw, *, valid: bool | None = None) -> DataCase:
    """Draw a case; `valid` asks for one that has to be accepted, or refused."""
    count = draw(st.integers(1, 5))
    table = _with_extras(draw, draw(st.sampled_from(_TABLES))(draw, count))
    is_valid = draw(st.integers(0, 3)) > 0 if valid is None else valid
    format_ = draw(st.sampled_from(["json", "json", "json", "csv", "csv", "parquet"]))
    damage, at = "", draw(st.integers(0, count - 1))
    if not is_valid:
        kinds = ["values", "columns", "mapping", "byte", "cut", "cells", "long", "doubled", "row"]
        damage = draw(st.sampled_from(kinds))
    if damage in ("values", "row", "cut"):
        format_ = "json"
    if damage in ("cells", "doubled"):
        format_ = "csv"
    if format_ == "parquet" and not table.is_typed:
        format_ = "json"
    if damage == "values":
        table = _damaged_values(draw, table, at) or table
    names = draw(st.sampled_from([["rows"], ["rows"], ["my rows"], ["größe=1"], ["a-0", "a-1"]]))
    bounds = [len(table.values)] if len(names) == 1 else [len(table.values) // 2, len(table.values)]
    files: dict[str, bytes] = {}
    path: Any = ""
    keys: dict[str, Any] = {}
    start = 0
    parts: list[tuple[Written, str]] = []
    for name, bound in zip(names, bounds, strict=True):
        rows = table.values[start:bound]
        start = bound
        if rows:
            parts.append((_written(draw, name, format_, rows), _compression(draw, format_)))
    if len({part.keys.get("encoding") for part, _ in parts}) > 1:  # one key for all files
        parts = [(replace(part, keys={}), packed) for part, packed in parts]
        return draw(data_cases(valid=valid))
    for part, packed in parts:
        keys = {**keys, **part.keys}
        files[part.name + packed] = _packed(packed, part.content)
        path = part.name + packed
    told = table.told
    if len(parts) > 1:
        path = draw(st.sampled_from(["a-*", ".", list(files)]))
        told = (*told, "2 files: a-0")
    case = DataCase(
        files=files,
        data={"path": path, "columns": dict(table.columns), **keys},
        trainer=table.trainer,
        template=table.template,
        rows=tuple(table.meant),
        told=told,
        kind=f"{table.shape}, {parts[-1][0].format}",
        adds=draw(st.sampled_from(["", "", "", "bos", "bos eos"])),
    )
    case = _with_length(draw, case)
    if damage:
        return _broken(draw, case, table, parts, damage, at)
    return case


def _compression(draw: Draw, format_: str) -> str:
    if format_ == "parquet":
        return ""
    return str(draw(st.sampled_from(["", "", "", "", ".gz", ".bz2", ".xz", ".zst"])))


def _with_length(draw: Draw, case: DataCase) -> DataCase:
    length = draw(st.sampled_from([512, 512, 512, 64, 16]))
    return replace(case, data={**case.data, "max_length": length, "max_truncated": 1.0})


def _broken(
    draw: Draw,
    case: DataCase,
    table: Table,
    parts: Sequence[tuple[Written, str]],
    damage: str,
    at: int,
) -> DataCase:
    """The case with one thing wrong in it, and what a refusal has to name."""
    kind = f"{case.kind}, {damage}"
    places = [
        re.escape(part.name + packed) + re.escape(place) + r"\b"
        for part, packed in parts
        for place in part.places
    ]
    broken = replace(case, kind=kind, refused=places[at])
    if table.shape == "sharegpt":  # known by what its cells hold, if there is one left
        broken = replace(broken, refused=f"{broken.refused}|has the columns")
    if damage == "values":
        return _skipping(draw, broken, at)
    if damage == "columns":
        return replace(
            broken,
            data={**case.data, "columns": {"prompt": "no such", "completion": "column"}},
            refused=r"data\.columns\.prompt = no such",
        )
    are_short = all(row.is_text and len(row.prompt + row.completion) < 16 for row in case.rows)
    if damage == "mapping" or (damage == "long" and are_short):  # two tokens may hold such rows
        return replace(
            broken,
            data={**case.data, "columns": {"promt": table.learnt[0]}},
            refused=r"data\.columns\.promt",
        )
    if damage == "long":
        return replace(
            broken,
            data={**case.data, "max_length": 2, "max_truncated": 0.0},
            refused=r"data\.max_length=2",
        )
    return _broken_file(draw, broken, parts, damage, at)


def _skipping(draw: Draw, case: DataCase, at: int) -> DataCase:
    """Perhaps the same with data.on_bad_row=skip, which leaves the row out."""
    if len(case.rows) < 2 or not draw(st.booleans()):
        return case
    rows = case.rows[:at] + case.rows[at + 1 :]
    data = {**case.data, "on_bad_row": "skip"}
    return replace(case, data=data, rows=rows, refused="", told=(), kind=f"{case.kind}, skipped")


def _broken_file(
    draw: Draw, case: DataCase, parts: Sequence[tuple[Written, str]], damage: str, at: int
) -> DataCase:
    where, row = 0, at
    while row >= len(parts[where][0].places):
        row -= len(parts[where][0].places)
        where += 1
    part, packed = parts[where]
    pieces = list(part.parts)
    name = re.escape(part.name + packed)
    line = pieces[row + 1]
    is_utf8 = not part.keys and pieces[0][:2] not in (b"\xff\xfe", b"\xfe\xff")
    skippable = part.format == "jsonl"
    refused = case.refused
    if damage == "byte" and is_utf8 and part.format in ("jsonl", "list", "csv") and b'"' in line:
        if part.format == "csv":
            pieces[row + 1] = _in_cells(line, _delimiter_of(pieces))
            refused = rf"{name}(:\d+| = |: has the columns)"
        else:
            pieces[row + 1] = _in_text(line)
            refused = name + (
                r":\d+" if part.format == "list" else re.escape(part.places[row]) + r"\b"
            )
        skippable = skippable or part.format == "csv"
    elif damage == "cut" and is_utf8 and part.format == "jsonl":
        pieces[row + 1] = line.rstrip()[: -draw(st.integers(1, 3))] + b"\n"
    elif damage == "row" and is_utf8 and part.format == "jsonl":
        pieces[row + 1] = draw(st.sampled_from([b"5\n", b'"a"\n', b"[1]\n", b"{]\n", b"---\n"]))
        if row == 0:
            refused = name
            skippable = False
    elif (
        damage == "cells" and part.format == "csv" and is_utf8 and not case.kind.startswith("text")
    ):
        pieces[row + 1] = b'"one cell"' + (b"\r" if b"\r" in pieces[0][-1:] else b"\n")
        skippable = True
    elif damage == "doubled" and part.format == "csv" and is_utf8:
        return _with_doubled_column(case, part, packed, pieces)
    elif damage == "cut" and part.format in ("list", "whole", "parquet") and is_utf8:
        content = b"".join(pieces).rstrip()
        pieces = [content[: -draw(st.integers(1, min(30, len(content) - 1)))]]
        refused, skippable = name, False
    else:
        return replace(case, refused="", kind=case.kind.rpartition(",")[0])
    files = {**case.files, part.name + packed: _packed(packed, b"".join(pieces))}
    broken = replace(case, files=files, refused=refused)
    return _skipping(draw, broken, at) if skippable else broken


def _in_text(line: bytes) -> bytes:
    """A byte that is not UTF-8 in the last text of a line of JSON."""
    at = line.rindex(b'"')
    return line[:at] + b"\xe9" + line[at:]


def _in_cells(line: bytes, delimiter: str) -> bytes:
    """A byte that is not UTF-8 in each cell of a line of CSV."""
    text = line.decode()
    cells = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)))
    end = "\r" if text.endswith("\r") else "\n"
    bad = _csv_line([f"{cell}\udce9" for cell in cells], delimiter, end, csv.QUOTE_ALL)
    return bad.encode("utf-8", "surrogateescape")


def _with_doubled_column(
    case: DataCase, part: Written, packed: str, pieces: list[bytes]
) -> DataCase:
    delimiter = _delimiter_of(pieces)
    pieces = [_doubled(piece, delimiter) for piece in pieces]
    files = {**case.files, part.name + packed: _packed(packed, b"".join(pieces))}
    name = re.escape(part.name + packed)
    return replace(case, files=files, refused=rf"{name}:\d+: two columns have the name")


def _delimiter_of(pieces: Sequence[bytes]) -> str:
    head = pieces[0].decode("utf-8-sig")
    if head.startswith("sep="):
        return head[4]
    counts = {each: len(next(csv.reader([head], delimiter=each))) for each in ",;\t|"}
    return max(counts, key=lambda each: counts[each])


def _doubled(piece: bytes, delimiter: str) -> bytes:
    """Each row of the piece with all its cells twice."""
    text = piece.decode("utf-8-sig")
    lead = ""
    if text.startswith("sep="):
        lead, text = text[:5] + "\n", text[5:].lstrip("\r\n")
    end = "\r" if text.endswith("\r") else "\n"
    found = [row + row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)]
    return (lead + "".join(_csv_line(r, delimiter, end, csv.QUOTE_ALL) for r in found)).encode()
