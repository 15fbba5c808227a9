"""Turns rows into token ids and labels, by TRL's own preparation.

Both engines train on these tokens, so they must be those that SFTTrainer makes of the same rows.
Its `_prepare_dataset` is called on a trainer that was never initialised, because a real one needs
the model, and the data is checked before any model is loaded. The attributes that its `__init__`
would have derived from the data and the template are derived here, in the same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import datasets
from datasets import Dataset

from sweeps.core.errors import ConfigError, Problem, SweepError, first_line, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# SFTConfig's fields that change what is trained on or measured; no sweep may search them.
DATA_FIELDS = ("assistant_only_loss", "completion_only_loss", "eos_token")
COLUMNS = ["input_ids", "labels"]

_WAYS_TO_TEMPLATE = (
    "Set model.chat_template=FILE.jinja, take the -Instruct variant of the model, or bring the "
    "rows into prompt and completion as text"
)


class Tokenizing:
    """TRL's preparation for one tokenizer and one layout of rows.

    Args:
        trainer: SFTConfig's fields as the user set them; only `DATA_FIELDS` matter.
        has_completions: rows hold `prompt` and `completion`; by default only the latter is learnt.

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
        _set_eos(tokenizer, self._arguments.eos_token)
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
        self._preparer = self._new_preparer(has_completions)

    def tokenized(self, rows: Sequence[Mapping[str, Any]], name: str) -> Dataset:
        """Tokenize whole rows: columns input_ids and labels; a masked label is -100."""
        try:
            return self._prepared(Dataset.from_list(list(rows)), None, name)
        except SweepError:
            raise
        except Exception as error:  # Arrow, Jinja, TRL: each has exceptions of its own
            raise SweepError(
                f"the {name} rows cannot be tokenized: {_refusal(error)}. A chat template may "
                "refuse some roles or orders of turns, and all rows need values of the same types"
            ) from error

    def cut(self, whole: Dataset, max_length: int, name: str) -> Dataset:
        """Cut rows at `max_length` tokens, and drop those without any label left."""
        return self._prepared(whole, max_length, name)

    def _prepared(self, dataset: Dataset, max_length: int | None, name: str) -> Dataset:
        arguments = SimpleNamespace(**{**vars(self._arguments), "max_length": max_length})
        with silence():
            prepared = self._preparer._prepare_dataset(
                dataset, self._tokenizer, arguments, False, None, name
            )
        return prepared.select_columns(COLUMNS)

    def _new_preparer(self, has_completions: bool) -> Any:
        from trl.trainer.sft_trainer import SFTTrainer

        preparer = SFTTrainer.__new__(SFTTrainer)
        preparer._tokenizer = self._tokenizer
        preparer._is_vlm = False
        preparer.chat_template = self._training_template()
        only = self._arguments.completion_only_loss
        preparer.completion_only_loss = has_completions if only is None else only
        return preparer

    def _training_template(self) -> str | None:
        """The template that marks assistant turns, if the tokenizer's own does not."""
        if not self._arguments.assistant_only_loss:
            return None
        from trl.chat_template_utils import (
            get_training_chat_template,
            has_generation_markers,
            is_chat_template_stop_token_trained,
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
        if not is_chat_template_stop_token_trained(self._tokenizer, chat_template=template):
            self.notes.append(
                "the chat template leaves the end of the assistant's turn out of the loss: the "
                "model may not learn to stop"
            )
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


def _set_eos(tokenizer: PreTrainedTokenizerBase, token: str | None) -> None:
    """Use `token`, if it is given, as the end of a text; raise SweepError if there is none."""
    if token is not None:
        if token not in tokenizer.get_vocab():
            message = "is not in the tokenizer's vocabulary."
            hint = nearest(token, tokenizer.all_special_tokens)
            raise ConfigError(
                [Problem(key="trainer.eos_token", value=token, message=message, nearest=hint)]
            )
        tokenizer.eos_token = token
    if tokenizer.eos_token is None:
        special = ", ".join(tokenizer.all_special_tokens) or "none"
        raise SweepError(
            "the model's tokenizer has no eos token, so a text could not be ended and the model "
            f"would not learn to stop. Set trainer.eos_token to a token of its vocabulary (special "
            f"ones: {special})"
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
