"""Fingerprints of prepared data: tells whether two preparations would be equal, without either."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.config.spec import DataSpec, TrainSpec
from sweeps.core.trial import fingerprint as hashed
from trainers.data.files import matching
from trainers.data.tokenization import DATA_FIELDS
from trainers.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FINGERPRINT_LENGTH = 16  # hex digits
# Stands for the rows of data=docstrings: the source that made them first, so that run folders begun
# with it go on. Put another text here if `docstrings.rows` ever gives other rows.
_DOCSTRINGS = Path(__file__).with_name("docstrings_1.txt")
_PLACES = {"path": None, "eval_path": None}  # fields that only name a place


def fingerprint(train: TrainSpec) -> str:
    """Hash of what decides the prepared rows: the source's content, the spec, the tokenizer.

    Files count by their bytes and not by their place. A data set of the Hub counts by id and
    revision: pin data.revision if it may change.
    """
    spec = dataclasses.asdict(train.data)
    for key in ("encoding", "shared_prompts"):
        if spec[key] is None:  # folders begun before there was this key go on
            del spec[key]
    placeless = {"eval_path": None} if train.data.source == "hub" else _PLACES
    decided = {
        "data": {**spec, **placeless},
        "content": _content(train.data),
        "trainer": {key: train.trainer[key] for key in DATA_FIELDS if key in train.trainer},
        "tokenizer": _tokenizer_identity(load_tokenizer(train.model)),
    }
    return hashed(decided, length=_FINGERPRINT_LENGTH)


def _content(spec: DataSpec) -> list[str]:
    """Hashes of the source's bytes, as far as they are on this disk."""
    found: list[str] = []
    if spec.source == "docstrings":
        found += [sys.version, _DOCSTRINGS.read_text(encoding="utf-8")]
    if spec.source == "file" and spec.path:
        found += [_file_hash(path) for path in matching("data.path", spec.path)]
    if spec.eval_path:
        paths = matching("data.eval_path", spec.eval_path)
        found += ["evaluation", *(_file_hash(path) for path in paths)]
    return found


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "vocabulary": backend.to_str() if backend is not None else tokenizer.get_vocab(),
        "special": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template,
        "class": type(tokenizer).__name__,
    }
