"""Maps a data set's columns to ours, and checks a row's values and the data section."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.config.spec import DataSpec
from sweeps.core.commands import typed
from sweeps.core.errors import ConfigError, Problem, SweepError, nearest
from trainers.data.columns import (
    Known,
    filled,
    known,
    known_in_other_case,
    template_columns,
    with_context,
)
from trainers.data.files import in_words
from trainers.data.messages import kind, mappings, read_messages, read_text, speaks, with_system
from trainers.data.readers import BadRow, FileRow

SHAPES: dict[str, tuple[str, ...]] = {  # in order of preference if a data set has several
    "prompt and completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
_OF_CHATS = ("tools", "system")  # columns beside those of a shape
FIELDS = (*dict.fromkeys(field for fields in SHAPES.values() for field in fields), *_OF_CHATS)
# What others call these.
_BESIDE = {
    "tools": ("functions",),
    "system": ("system_prompt", "systemInstruction", "system_instruction"),
}
_TEXT_FIELDS = ("prompt", "completion", "text", "system")

# Other data sets' names for these columns: only used to suggest a mapping.
_OTHER_NAMES = {
    "prompt": tuple(
        "instruction question input query inputs problem article dialogue document content".split()
    ),
    "completion": tuple(
        "response output answer answers target targets solution summary highlights chosen "
        "preferred_output".split()
    ),
    "messages": ("conversations", "conversation", "chat", "dialog", "contents", "chosen"),
    "text": ("content", "document", "body", "chosen"),
}
# Columns that say of a completion, or of a chat, whether it is desirable, as data for KTO has them.
_DESIRABLE = {"kto_tag": SHAPES, "label": ("prompt and completion",)}  # in rows of these shapes
_NEVER_LEARNT = ("rejected", "non_preferred_output")
_IDENTITY = re.compile(r"(?:^|[_ -])(?:u?u?id|index|idx|key)$", re.IGNORECASE)
_DEEPEST = 5  # names in the path to a nested value that is suggested


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape and the columns of the rows of one data set.

    Attributes:
        shape: a key of `SHAPES`.
        columns: our field <- the data set's column, or a template over its columns.
        templates: the fields whose `columns` are templates.
        is_chat: values are lists of messages, not text.
        unused: columns that are left out.
        known_as: the name of a schema that was recognised by the columns' names.
        desirable: the column that says of each row whether what it answers is desirable.
    """

    shape: str
    columns: Mapping[str, str]
    is_chat: bool
    unused: tuple[str, ...]
    templates: frozenset[str] = frozenset()
    known_as: str | None = None
    desirable: str | None = None

    @property
    def words(self) -> str:
        chat = "chat with tools" if "tools" in self.columns else "chat"
        return f"{self.shape} ({chat if self.is_chat else 'text'})"


def layout(spec: DataSpec, rows: Sequence[FileRow]) -> Layout:
    """Find the layout of a data set by `data.columns`, else by the columns' names.

    Raises:
        ConfigError: no shape has all its columns, or `data.columns` names a column that is missing.
    """
    theirs = tuple(dict.fromkeys(name for row in rows for name in row.values))
    if problems := _mapping_problems(spec.columns, theirs):
        raise ConfigError(problems)
    columns = {name: name for name in theirs if name in FIELDS} | dict(spec.columns)
    for ours, names in _BESIDE.items():
        if ours not in columns and (there := [name for name in names if name in theirs]):
            columns[ours] = there[0]
    shape, schema = _shape(columns, spec.columns, rows), None
    if shape is None and not spec.columns:
        schema = known(theirs, [row.values for row in rows])
        columns |= schema.columns if schema else {}
        shape = _shape(columns, columns, rows)
    if shape is None:
        raise ConfigError([_missing_columns(spec, theirs, columns, rows)])
    is_chat = _is_chat(shape, columns, rows)
    if schema is None and not spec.columns and not is_chat and "completion" in SHAPES[shape]:
        pair = SHAPES[shape]
        schema = with_context(Known(shape, pair, {ours: ours for ours in pair}), theirs)
        columns |= schema.columns if schema else {}
    if not is_chat and (asked := [ours for ours in _OF_CHATS if ours in spec.columns]):
        key, message = f"data.columns.{asked[0]}", "is read with chats only; these rows are text."
        raise ConfigError([Problem(key=key, value=columns[asked[0]], message=message)])
    fields = (*SHAPES[shape], *(_OF_CHATS if is_chat else ()))
    used = {ours: columns[ours] for ours in fields if ours in columns}
    templates = frozenset(ours for ours, name in used.items() if name not in theirs)
    read = {name for ours in used for name in _columns_of(used[ours], ours in templates)}
    unused = tuple(
        name
        for name in theirs
        if name not in read and not any(each.startswith(f"{name}.") for each in read)
    )
    return Layout(
        shape=shape,
        columns=used,
        templates=templates,
        is_chat=is_chat,
        unused=unused,
        known_as=schema.name if schema else None,
        desirable=None if spec.columns else _desirable(shape, unused, rows),
    )


