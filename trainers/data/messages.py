"""Reads the messages of a chat row, in the words of several providers, into role and content."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.core.errors import SweepError
from trainers.data.decoding import surrogates_explained

ROLES = ("system", "developer", "user", "assistant", "tool")

# Keys that a chat template may read; `train` is ours, and false for a turn that is not learnt.
_KEPT: tuple[str, ...] = ("role", "content", "name", "tool_calls", "tool_call_id")
_KEPT += ("reasoning_content", "reasoning", "thinking")
_LEARNT_KEYS = ("weight", "train", "loss")  # OpenAI and Mistral, axolotl, ms-swift
_SHAREGPT = {"from": "role", "value": "content"}
_OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
_CALLS = ("function_call", "tool_call")  # roles whose content is a call, as JSON
_READ = frozenset({*_KEPT, *_LEARNT_KEYS, *_SHAREGPT, "function_call"})


def read_messages(name: str, value: object) -> list[dict[str, Any]]:
    """Read a list of messages with role and content; CSV holds such a list as JSON.

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
        for message in mappings(value):
            keys.update(key for key in message if key not in _READ and message[key] is not None)
            theirs = message.get("role", message.get("from"))
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
    text = read_text(name, value)
    first = messages[0]
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    if first.get("content") != text:
        raise SweepError(f"{name} and the messages have different system prompts; keep one")
    return messages


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
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise SweepError(f"{name} looks like a JSON list of messages but is not one") from None
    if not isinstance(value, list):
        raise SweepError(f"{name} is {kind(value)}, not a list of messages")
    if not value:
        raise SweepError(f"{name} is an empty list")
    return value


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The messages of a cell, or of JSON text that holds them; none if it is anything else."""
    try:
        return [each for each in _listed("", value) if isinstance(each, Mapping)]
    except SweepError:
        return []  # the check of rows names it


def _role(theirs: str) -> str:
    plain = theirs.strip().lower()
    if plain in ROLES:
        return plain
    return "assistant" if plain in _CALLS else _OTHER_ROLES.get(plain, theirs)


def _message(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SweepError(f"{name} is {kind(value)}, not {{role: ..., content: ...}}")
    if "from" in value and "role" not in value:  # ShareGPT's words; a call has no value
        value = {_SHAREGPT.get(key, key): each for key, each in value.items()}
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
