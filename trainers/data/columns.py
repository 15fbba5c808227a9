"""Templates over a row's columns, and the well-known names of columns that need no mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.core.errors import SweepError
from trainers.data.messages import kind, mappings, read_text, renamed, speaks

# {column}, or a brace that is meant as one.
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
# Hydra leaves a backslash and its letter as they are typed.
_ESCAPES = {"\\n": "\n", "\\t": "\t"}


@dataclass(frozen=True)
class Known:
    """A schema that others use: its name, the columns that it needs, and what we read them as."""

    name: str
    needed: tuple[str, ...]
    columns: Mapping[str, str]


def _asked(name: str, parts: Sequence[str], end: str, answer: str) -> Known:
    """A schema whose prompt is made of `parts`, those that are empty left out."""
    prompt = r"\n\n".join(f"{{{part}}}" for part in parts) + end
    return Known(name, (*parts, answer), {"prompt": prompt, "completion": f"{{{answer}}}"})


_ANSWERS = ("output", "response", "completion", "answer")
_BREAK, _PARAGRAPH = r"\n", r"\n\n"
# The first whose columns are all there is taken, so those with more columns come first.
_KNOWN: tuple[Known, ...] = (
    *(
        _asked(name, parts, _PARAGRAPH, answer)
        for name, parts in (
            ("Alpaca", ("instruction", "input")),
            ("Dolly", ("instruction", "context")),
            ("Alpaca without input", ("instruction",)),
        )
        for answer in _ANSWERS
    ),
    *(_asked("question with context", ("context", "question"), _BREAK, a) for a in _ANSWERS[::-1]),
    *(
        _asked(f"{question} and {answer}", (question,), _BREAK, answer)
        for question in ("question", "query", "input")
        for answer in _ANSWERS[::-1]
    ),
    *(
        Known(
            f"prompt and {answer}", ("prompt", answer), {"prompt": "prompt", "completion": answer}
        )
        for answer in ("response", "output", "answer")
    ),
)
# What is said before the prompt, if rows have it: LLaMA-Factory, ms-swift, Orca.
_BEFORE = {
    "system": "a system prompt",
    "system_prompt": "a system prompt",
    "history": "the turns before",
}
_CONVERSATIONS = (
    *("conversations", "conversation", "dialog", "dialogue", "chat"),
    *("contents", "turns", "items", "data"),
)


def known(theirs: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Known | None:
    """Recognise a schema by the names of its columns; None if there is no such."""
    for name in _CONVERSATIONS:
        first = next(filter(speaks, (row.get(name) for row in rows)), None)
        if first is not None:
            words = "ShareGPT" if "from" in mappings(first)[0] else "chats"
            return Known(words, (name,), {"messages": name})
    found = next((each for each in _KNOWN if all(name in theirs for name in each.needed)), None)
    return found and (with_context(found, theirs) or found)


def known_in_other_case(theirs: Sequence[str]) -> dict[str, str] | None:
    """Columns for a schema whose names have capitals here, if its prompt is made of several."""
    by_case = {name.lower(): name for name in theirs}
    found = next((each for each in _KNOWN if all(name in by_case for name in each.needed)), None)
    found = found and (with_context(found, [*by_case]) or found)
    if found is None or len(found.needed) < 3:
        return None

    def named(piece: re.Match[str]) -> str:
        return f"{{{by_case[piece[1]]}}}" if piece[1] else piece[0]

    return {
        ours: _PIECE.sub(named, value) if "{" in value else by_case[value]
        for ours, value in found.columns.items()
    }


def with_context(schema: Known, theirs: Sequence[str]) -> Known | None:
    """The schema of text with the columns that come before its prompt; None if there are none."""
    before = [name for name in _BEFORE if name in theirs and name not in schema.needed]
    if not before:
        return None
    prompt = schema.columns["prompt"]
    parts = [f"{{{name}}}" for name in before] + [prompt if "{" in prompt else f"{{{prompt}}}"]
    words = " and ".join(dict.fromkeys(_BEFORE[name] for name in before))
    columns = {**schema.columns, "prompt": _PARAGRAPH.join(parts)}
    return Known(f"{schema.name} with {words}", (*before, *schema.needed), columns)


def template_columns(value: str) -> list[str]:
    """The columns that a template names, in their order; none if it is no template."""
    return [found[1] for found in _PIECE.finditer(value) if found[1]]


def reached(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with the nested values that `columns` names, as `body.messages` or `answers.0`."""
    names = (name for value in columns.values() for name in template_columns(value) or [value])
    paths = [name for name in names if "." in name and name not in row]
    found = {path: _at(row, path.split(".")) for path in paths}
    return {**row, **{path: value for path, value in found.items() if value is not None}}


def _at(value: Any, path: Sequence[str]) -> Any:
    """What lies at the path; None if there is nothing."""
    for name in path:
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def filled(template: str, row: Mapping[str, Any]) -> str | None:
    """Write a row's columns into a template; None if the row has none of them.

    A column that is empty leaves no trace: the words before it go too, and so do the line breaks
    that would then stand at the start. Turns are written as paragraphs.

    Raises:
        SweepError: a column holds neither text nor turns.
    """
    names = template_columns(template)
    values = {name: _cell(name, row.get(name)) for name in names}
    if all(row.get(name) is None for name in names):
        return None
    if not any(values.values()):
        return ""
    done, words, last, cut = "", "", 0, False
    for found in _PIECE.finditer(template):
        words += _plain(template[last : found.start()])
        last = found.end()
        if not found[1]:
            words += found[0][0]
            continue
        if values[found[1]]:
            done += (words.lstrip("\r\n") if cut and not done else words) + values[found[1]]
        else:
            cut = True
        words = ""
    return done + words + _plain(template[last:])


def _plain(text: str) -> str:
    for typed, meant in _ESCAPES.items():
        text = text.replace(typed, meant)
    return text


def _cell(name: str, value: object) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, list) and (turns := mappings(value)):
        value = "\n\n".join(filter(None, (_said(name, turn) for turn in turns)))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise SweepError(f"{name} is {kind(value)}, not text")
    return read_text(name, value, may_be_empty=True)


def _said(name: str, turn: Mapping[str, Any]) -> str:
    return read_text(name, renamed(turn).get("content"), may_be_empty=True)
