"""Finds what a chat template leaves out of chats, by writing them with it and without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Turns = Sequence[Mapping[str, Any]]
# Writes turns and tools by the template; None if it refuses them.
Write = Callable[[Turns, Any], str | None]

_KEYS = {
    "tool_calls": "the turns that call are learnt without their calls",
    "reasoning_content": "it is not learnt",
    "reasoning": "it is not learnt",
    "thinking": "it is not learnt",
    "name": "the model does not see it",
}
_ROLES = ("system", "developer", "tool")
_TRIED = 8  # rows that have the part: of earlier turns some templates leave out the reasoning only


def notes(write: Write, chats: Sequence[tuple[Turns, Any]]) -> list[str]:
    """Name each part of the chats that the template leaves out in every row that is tried.

    Args:
        chats: the turns and the tools of each row.
    """
    return [*_about_keys(write, chats), *_about_roles(write, chats), *_about_tools(write, chats)]


def _about_keys(write: Write, chats: Sequence[tuple[Turns, Any]]) -> Iterator[str]:
    for key, so in _KEYS.items():
        having = [chat for chat in chats if any(turn.get(key) for turn in chat[0])]
        others = [([_without(turn, key) for turn in turns], tools) for turns, tools in having]
        if _same(write, having, others):
            yield f"{len(having):,} rows: the chat template does not write {key}, so {so}"


def _about_roles(write: Write, chats: Sequence[tuple[Turns, Any]]) -> Iterator[str]:
    for role in _ROLES:
        having = [chat for chat in chats if any(turn["role"] == role for turn in chat[0])]
        others = [([turn for turn in turns if turn["role"] != role], t) for turns, t in having]
        if _same(write, having, others):
            yield (
                f"{len(having):,} rows: the chat template does not write turns of the role {role}, "
                "so the model does not see them"
            )


def _about_tools(write: Write, chats: Sequence[tuple[Turns, Any]]) -> Iterator[str]:
    having = [chat for chat in chats if chat[1]]
    if _same(write, having, [(turns, None) for turns, _ in having]):
        yield (
            f"{len(having):,} rows: the chat template does not write tools, so the model does not "
            "see which there are"
        )
    calling = [chat for chat in chats if any(turn.get("tool_calls") for turn in chat[0])]
    if any(_in_quotes(write, *chat) for chat in calling[:_TRIED]):
        yield (
            "the arguments of tool calls are JSON text, and the chat template writes them in "
            "quotes; as objects they would be written plainly"
        )


def _same(
    write: Write, chats: Sequence[tuple[Turns, Any]], others: Sequence[tuple[Turns, Any]]
) -> bool:
    """Whether the template writes the first of both alike; rows that it refuses do not count."""
    pairs = zip(chats[:_TRIED], others[:_TRIED], strict=True)
    written = [(write(*chat), write(*other)) for chat, other in pairs]
    known = [(text, other) for text, other in written if text is not None]
    return bool(known) and all(text == other for text, other in known)


def _in_quotes(write: Write, turns: Turns, tools: Any) -> bool:
    calls = [call for turn in turns for call in turn.get("tool_calls") or ()]
    functions = [call.get("function") for call in calls if isinstance(call, Mapping)]
    given = [each.get("arguments") for each in functions if isinstance(each, Mapping)]
    texts = [each for each in given if isinstance(each, str) and each.lstrip().startswith("{")]
    text = write(turns, tools) or "" if texts else ""
    quoted = [json.dumps(each, ensure_ascii=plain) for each in texts for plain in (True, False)]
    return any(each in text for each in quoted)


def _without(turn: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if name != key}
