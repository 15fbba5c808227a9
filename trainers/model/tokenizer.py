"""Loads the base model's tokenizer, with a pad token and with a chat template if one is given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.spec import ModelSpec
from sweeps.core.commands import typed
from sweeps.core.errors import ConfigError, Problem, SweepError, nearest
from trainers.model.source import embedded_tokens, load_config, reading, source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that no loss is taken over: of a prompt, of padding


def load_tokenizer(spec: ModelSpec, notes: list[str] | None = None) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, with a pad token and with `spec.chat_template` if given.

    Args:
        notes: a sentence is added for each thing that had to be decided.

    Raises:
        SweepError: no such model or template file.
    """
    from transformers import AutoTokenizer

    template = _chat_template(spec.chat_template)
    with reading(spec) as path:
        tokenizer = AutoTokenizer.from_pretrained(path, **source(spec))
    if template is not None:
        tokenizer.chat_template = template
    most = embedded_tokens(load_config(spec))
    before = tokenizer.pad_token
    is_beyond = before is not None and most is not None and tokenizer.pad_token_id >= most
    if (before is None or is_beyond) and (pad := _substitute_pad(tokenizer, most)) is not None:
        tokenizer.pad_token = pad
        why = "the tokenizer has no pad token"
        if is_beyond:
            why = f"the model has no embedding for the tokenizer's pad token {before}"
        if notes is not None:
            notes.append(f"{why}; {pad} pads instead")
    return tokenizer


def pad_id(spec: ModelSpec) -> int:
    """The token id that pads rows; 0 if the tokenizer has neither a pad nor an eos token."""
    return int(load_tokenizer(spec).pad_token_id or 0)


def set_eos(tokenizer: PreTrainedTokenizerBase, token: str | None) -> None:
    """Give the tokenizer the eos token that trainer.eos_token names.

    Raises:
        ConfigError, SweepError: the vocabulary lacks it, or there is no eos token at all.
    """
    if token is not None:
        if token not in tokenizer.get_vocab():
            message = "is not in the tokenizer's vocabulary."
            hint = nearest(token, tokenizer.all_special_tokens)
            raise ConfigError(
                [Problem(key="trainer.eos_token", value=token, message=message, nearest=hint)]
            )
        tokenizer.eos_token = token
    if tokenizer.eos_token is None:
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        ends = [each for each in special if "end" in each or "eos" in each or each == "</s>"]
        example = typed("trainer.eos_token", (ends or special or ["</s>"])[0])
        raise SweepError(
            "the model's tokenizer has no eos token, so a text could not be ended and the model "
            "would not learn to stop. Set trainer.eos_token to a token of its vocabulary (special "
            f"ones: {', '.join(special) or 'none'}): {example}"
        )


def _chat_template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(
            f"model.chat_template = {path}: cannot be read ({error}). It is a file with a Jinja "
            f"template; relative paths start at {Path.cwd()}"
        ) from None


def _substitute_pad(tokenizer: PreTrainedTokenizerBase, most: int | None) -> str | None:
    """Choose a token below `most` to pad with; eos only if there is no other.

    Code that masks padding by its token id would mask the end of each answer with it, and the
    model would not learn to stop.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    meant = [token for token in special if "pad" in token.lower()]
    reserved = [token for token in special if "reserved" in token.lower()]
    candidates = [*meant, tokenizer.unk_token, *reserved, tokenizer.eos_token]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in candidates if token}
    return next((token for token, at in ids.items() if most is None or at < most), None)
