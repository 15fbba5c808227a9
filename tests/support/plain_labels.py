"""What is learnt of a row, computed plainly from what the row means; calls nothing of the product.

A chat is a list of pieces of text, each learnt or not. Its tokens are those of the whole text, but
where one token would hold characters that are learnt and others that are not, the two sides are
tokenized apart, as in generation.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL = Path(__file__).parents[2] / "trainers" / "tiny_llama"
EOS = "<|eos|>"
BOS_ID = 1
MASKED = -100

Pieces = list[tuple[str, bool]]  # text, and whether it is learnt


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a chat. `calls` are (name, arguments); `learnt` is what its weight says."""

    role: str
    content: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    thought: str = ""
    learnt: bool = True


@dataclass(frozen=True, kw_only=True)
class Meant:
    """A row as its author meant it: a text, a prompt and its completion, or a chat.

    Attributes:
        completion: the text that is learnt; None for a chat.
        is_text: there is no prompt, not even an empty one.
        turns: of a chat; the first `given` of them are a prompt.
        tools: what the chat template gets.
    """

    prompt: str = ""
    completion: str | None = None
    is_text: bool = False
    turns: tuple[Turn, ...] = ()
    given: int = 0
    tools: Any = None


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(MODEL))


# The embedded model's own template, and one with all that a chat may hold.
OWN = "own"
RICH = "rich"
PLAIN = "plain"
TEMPLATES: dict[str, str | None] = {
    OWN: None,
    RICH: """\
{%- if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {%- if message.reasoning_content %}
            {{- '<think>' + message.reasoning_content + '</think>\n' }}
        {%- endif %}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '<call>' + (call.function | tojson) + '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
""",
    PLAIN: """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '### Response:\n' }}
        {%- generation %}{{ message.content + '<|eos|>' }}{% endgeneration %}
    {%- else %}
        {{- '### ' + message.role + ':\n' + message.content }}
    {%- endif %}
    {{- '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}
""",
}


def _head_body_tail(template: str, turn: Turn) -> tuple[str, str, str]:
    """A turn as the template writes it: what precedes its words, these, and what follows."""
    if template == PLAIN:
        if turn.role == "assistant":
            return "### Response:\n", turn.content + EOS, "\n\n"
        return f"### {turn.role}:\n", turn.content, "\n\n"
    body = turn.content
    if template == RICH and turn.role == "assistant":
        thought = f"<think>{turn.thought}</think>\n" if turn.thought else ""
        calls = "".join(
            f"<call>{_json({'name': name, 'arguments': arguments})}</call>"
            for name, arguments in turn.calls
        )
        body = thought + turn.content + calls
    return f"<|im_start|>{turn.role}\n", body + "<|im_end|>", "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def pieces(row: Meant, template: str, *, assistant_only: bool, completion_only: bool) -> Pieces:
    """A chat's text in pieces that are learnt or not."""
    found: Pieces = []
    if template == RICH and row.tools:
        plain = not assistant_only and not (row.given and completion_only)
        found.append((f"<|im_start|>tools\n{_json(row.tools)}<|im_end|>\n", plain))
    for index, turn in enumerate(row.turns):
        learnt = turn.learnt and not (index < row.given and completion_only)
        is_asked = index == row.given > 0 and turn.role == "assistant" and completion_only
        head, body, tail = _head_body_tail(template, turn)
        spoken = learnt and (turn.role == "assistant" or not assistant_only)
        around = learnt and not assistant_only
        found += [(head, around and not is_asked), (body, spoken), (tail, around)]
    return found


def labels(
    row: Meant,
    template: str,
    *,
    max_length: int,
    assistant_only: bool = False,
    completion_only: bool = True,
    begins: bool = False,
) -> tuple[list[int], list[int]]:
    """The row's token ids, and their labels: the token itself, or -100 where it is not learnt.

    Args:
        begins: the tokenizer puts its bos token before a text, which belongs to the prompt.
    """
    if row.completion is not None:
        ids, learnt = _pair(row.prompt, row.completion, completion_only=completion_only)
        if begins:
            ids, learnt = [BOS_ID, *ids], [row.is_text or not completion_only, *learnt]
    else:
        parts = pieces(
            row, template, assistant_only=assistant_only, completion_only=completion_only
        )
        ids, learnt = _tokenized(parts)
    found = [token if is_learnt else MASKED for token, is_learnt in zip(ids, learnt, strict=True)]
    return ids[:max_length], found[:max_length]


def _pair(prompt: str, completion: str, *, completion_only: bool) -> tuple[list[int], list[bool]]:
    """A prompt has the tokens that it has by itself, as in generation."""
    whole = completion if completion.endswith(EOS) else completion + EOS
    before, ids = _ids(prompt), _ids(prompt + whole)
    if ids[: len(before)] != before:
        ids = before + _ids(whole)
    return ids, [not completion_only or index >= len(before) for index in range(len(ids))]


def _ids(text: str) -> list[int]:
    return list(tokenizer()(text, add_special_tokens=False)["input_ids"])


def _tokenized(parts: Iterable[tuple[str, bool]]) -> tuple[list[int], list[bool]]:
    runs = _merged(parts)
    told = [is_learnt for each, is_learnt in runs for _ in each]
    return _from_characters("".join(each for each, _ in runs), told)


def _from_characters(text: str, told: list[bool]) -> tuple[list[int], list[bool]]:
    encoded = tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    learnt = []
    for start, end in encoded["offset_mapping"]:
        held = told[start:end]
        if len(set(held)) > 1:
            cut = start + next(i for i, each in enumerate(held) if each != held[0])
            before, after = (
                _from_characters(text[:cut], told[:cut]),
                _from_characters(text[cut:], told[cut:]),
            )
            return before[0] + after[0], before[1] + after[1]
        learnt.append(held[0])
    return list(encoded["input_ids"]), learnt


def _merged(parts: Iterable[tuple[str, bool]]) -> Pieces:
    runs: Pieces = []
    for text, told in parts:
        if runs and runs[-1][1] == told:
            runs[-1] = (runs[-1][0] + text, told)
        elif text:
            runs.append((text, told))
    return runs
