"""Messages in the words of other providers and tools."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.core.errors import SweepError
from trainers.data.messages import message_notes, read_messages, with_system


def one(message: dict[str, Any]) -> dict[str, Any]:
    (read,) = read_messages("messages", [message])
    return read


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("human", "user"),
        ("Human", "user"),
        ("GPT", "assistant"),
        ("chatgpt", "assistant"),
        ("AI", "assistant"),
        ("Assistant", "assistant"),
        ("function", "tool"),
        ("observation", "tool"),
        ("SYSTEM", "system"),
        ("critic", "critic"),
    ],
)
def test_roles_in_other_words(theirs: str, ours: str) -> None:
    assert one({"from": theirs, "value": "x"}) == {"role": ours, "content": "x"}
    assert one({"role": theirs, "content": "x"}) == {"role": ours, "content": "x"}


@pytest.mark.parametrize(("theirs", "why"), [(None, "missing"), (5, "the int 5, not text")])
def test_a_role_that_is_no_text_is_refused(theirs: object, why: str) -> None:
    for message in ({"from": theirs, "value": "x"}, {"role": theirs, "content": "x"}):
        with pytest.raises(SweepError, match=rf"messages\[0\]\.role is {why}"):
            one(message)


def test_roles_and_keys_that_are_read_otherwise_are_named() -> None:
    cell = [
        {"from": "chatgpt", "value": "x", "id": 7},
        {"role": "critic", "content": "x", "mask": True, "weight": 1, "score": None},
    ]
    keys, read_as, others = message_notes([cell, None, "text"])
    assert keys == "keys of messages not used: id, mask"
    assert read_as == "roles read in our words: chatgpt as assistant"
    assert others.startswith("roles that go to the chat template as they are: critic; we know")
    assert message_notes([[{"role": "user", "content": "x"}]]) == []


def test_marks_of_turns_that_are_not_learnt_become_ours() -> None:
    for mark in ({"weight": 0}, {"train": False}, {"loss": 0}):
        assert one({"role": "assistant", "content": "x", **mark})["train"] is False
    for mark in ({"weight": 1}, {"train": True}, {"weight": None}, {}):
        assert "train" not in one({"role": "assistant", "content": "x", **mark})
    with pytest.raises(SweepError, match=r"messages\[0\]\.weight is the float 0\.5; a turn is"):
        one({"role": "assistant", "content": "x", "weight": 0.5})


def test_content_in_parts_is_joined_and_pictures_refused() -> None:
    parts = [{"type": "text", "text": "Look"}, {"type": "text", "text": " here"}, "."]
    assert one({"role": "user", "content": parts})["content"] == "Look here."
    picture = {"type": "image_url", "image_url": {"url": "x.png"}}
    with pytest.raises(SweepError, match=r"content\[1\] is of type image_url; only parts of text"):
        one({"role": "user", "content": [parts[0], picture]})


def test_calls_in_older_words_become_tool_calls() -> None:
    function = {"name": "clock", "arguments": {"zone": "UTC"}}
    calls = [{"type": "function", "function": function}]
    old = {"role": "assistant", "content": None, "function_call": function}
    assert one(old) == {"role": "assistant", "tool_calls": calls}
    assert one({"from": "gpt", "tool_calls": calls}) == {"role": "assistant", "tool_calls": calls}
    text = '{"name": "clock", "arguments": {"zone": "UTC"}}'
    assert one({"from": "function_call", "value": text}) == {
        "role": "assistant",
        "tool_calls": calls,
    }
    free = {"from": "function_call", "value": "clock()"}
    assert one(free) == {"role": "assistant", "content": "clock()"}


Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CHATS_OF_OTHERS = [
    ["q", "a"],  # LIMA
    {"role": ["user", "assistant"], "content": ["q", "a"]},  # a sequence of objects of `datasets`
    {"from": ["human", "gpt"], "value": ["q", "a"]},
    "[{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]",  # pandas' CSV
    [{"human": "q", "assistant": "a"}],  # Firefly
    [{"input": "q", "output": "a"}],  # XTuner
    [{"system": "", "input": "q", "output": "a"}],
    [["q", "a"]],  # LLaMA-Factory's history
    [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
    [{"speaker": "User", "text": "q"}, {"speaker": "Chatbot", "text": "a"}],
    [{"role": "prompter", "value": "q"}, {"from": "assistant", "content": "a"}],
]


@pytest.mark.parametrize("cell", CHATS_OF_OTHERS)
def test_conversations_in_other_forms(cell: object) -> None:
    assert read_messages("chat", cell) == [Q, A]
    assert not [note for note in message_notes([cell]) if not note.startswith("roles read")]


def test_what_stands_beside_a_question_and_its_answer_is_the_answers() -> None:
    cell = [{"system": "s", "human": "q", "assistant": "a", "weight": 0, "mood": "calm"}]
    assert read_messages("chat", cell) == [
        {"role": "system", "content": "s"},
        Q,
        {**A, "train": False},
    ]
    assert message_notes([cell]) == ["keys of messages not used: mood"]


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("[{'role': 'user'}\n {'role': 'assistant'}]", "looks like a JSON list of messages but is"),
        ({"role": ["user"], "content": ["q", "a"]}, "lists of different lengths under role, con"),
        (["q"], r"chat\[0\] is text, not \{role"),
    ],
)
def test_conversations_that_are_none(cell: object, why: str) -> None:
    with pytest.raises(SweepError, match=why):
        read_messages("chat", cell)


@pytest.mark.parametrize(
    "system", ["Be terse", {"role": "system", "parts": [{"text": "Be "}, {"text": "terse"}]}]
)
def test_a_system_prompt_of_the_row(system: object) -> None:
    messages = read_messages("chat", [Q, A])
    assert with_system("system", system, messages)[0] == {"role": "system", "content": "Be terse"}
