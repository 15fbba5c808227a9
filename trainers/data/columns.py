"""Templates over a row's columns, and the well-known names of columns that need no mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.core.errors import SweepError
from trainers.data.messages import kind, mappings, read_text

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
            ("Alpaca with a system prompt", ("system", "instruction", "input")),
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
_CONVERSATIONS = ("conversations", "conversation", "dialog", "dialogue", "chat")


def known(theirs: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Known | None:
    """Recognise a schema by the names of its columns; None if there is no such."""
    for name in _CONVERSATIONS:
        cells = (row.get(name) for row in rows)
        first = next(filter(None, map(mappings, cells)), None)
        if first is not None:
            words = "ShareGPT" if "from" in first[0] else "chats"
            return Known(words, (name,), {"messages": name})
    return next((each for each in _KNOWN if all(name in theirs for name in each.needed)), None)


def template_columns(value: str) -> list[str]:
    """The columns that a template names, in their order; none if it is no template."""
    return [found[1] for found in _PIECE.finditer(value) if found[1]]


def filled(template: str, row: Mapping[str, Any]) -> str | None:
    """Write a row's columns into a template; None if the row has none of them.

    A column that is empty leaves no trace: the words before it go too, and so do the line breaks
    that would then stand at the start.

    Raises:
        SweepError: a column holds no text.
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
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise SweepError(f"{name} is {kind(value)}, not text")
    return read_text(name, value, may_be_empty=True)