def _desirable(shape: str, unused: Collection[str], rows: Sequence[FileRow]) -> str | None:
    """The column that marks some rows as undesirable, if it says nothing but true and false."""
    for name, shapes in _DESIRABLE.items():
        marks = {_mark(row, name) for row in rows if shape in shapes and name in unused}
        if "false" in marks and marks <= {"true", "false", "none"}:
            return name
    return None


def _mark(row: FileRow, name: str) -> str:
    return str(row.values.get(name)).lower()  # of CSV it is text


def _columns_of(value: str, is_template: bool) -> list[str]:
    return template_columns(value) if is_template else [value]


def checked(row: FileRow, form: Layout) -> FileRow | BadRow:
    """Reduce a row to our columns, or say what is wrong with it."""
    values: dict[str, Any] = {}
    try:
        if form.desirable and _mark(row, form.desirable) == "false":
            words = typed("data.columns", dict(form.columns))
            raise SweepError(
                f"{form.desirable} is false: it is marked as undesirable (KTO), and would be "
                f"learnt all the same; {words} learns it"
            )
        for ours in SHAPES[form.shape]:
            theirs = form.columns[ours]
            value = _value(row, form, ours)
            if value is None:
                raise SweepError(f"{theirs} is missing")
            values[ours] = (
                read_messages(theirs, value)
                if form.is_chat
                else read_text(theirs, value, may_be_empty=ours == "prompt")
            )
        if "tools" in form.columns:
            values["tools"] = _tools(form.columns["tools"], _value(row, form, "tools"))
        if system := _value(row, form, "system"):
            first = SHAPES[form.shape][0]
            values[first] = with_system(form.columns["system"], system, values[first])
    except SweepError as error:
        return BadRow(row.where, str(error))
    return FileRow(row.where, values)


def _value(row: FileRow, form: Layout, ours: str) -> Any:
    """What a row holds for our field; None if there is no column for it."""
    theirs = form.columns.get(ours)
    if theirs is None:
        return None
    return filled(theirs, row.values) if ours in form.templates else row.values.get(theirs)


def spec_problems(spec: DataSpec) -> list[Problem]:
    """Everything wrong with `spec` that shows without reading data."""
    problems = []
    if spec.source != "docstrings" and not spec.path:
        example = "data.path=train.jsonl" if spec.source == "file" else "data.path=OWNER/NAME"
        problems.append(Problem(key="data.path", message=f"data={spec.source} needs it: {example}"))
    if spec.source == "hub" and not isinstance(spec.path, str | None):
        message = "is one data set of the Hub; several are read as files, with data=file"
        problems.append(Problem(key="data.path", value=in_words(spec.path), message=message))
    if spec.eval_split and spec.source != "hub":
        message = "only data sets of the Hub have splits; name a file with data.eval_path"
        problems.append(Problem(key="data.eval_split", value=spec.eval_split, message=message))
    if spec.eval_split and spec.eval_path:
        message = "data.eval_split is set too; one of the two gives the evaluation rows"
        problems.append(Problem(key="data.eval_path", value=spec.eval_path, message=message))
    if spec.limit is not None and spec.limit < 1:
        message = "is a number of rows, 1 or more; leave it out to read all"
        problems.append(Problem(key="data.limit", value=spec.limit, message=message))
    if spec.max_length < 2:
        message = "is a number of tokens, 2 or more: each token is predicted from those before it"
        problems.append(Problem(key="data.max_length", value=spec.max_length, message=message))
    return problems + _share_problems(spec)


