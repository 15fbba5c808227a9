"""Turns rows into token ids and labels, those that SFTTrainer makes of the same rows.

Each row is tokenized on its own, with the calls that TRL makes, so that a row that cannot be is
named and no row changes another; three things differ from TRL on purpose: tool calls keep their own
keys, no part of a prompt is learnt, and there is one eos token. The cut is TRL's own: its
`_prepare_dataset` is called on a trainer that was never initialised, because a real one needs the
model, and the data is checked before any model is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset, Features, List, Value

from sweeps.core.errors import ConfigError, Problem, SweepError, first_line
from trainers.data.readers import BadRow, FileRow
from trainers.model import chat_template
from trainers.model.stopping import end_of_turn
from trainers.model.tokenizer import IGNORED, set_eos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# SFTConfig's fields that change what is trained on or measured; no sweep may search them.
DATA_FIELDS = ("assistant_only_loss", "completion_only_loss", "eos_token")
COLUMNS = ["input_ids", "labels"]
PROMPT = "same_prompt"  # of rows to measure on: equal for rows that share a prompt
_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int64"))})

_WAYS_TO_TEMPLATE = (
    "Set model.chat_template=FILE.jinja, take the -Instruct variant of the model, or bring the "
    "rows into prompt and completion as text"
)


class Tokenizing:
    """The preparation for one tokenizer and one layout of rows.

    Args:
        trainer: SFTConfig's fields as the user set them; only `DATA_FIELDS` matter.
        has_completions: rows hold `prompt` and `completion`; by default only the latter is learnt.

    Attributes:
        stops: ids of the tokens at which a model that learnt these rows stops.

    Raises:
        ConfigError, SweepError: no eos token, or a template that does not do what was asked of it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        trainer: Mapping[str, Any],
        *,
        is_chat: bool,
        has_completions: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._arguments = _arguments(trainer)
        self._is_chat = is_chat
        set_eos(tokenizer, self._arguments.eos_token)
        if is_chat and not tokenizer.chat_template:
            raise SweepError(
                "the rows are chats, and the model's tokenizer has no chat template that says how "
                f"to write them. {_WAYS_TO_TEMPLATE}"
            )
        if self._arguments.assistant_only_loss and not is_chat:
            message = "needs rows of messages; these are text. Leave it out"
            raise ConfigError(
                [Problem(key="trainer.assistant_only_loss", value=True, message=message)]
            )
        self.notes: list[str] = []
        self.stops = self._stops(is_chat)
        self._seams = 0  # of prompts
        self._turn_seams = 0
        only = self._arguments.completion_only_loss
        self._completion_only = has_completions if only is None else only
        self._appends_eos = not is_chat and _appends_eos(tokenizer)
        if self._appends_eos:
            self.notes.append("the tokenizer ends each text with its eos token; it is there once")
        self._preparer = self._new_preparer()

    def tokenized(self, rows: Sequence[FileRow], bad: list[BadRow]) -> Dataset:
        """Tokenize whole rows: columns input_ids and labels; a masked label is -100.

        Each row goes through the template on its own: a table of all rows would give every message
        and every tool call the keys of all others, as nulls that are then learnt.

        Args:
            bad: rows that the template or the tokenizer refuses are added here.
        """
        found = []
        for row in rows:
            try:
                found.append(self._row(row.values))
            except SweepError as error:
                bad.append(BadRow(row.where, str(error)))
            except Exception as error:  # Jinja, tokenizers: each has exceptions of its own
                why = f"cannot be tokenized: {_refusal(error)}{_about_calls(row.values)}"
                bad.append(BadRow(row.where, why))
        columns = {
            "input_ids": [ids for ids, _ in found],
            "labels": [
                [token if learnt else IGNORED for token, learnt in zip(ids, mask, strict=True)]
                for ids, mask in found
            ],
        }
        return Dataset.from_dict(columns, features=_FEATURES)

    def template_notes(self, rows: Sequence[FileRow]) -> list[str]:
        """Say which parts of chats the chat template leaves out."""
        if not self._is_chat:
            return []
        chats = [
            ([_for_template(turn) for turn in _conversation(row.values)], _tools(row.values))
            for row in rows
        ]
        return chat_template.notes(self._written, chats)

    def _written(self, turns: Sequence[Mapping[str, Any]], tools: Any) -> str | None:
        try:
            return self._rendered(turns, tools)[0]
        except Exception:  # Jinja has exceptions of its own; the row is refused by its place
            return None

    def seam_notes(self) -> list[str]:
        """Say how many rows had tokens that grow together where what is learnt begins or ends."""
        pairs = (
            f"{self._seams:,} rows: the prompt's last token would grow together with the "
            "completion's first; the two are tokenized apart, as in generation, and the prompt is "
            "not learnt. Prompts that end with a line break avoid it"
        )
        turns = (
            f"{self._turn_seams:,} rows: a turn's first or last token would grow together with "
            "what the chat template writes beside it; the two are tokenized apart, as in generation"
        )
        found = {pairs: self._seams, turns: self._turn_seams}
        return [words for words, count in found.items() if count]

    def _stops(self, is_chat: bool) -> tuple[int, ...]:
        """The tokens at which generation stops: the end of a chat's turn, and eos."""
        eos = str(self._tokenizer.eos_token)
        end = end_of_turn(self._tokenizer) if is_chat else eos
        if end is None:
            self.notes.append(
                "the chat template ends the assistant's turn with no token of its own, so the "
                "model does not learn where to stop: put one there in a copy of the template "
                "(model.chat_template=FILE.jinja)"
            )
        elif end != eos:
            self.notes.append(
                f"a turn ends with {end}, and the tokenizer's eos token is {eos}: best/ has a "
                "generation_config.json that stops at both"
            )
        ends = [eos] if end is None else [end, eos]
        return tuple(dict.fromkeys(map(int, self._tokenizer.convert_tokens_to_ids(ends))))

    def _row(self, row: Mapping[str, Any]) -> tuple[list[int], list[bool]]:
        """One row's token ids, and which of them are learnt."""
        if "text" in row:
            ids = self._text_ids(self._ended(row["text"]))
            return ids, [True] * len(ids)
        if isinstance(row.get("prompt"), str):
            return self._pair(row["prompt"], self._ended(row["completion"]))
        prompt = len(row["prompt"]) if "prompt" in row else None
        return self._chat(_conversation(row), _tools(row), prompt=prompt)

    def _pair(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        """Tokens of a prompt and a completion as text; no prompt's character is learnt."""
        before = self._text_ids(prompt)
        ids = self._text_ids(prompt + completion)
        learnt_from = _common(before, ids)
        if learnt_from < len(before):
            self._seams += 1
            ids, learnt_from = self._apart(before, completion, ids)
        only = self._completion_only
        return ids, [not only or index >= learnt_from for index in range(len(ids))]

    def _apart(self, before: list[int], completion: str, whole: list[int]) -> tuple[list[int], int]:
        """Join the tokens of prompt and completion, if that is the same text; else mask the seam.

        Some tokenizers put a blank before a text, but not after a special token.
        """
        text, end = self._tokenizer.decode(whole), [self._tokenizer.eos_token_id]
        plain = self._tokenizer(completion, add_special_tokens=False)["input_ids"]
        eos = self._tokenizer.eos_token
        after = self._tokenizer(f"{eos}{completion}", add_special_tokens=False)["input_ids"]
        candidates = [plain, *([after[1:]] if after[:1] == end else [])]
        for rest in candidates:
            if self._tokenizer.decode(before + rest) == text:
                return before + rest, len(before)
        length = len(self._tokenizer.decode(before))
        start = _common(before, whole)
        while start < len(whole) and len(self._tokenizer.decode(whole[:start])) < length:
            start += 1
        return whole, start

    def _ended(self, text: str) -> str:
        eos = str(self._tokenizer.eos_token)
        return text if text.endswith(eos) else text + eos

    def _text_ids(self, text: str) -> list[int]:
        """A text's tokens, without the eos token that some tokenizers add of themselves."""
        ids = list(self._tokenizer(text=text)["input_ids"])
        return ids[:-1] if self._appends_eos else ids

    def _chat(
        self, messages: Sequence[Mapping[str, Any]], tools: object, *, prompt: int | None
    ) -> tuple[list[int], list[bool]]:
        """Tokens of a conversation, the first `prompt` messages of which are not learnt."""
        turns = [_for_template(message) for message in messages]
        text, spoken = self._rendered(turns, tools)
        only_assistant = bool(self._arguments.assistant_only_loss)
        learnt = [not only_assistant] * len(text)  # by character
        if only_assistant:
            _refuse_no_assistant(turns, spoken)
        for start, end in spoken:
            learnt[start:end] = [True] * (end - start)
        unwanted = [i for i, message in enumerate(messages) if message.get("train") is False]
        for start, end in self._spans(turns, unwanted, text, spoken, tools):
            learnt[start:end] = [False] * (end - start)
        if prompt is not None and self._completion_only:
            given, _ = self._rendered(turns[:prompt], tools, add_generation_prompt=True)
            start = len(given) if text.startswith(given) else self._shared(given, text)
            learnt[:start] = [False] * start
        if unwanted and not any(learnt):
            raise SweepError("no turn of it is to be learnt (weight 0, train false)")
        ids, mask = self._parted(text, learnt)
        return ids, self._with_ends(ids, mask) if only_assistant else mask

    def _with_ends(self, ids: Sequence[int], mask: Sequence[bool]) -> list[bool]:
        """The mask with the token that ends a turn, which some templates do not mark as learnt."""
        end, before = self.stops[0], [False, *mask[:-1]]
        learnt = zip(ids, mask, before, strict=True)
        return [bit or (was and token == end) for token, bit, was in learnt]

    def _rendered(
        self, turns: Sequence[Mapping[str, Any]], tools: Any, *, add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text that the template makes of the turns, and where the assistant's words are.

        They are told only if trainer.assistant_only_loss asks for them.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        (text,), spoken = render_jinja_template(
            [copy.deepcopy(list(turns))],
            tools=tools,
            chat_template=self._tokenizer.get_chat_template(self._preparer.chat_template, tools),
            return_assistant_tokens_mask=bool(self._arguments.assistant_only_loss),
            add_generation_prompt=add_generation_prompt,
            **self._tokenizer.special_tokens_map,
        )
        return text, [(start, end) for start, end in spoken[0]] if spoken else []

    def _parted(self, text: str, learnt: Sequence[bool]) -> tuple[list[int], list[bool]]:
        """Tokens of a text, of which some characters are learnt; no token holds others too.

        If one would, the two sides are tokenized apart, as in generation.
        """
        ids, spans = self._spanned(text)
        held = [set(learnt[start:end]) for start, end in spans]
        if all(len(each) < 2 for each in held):
            return ids, [each == {True} for each in held]
        self._turn_seams += 1
        cuts = [
            next(at for at in range(start + 1, end) if learnt[at] != learnt[at - 1])
            for (start, end), each in zip(spans, held, strict=True)
            if len(each) == 2
        ]
        edges = list(itertools.pairwise([0, *dict.fromkeys(cuts), len(text)]))
        parts = [self._spanned(text[start:end]) for start, end in edges]
        joined = [token for part, _ in parts for token in part]
        if self._tokenizer.decode(joined) != self._tokenizer.decode(ids):
            return ids, [each == {True} for each in held]  # a blank is put before each text
        mask = [
            set(learnt[begin + start : begin + end]) == {True}
            for (begin, _), (_, within) in zip(edges, parts, strict=True)
            for start, end in within
        ]
        return joined, mask

    def _spanned(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a text without any that are added to it, and which characters each holds."""
        is_fast = self._tokenizer.is_fast
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=is_fast)
        ids = list(encoded["input_ids"])
        if is_fast:
            return ids, list(encoded["offset_mapping"])
        ends = [len(self._tokenizer.decode(ids[: index + 1])) for index in range(len(ids))]
        return ids, list(itertools.pairwise([0, *ends]))

    def _shared(self, given: str, text: str) -> int:
        """Characters of the tokens that both texts begin with."""
        ids, spans = self._spanned(text)
        count = _common(self._spanned(given)[0], ids)
        return spans[count - 1][1] if count else 0

    def _spans(
        self,
        turns: Sequence[Mapping[str, Any]],
        unwanted: Sequence[int],
        text: str,
        spoken: Sequence[tuple[int, int]],
        tools: Any,
    ) -> list[tuple[int, int]]:
        """Where the characters of the turns `unwanted` are: from one to before the other."""
        speakers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        if len(spoken) == len(speakers) > 0:
            return [run for i, run in zip(speakers, spoken, strict=True) if i in unwanted]
        return [
            (self._turn_start(turns, i, text, tools), self._turn_start(turns, i + 1, text, tools))
            for i in unwanted
        ]

    def _turn_start(
        self, turns: Sequence[Mapping[str, Any]], index: int, text: str, tools: Any
    ) -> int:
        if index in (0, len(turns)):
            return 0 if index == 0 else len(text)
        given, _ = self._rendered(turns[:index], tools)
        if not text.startswith(given):
            raise SweepError(
                f"messages[{index - 1}] is written otherwise by the chat template if more turns "
                "follow, so the turns that are not to be learnt (weight 0, train false) cannot be "
                "told from the others; set trainer.assistant_only_loss=true or split the row"
            )
        return len(given)

    def cut(self, whole: Dataset, max_length: int, name: str) -> Dataset:
        """Cut rows at `max_length` tokens, and drop those without any label left."""
        arguments = SimpleNamespace(**{**vars(self._arguments), "max_length": max_length})
        with silence():
            prepared = self._preparer._prepare_dataset(
                whole, self._tokenizer, arguments, False, None, name
            )
        kept = [*COLUMNS, PROMPT] if PROMPT in whole.column_names else COLUMNS
        return prepared.select_columns(kept)

    def _new_preparer(self) -> Any:
        from trl.trainer.sft_trainer import SFTTrainer

        preparer = SFTTrainer.__new__(SFTTrainer)
        preparer._tokenizer = self._tokenizer
        preparer._is_vlm = False
        preparer.chat_template = self._training_template()
        preparer.completion_only_loss = self._completion_only
        return preparer

    def _training_template(self) -> str | None:
        """The template that marks assistant turns, if the tokenizer's own does not."""
        if not self._arguments.assistant_only_loss:
            return None
        from trl.chat_template_utils import (
            get_training_chat_template,
            has_generation_markers,
        )

        template = None
        if not has_generation_markers(self._tokenizer.chat_template):
            try:
                template = get_training_chat_template(self._tokenizer)
            except ValueError:
                raise SweepError(
                    "trainer.assistant_only_loss = True: the model's chat template does not mark "
                    "the assistant's words. Put {% generation %} ... {% endgeneration %} around "
                    "them in a copy of it and set model.chat_template=FILE.jinja, or leave "
                    "assistant_only_loss out"
                ) from None
        return template


def _arguments(trainer: Mapping[str, Any]) -> SimpleNamespace:
    """SFTConfig's fields with their defaults, without building one.

    Building an SFTConfig resets accelerate's state, and with it any trainer of this process.
    """
    from trl.trainer.sft_config import SFTConfig

    values = {
        field.name: field.default
        for field in dataclasses.fields(SFTConfig)
        if field.default is not dataclasses.MISSING
    }
    asked = {name: trainer[name] for name in DATA_FIELDS if name in trainer}
    # Rows are always renamed to `text`; the order of training is drawn later.
    fixed = {"dataset_text_field": "text", "shuffle_dataset": False, "packing": False}
    return SimpleNamespace(**{**values, **asked, **fixed})


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return list(tokenizer(text="a")["input_ids"])[-1:] == [tokenizer.eos_token_id]


def _common(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids), len(others)))


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as templates expect it: content is there, our own mark is not."""
    return {"content": None} | {key: value for key, value in message.items() if key != "train"}


def roles(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Count the turns of chats by role, the most frequent first; empty for text."""
    chats = (row for row in rows if not isinstance(row.get("prompt", row.get("text")), str))
    counts = Counter(turn["role"] for row in chats for turn in _conversation(row))
    return dict(counts.most_common())


def _conversation(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*row.get("messages", ()), *row.get("prompt", ()), *row.get("completion", ())]


def _tools(row: Mapping[str, Any]) -> Any:
    """A row's tools, which are held as JSON text."""
    return None if row.get("tools") is None else json.loads(row["tools"])


def _refuse_no_assistant(
    turns: Sequence[Mapping[str, Any]], spoken: Sequence[tuple[int, int]]
) -> None:
    if any(start < end for start, end in spoken):
        return
    if any(turn["role"] == "assistant" for turn in turns):
        raise SweepError("the chat template marks none of its words as the assistant's")
    raise SweepError("no assistant turn, of which trainer.assistant_only_loss=true learns")


def _about_calls(row: Mapping[str, Any]) -> str:
    """What may be wrong with a row that the chat template does not write."""
    if "text" in row or isinstance(row.get("prompt"), str):
        return ""
    if all(turn.get("content") is not None for turn in _conversation(row)):
        return ""
    return (
        ". The chat template may know no tool calls, whose turns have no content: set "
        "model.chat_template=FILE.jinja to one that does"
    )


def _refusal(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide datasets' progress bars within: a report says what was prepared."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
