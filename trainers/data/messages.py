"""Reads the messages of a chat row, in the words of several providers, into role and content."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sweeps.core.errors import SweepError
from trainers.data.decoding import surrogates_explained

ROLES = ("system", "developer", "user", "assistant", "tool")

# Keys that a chat template may read; `train` is ours, and false for a turn that is not learnt.
_KEPT: tuple[str, ...] = ("role", "content", "name", "tool_calls", "tool_call_id")
_KEPT += ("reasoning_content", "reasoning", "thinking")
_LEARNT_KEYS = ("weight", "train", "loss")  # OpenAI and Mistral, axolotl, ms-swift
# What others call the two, the first that is there.
_CALLED = {
    "role": ("from", "speaker", "author", "sender"),
    "content": ("value", "text", "message", "parts"),
}
# A question and its answer in one object: Firefly and MOSS, XTuner.
_PAIRS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("input", "output"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
)
_OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "prompter": "user",
    "bot": "assistant",
    "chatbot": "assistant",
    "claude": "assistant",
    "llm": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
_CALLS = ("function_call", "tool_call")  # roles whose content is a call, as JSON
_READ = frozenset({*_KEPT, *_LEARNT_KEYS, "function_call"})
_PYTHON = re.compile(r"\[?\s*\{\s*'")  # how pandas writes objects into CSV


def read_messages(name: str, value: object) -> list[dict[str, Any]]:
    """Read a list of messages with role and content; CSV holds such a list as JSON.

    Other forms of a conversation are read as well: see `mappings`.

    Raises:
        SweepError: what is wrong with it; `name` is the column.
    """
    return [_message(f"{name}[{index}]", each) for index, each in enumerate(_listed(name, value))]


def message_notes(values: Iterable[object]) -> list[str]:
    """Name the keys of messages that are not read, and the roles that are not the usual ones.

    Args:
        values: cells of the columns of messages, as they were read.
    """
    keys: Counter[str] = Counter()
    read_as: dict[str, str] = {}
    others: Counter[str] = Counter()
    for value in values:
        for message in map(renamed, mappings(value)):
            keys.update(key for key in message if key not in _READ and message[key] is not None)
            theirs = message.get("role")
            if not isinstance(theirs, str):
                continue
            ours = _role(theirs)
            if ours not in ROLES:
                others[theirs] += 1
            elif ours != theirs:
                read_as[theirs] = ours
    notes = []
    if keys:
        notes.append(f"keys of messages not used: {', '.join(sorted(keys))}")
    if read_as:
        pairs = ", ".join(f"{theirs} as {ours}" for theirs, ours in sorted(read_as.items()))
        notes.append(f"roles read in our words: {pairs}")
    if others:
        notes.append(
            f"roles that go to the chat template as they are: {', '.join(sorted(others))}; "
            f"we know {', '.join(ROLES)}"
        )
    return notes


def with_system(name: str, value: object, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages after a system prompt that the row has in a column of its own.

    Raises:
        SweepError: it is no text, or the messages begin with another one; `name` is the column.
    """
    text = _system_text(name, value)
    first = messages[0]
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    if first.get("content") != text:
        raise SweepError(f"{name} and the messages have different system prompts; keep one")
    return messages


def _system_text(name: str, value: object) -> str:
    """The words of a system prompt, which some write as a message."""
    if isinstance(value, Mapping):
        value = renamed(value).get("content")
    if isinstance(value, list):
        value = _joined(name, value)
    return read_text(name, value)