def describe(spec: DataSpec) -> str:
    """Name the source in words, for reports and messages."""
    if spec.source == "docstrings":
        return f"docstrings of the standard library of Python {platform.python_version()}"
    if spec.source == "file":
        return in_words(spec.path)
    name = f"/{spec.name}" if spec.name else ""
    revision = f"@{spec.revision}" if spec.revision else ""
    return f"{spec.path}{name}{revision}, split {spec.split}"


def _shape(
    columns: Mapping[str, str], asked: Mapping[str, str], rows: Sequence[FileRow]
) -> str | None:
    """Choose a shape whose columns are there, first one that `data.columns` asks for.

    Of several it is the one of most rows, so that one odd row is not taken for the rule.
    """
    present = [shape for shape, fields in SHAPES.items() if all(ours in columns for ours in fields)]
    if len(present) > 1:
        present.sort(key=lambda shape: -sum(_has(row, columns, shape) for row in rows))
    present.sort(key=lambda shape: not any(ours in asked for ours in SHAPES[shape]))
    return present[0] if present else None


def _has(row: FileRow, columns: Mapping[str, str], shape: str) -> bool:
    return all(row.values.get(columns[ours]) is not None for ours in SHAPES[shape])


def _is_chat(shape: str, columns: Mapping[str, str], rows: Sequence[FileRow]) -> bool:
    """Whether most rows hold messages, in CSV as JSON text; rows that differ are bad."""
    if shape != "prompt and completion":
        return shape == "messages"
    pairs = ([row.values.get(columns[ours]) for ours in ("completion", "prompt")] for row in rows)
    found = [
        bool(mappings(pair[0])) and (isinstance(pair[0], list) or bool(mappings(pair[1])))
        for pair in pairs
        if isinstance(pair[0], str) or mappings(pair[0])  # what is neither tells nothing
    ]
    chats = sum(found)
    return chats * 2 > len(found) or (chats * 2 == len(found) and found[:1] == [True])


def _mapping_problems(mapping: Mapping[str, str], theirs: Sequence[str]) -> list[Problem]:
    problems = []
    for ours, name in mapping.items():
        key = f"data.columns.{ours}"
        if ours not in FIELDS:
            message = f"we read {', '.join(FIELDS)}."
            problems.append(
                Problem(key=key, value=name, message=message, nearest=nearest(ours, FIELDS))
            )
        elif name in theirs:
            continue
        elif (names := template_columns(str(name))) and ours in _TEXT_FIELDS:
            problems += [_unknown_column(key, each, theirs) for each in names if each not in theirs]
        else:
            problems.append(_unknown_column(key, name, theirs))
    return problems


def _unknown_column(key: str, name: str, theirs: Sequence[str]) -> Problem:
    message = f"the data has the columns {', '.join(theirs)}."
    return Problem(key=key, value=name, message=message, nearest=nearest(name, theirs))


def _missing_columns(
    spec: DataSpec, theirs: Sequence[str], found: Mapping[str, str], rows: Sequence[FileRow]
) -> Problem:
    wanted = "prompt and completion, or messages, or text"
    message = f"has the columns {', '.join(theirs) or '(none)'}; rows need {wanted}."
    filled_ones = (
        (name, next((row.values[name] for row in rows if row.values.get(name)), None))
        for name in theirs
    )
    leaves = dict(_leaves(dict(filled_ones)))
    suggestion = known_in_other_case(theirs) or _suggestion(leaves, theirs, found)
    if suggestion:
        advice = f"Say which of them are ours: {typed('data.columns', suggestion)}"
    else:
        advice = f"None of them can be mapped to these as it is: write each row as {wanted}"
    return Problem(
        key="data.path" if spec.path else "data",
        value=in_words(spec.path) if spec.path else None,
        message=f"{message} {advice}",
    )


