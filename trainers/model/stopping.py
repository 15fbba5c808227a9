"""Finds the tokens at which generation stops, and writes them as a generation config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.config.spec import ModelSpec
from trainers.model.source import load_config, reading, source

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

GENERATION = "generation_config.json"
_ANSWER = "answer"


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that the chat template writes after an assistant's words; None if there is none."""
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # Jinja has exceptions of its own, and so have templates
        return None
    _, found, rest = text.rpartition(_ANSWER)
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [index for index in ids if index in special | {tokenizer.eos_token_id}]
    return str(tokenizer.convert_ids_to_tokens(ends[0])) if ends else None


def write_generation_config(folder: Path, spec: ModelSpec, stops: Sequence[int]) -> None:
    """Write the base model's generation config, with `stops` before its own ends, into `folder`."""
    config = _base_config(spec)
    own = config.eos_token_id
    ends = [*stops, *(own if isinstance(own, list) else [] if own is None else [own])]
    config.eos_token_id = list(dict.fromkeys(ends)) or None
    # Not by save_pretrained, which refuses some models' own settings, such as an unused top_k.
    config.to_json_file(str(folder / GENERATION))


def _base_config(spec: ModelSpec) -> GenerationConfig:
    from transformers import GenerationConfig

    try:
        with reading(spec) as path:
            found: GenerationConfig = GenerationConfig.from_pretrained(path, **source(spec))
            return found
    except Exception:  # many models have none
        return GenerationConfig.from_model_config(load_config(spec))