def read_text(name: str, value: object, *, may_be_empty: bool = False) -> str:
    """Check that a value is text, and not empty unless it may be.

    Raises:
        SweepError: what is wrong with it; `name` is its place in the row.
    """
    if not isinstance(value, str):
        raise SweepError(f"{name} is {kind(value)}, not text")
    if not value and not may_be_empty:
        raise SweepError(f"{name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        why = surrogates_explained(value)
        raise SweepError(
            f"{name} holds characters that are not valid Unicode{f': {why}' if why else ''}"
        ) from None
    return value


def kind(value: object) -> str:
    """What a value is, in the words of a message."""
    if value is None:
        return "missing"
    if isinstance(value, bool | int | float):
        return f"the {type(value).__name__} {value}"
    return {"str": "text", "list": "a list", "dict": "an object"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )


def _listed(name: str, value: object) -> list[object]:
    """The messages of a cell, in whatever form it holds them."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = _parsed(name, value)
    are_lists = isinstance(value, Mapping) and all(isinstance(x, list) for x in value.values())
    if isinstance(value, Mapping) and are_lists and ("role" in value or "from" in value):
        value = _rows_of(name, value)
    if not isinstance(value, list):
        raise SweepError(f"{name} is {kind(value)}, not a list of messages")
    if not value:
        raise SweepError(f"{name} is an empty list")
    if len(value) > 1 and all(isinstance(each, str) for each in value):
        return _alternating(value)
    return [turn for each in value for turn in _turns(each)]


def _parsed(name: str, text: str) -> object:
    """What a text holds as JSON, or as pandas writes lists of objects into CSV."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        if _PYTHON.match(text.lstrip()):
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise SweepError(
        f"{name} looks like a JSON list of messages but is not one; json.dumps writes one, and so "
        "do files of JSON lines or Parquet"
    ) from None


def _rows_of(name: str, columns: Mapping[str, list[object]]) -> list[object]:
    """Messages that are held as one list for each key, as `datasets` has sequences of objects."""
    if len({len(each) for each in columns.values()}) > 1:
        raise SweepError(f"{name} has lists of different lengths under {', '.join(columns)}")
    return [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]


def _alternating(texts: Sequence[object]) -> list[object]:
    return [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]


def _turns(value: object) -> list[object]:
    """A message as it is; a question with its answer as the turns that they are."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value):
        return _alternating(value)
    if not isinstance(value, Mapping) or any(key in value for key in ("role", "from")):
        return [value]
    pair = next((pair for pair in _PAIRS if all(key in value for key in pair)), None)
    if pair is None:
        return [value]
    rest = {key: each for key, each in value.items() if key not in (*pair, "system")}
    turns = {"system": value.get("system"), "user": value[pair[0]]}
    asked = [{"role": role, "content": text} for role, text in turns.items() if text]
    return [*asked, {**rest, "role": "assistant", "content": value[pair[1]]}]


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The messages of a cell; none if it holds anything else.

    A conversation may be a list of messages; JSON text that holds it, or Python's, as pandas writes
    it; one list for each key; texts, of which the user's and the assistant's alternate; or
    questions, each with its answer in one object or in a list of the two.
    """
    try:
        return [each for each in _listed("", value) if isinstance(each, Mapping)]
    except SweepError:
        return []  # the check of rows names it


def speaks(value: object) -> bool:
    """Whether a cell holds a conversation, whose messages say who speaks."""
    found = mappings(value)
    return bool(found) and "role" in renamed(found[0])


def _role(theirs: str) -> str:
    plain = theirs.strip().lower()
    if plain in ROLES:
        return plain
    return "assistant" if plain in _CALLS else _OTHER_ROLES.get(plain, theirs)


def _message(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SweepError(f"{name} is {kind(value)}, not {{role: ..., content: ...}}")
    value = renamed(value)
    message = {key: value[key] for key in _KEPT if value.get(key) is not None}
    theirs = read_text(f"{name}.role", message.get("role"))
    message["role"] = _role(theirs)
    if isinstance(message.get("content"), list):
        message["content"] = _joined(f"{name}.content", message["content"])
    if theirs.strip().lower() in _CALLS:
        message = _as_call(message)
    if value.get("function_call") is not None and not message.get("tool_calls"):
        call = {"type": "function", "function": value["function_call"]}
        message = {**message, "tool_calls": [call]}
    if not message.get("tool_calls"):
        read_text(f"{name}.content", message.get("content"), may_be_empty=True)
    if not _is_learnt(name, value):
        message["train"] = False
    return message


def renamed(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the keys that hold its role and its content under our names."""
    found = dict(message)
    for ours, names in _CALLED.items():
        theirs = next((name for name in names if name in found), None)
        if ours not in found and theirs is not None:
            found[ours] = found.pop(theirs)
    return found


def _joined(name: str, parts: list[object]) -> str:
    """The text of content that is given in parts."""
    texts = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        form = part.get("type", "text") if isinstance(part, dict) else None
        if not isinstance(part, dict) or form not in ("text", "input_text", "output_text"):
            what = f"of type {form}" if form else kind(part)
            raise SweepError(f"{name}[{index}] is {what}; only parts of text are read")
        texts.append(read_text(f"{name}[{index}].text", part.get("text"), may_be_empty=True))
    return "".join(texts)


def _as_call(message: Mapping[str, Any]) -> dict[str, Any]:
    """ShareGPT's turn of its own for a call: its content is the call, if it is JSON."""
    try:
        calls = json.loads(message["content"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return dict(message)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        return dict(message)
    rest = {key: value for key, value in message.items() if key != "content"}
    return rest | {"tool_calls": [{"type": "function", "function": call} for call in calls]}


def _is_learnt(name: str, message: Mapping[str, Any]) -> bool:
    """Whether no key of the message says that it is not to be learnt."""
    for key in _LEARNT_KEYS:
        value = message.get(key)
        if value is not None and (not isinstance(value, bool | int | float) or value not in (0, 1)):
            raise SweepError(
                f"{name}.{key} is {kind(value)}; a turn is learnt (1, true) or not (0, false)"
            )
    return all(message.get(key) is None or bool(message[key]) for key in _LEARNT_KEYS)