def _leaves(value: Any, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """The texts and conversations of a row by their names; a nested one's is its path."""
    if (isinstance(value, str) and value) or speaks(value):
        yield prefix, value
    elif isinstance(value, list) and value and isinstance(value[0], str):
        yield f"{prefix}.0", value[0]
    elif isinstance(value, Mapping) and depth <= _DEEPEST:
        for name, each in value.items():
            path = f"{prefix}.{name}" if prefix else str(name)
            if name not in _NEVER_LEARNT:
                yield from _leaves(each, path, depth + 1)


def _suggestion(
    leaves: Mapping[str, Any], theirs: Sequence[str], found: Mapping[str, str]
) -> dict[str, str]:
    """Guess a mapping that would work, from the names of texts and conversations; empty if none."""
    for shape, fields in SHAPES.items():
        fit = [name for name in leaves if speaks(leaves[name]) or shape != "messages"]
        guess = {ours: found.get(ours) or _alias(ours, fit) for ours in fields}
        cells = [name and leaves.get(name) for name in guess.values()]
        are_alike = shape == "messages" or len({isinstance(cell, str) for cell in cells}) == 1
        if len(set(guess.values())) == len(fields) and all(cells) and are_alike:
            return {ours: name for ours, name in guess.items() if name and ours != name}
    texts = [name for name in theirs if name in leaves and not speaks(leaves[name])]
    telling = [name for name in texts if not _IDENTITY.search(name)]
    texts = telling if len(telling) > 1 else texts
    begin = _alias("prompt", texts) or next(iter(texts), None)
    others = [name for name in texts if name != begin]
    end = _alias("completion", others) or next(iter(others), None)
    if begin and end:
        return {"prompt": begin, "completion": end}
    return {"text": begin} if begin and len(leaves) == 1 else {}


def _alias(ours: str, theirs: Sequence[str]) -> str | None:
    """The column that is most likely ours, by its name or by one on the path to it."""
    names = (ours, *_OTHER_NAMES[ours])
    whole = {name.lower(): name for name in reversed(theirs)}
    parts = {part: name for name in reversed(theirs) for part in name.lower().split(".")}
    known = [by_name[name] for by_name in (whole, parts) for name in names if name in by_name]
    return known[0] if known else nearest(ours, [name for name in theirs if "." not in name])


def _tools(name: str, value: object) -> str | None:
    """Write a row's tools as JSON text; None if it has none.

    Raises:
        SweepError: they are no list of objects.
    """
    if value is None or value == "":
        return None
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise SweepError(f"{name} is text that is not JSON") from None
    if not isinstance(tools, list):
        raise SweepError(f"{name} is {kind(tools)}, not a list of tools")
    if odd := [each for each in tools if not isinstance(each, dict)]:
        raise SweepError(f"{name} holds {kind(odd[0])}; a tool is an object")
    if name == "functions":  # OpenAI's older word, for what is in a tool
        return json.dumps([_as_tool(each) for each in tools])
    return value if isinstance(value, str) else json.dumps(value)


def _as_tool(function: Mapping[str, Any]) -> Mapping[str, Any]:
    is_tool = "function" in function
    return function if is_tool else {"type": "function", "function": function}


def _share_problems(spec: DataSpec) -> list[Problem]:
    problems = []
    for name in ("eval_fraction", "test_fraction", "max_truncated"):
        share = getattr(spec, name)
        if not 0 <= share <= 1:
            message = "is a share of the rows, from 0 to 1"
            problems.append(Problem(key=f"data.{name}", value=share, message=message))
    own = spec.eval_path or spec.eval_split
    if not problems and (0 if own else spec.eval_fraction) + spec.test_fraction >= 1:
        message = "with data.test_fraction leaves no rows to train on"
        problems.append(
            Problem(key="data.eval_fraction", value=spec.eval_fraction, message=message)
        )
    if spec.eval_limit is not None and spec.eval_limit < 1:
        message = "is a number of rows, 1 or more; leave it out to measure on all"
        problems.append(Problem(key="data.eval_limit", value=spec.eval_limit, message=message))
    return problems
