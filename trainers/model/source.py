"""Finds a base model and its config: embedded, in a folder, in the Hub's cache or on the Hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.config.spec import ModelSpec
from sweeps.core.errors import SweepError
from trainers.model import hub

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# How configs name the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Caps and scales of logits under names that SFTTrainer's fused loss does not look for.
_OTHER_LOGITS = ("logits_soft_cap", "output_logit_soft_cap", "logits_mup_width_multiplier")
# Of the weights that identify a folder: pieces of each file, and hex digits.
_SAMPLES = 16
_SAMPLE_BYTES = 64 * 1024
_LENGTH = 16
EMBEDDED = "tiny"  # model.path of the model that ships with this package; ./tiny is a folder


def resolve_path(path: str) -> str:
    """The path that libraries load `model.path` from: a folder on this disk, or a Hub id.

    Raises:
        SweepError: a folder without a config.json, such as an adapter's.
    """
    if path == EMBEDDED:
        return str(Path(__file__).parents[1] / "tiny_llama")
    if not hub.is_local(path):
        return path
    folder = Path(os.path.expanduser(path))
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "adapter_config.json").is_file():
        raise SweepError(
            f"model.path = {path}: holds an adapter, not a base model. Name the base model, or "
            "merge the adapter into it first (`merge_and_unload`) and name the result"
        )
    raise SweepError(f"model.path = {path}: this folder has no config.json, so it is no model")


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """Load the model's config.

    Raises:
        SweepError: the model is neither on disk nor reachable, or of an unknown kind.
    """
    from transformers import AutoConfig

    _refuse_own_code(spec)
    with reading(spec) as path:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, **source(spec))
    return config


def _refuse_own_code(spec: ModelSpec) -> None:
    """Raise SweepError, before the library does, if the model has code that may not run."""
    path = Path(resolve_path(spec.path)) / "config.json"
    if spec.trust_remote_code or not path.is_file():
        return
    from transformers import CONFIG_MAPPING

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        own = "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING
    except (OSError, ValueError, TypeError, AttributeError):
        return  # reported by the library that reads all of it
    if own:
        raise SweepError(
            f"model.path = {spec.path}: this model runs code of its own (auto_map in config.json). "
            "Read it first; then model.trust_remote_code=true lets it run"
        )


def require_weights(spec: ModelSpec) -> None:
    """Raise SweepError if a folder holds no safetensors, the only weights that are read."""
    path = resolve_path(spec.path)
    if not hub.is_local(path) or any(Path(path).glob("*.safetensors")):
        return
    other = sorted(p.name for p in Path(path).iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    there = (
        f"; {', '.join(other[:3])} is a pickle, which can run code and is not opened"
        if other
        else ""
    )
    raise SweepError(
        f"model.path = {spec.path}: this folder holds no *.safetensors{there}. Save the model "
        "again with save_pretrained, which writes them"
    )


def context_tokens(config: PretrainedConfig) -> int | None:
    """The longest sequence that the model was made for; None if its config does not say."""
    tokens = getattr(config.get_text_config(), "max_position_embeddings", None)
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def embedded_tokens(config: PretrainedConfig) -> int | None:
    """How many tokens the model has an embedding for; None if its config does not say."""
    tokens = getattr(config.get_text_config(), "vocab_size", None)
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def beyond_the_loss(config: PretrainedConfig) -> str | None:
    """What a model does to its logits that SFTTrainer's loss leaves out, if it is known."""
    found = config.get_text_config()
    for name in _OTHER_LOGITS:
        if getattr(found, name, None) not in (None, 0, 1):
            return f"{name}={getattr(found, name)}"
    return "a layer before its head" if found.model_type == "modernbert-decoder" else None


def has_experts(config: PretrainedConfig) -> bool:
    """Whether a model routes each token to some of several experts."""
    found = config.get_text_config()
    return any((getattr(found, name, None) or 0) > 1 for name in _EXPERTS)


def source(spec: ModelSpec) -> dict[str, Any]:
    """The arguments of every `from_pretrained` besides the path."""
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


@contextlib.contextmanager
def reading(spec: ModelSpec) -> Iterator[str]:
    """Give the path to read the model from; errors within become one SweepError."""
    path = resolve_path(spec.path)
    with hub.reading("model", path, local=hub.is_local(path)):
        yield path


def folder_hash(folder: Path) -> str:
    """Hash the config and samples of each weight file of a folder.

    Samples, because two fine-tunes of one model have files of the very same names and sizes.
    """
    seen = hashlib.sha256((folder / "config.json").read_bytes())
    for weights in sorted(folder.glob("*.safetensors")):
        seen.update(f"{weights.name}:{weights.stat().st_size}".encode())
        seen.update(_samples(weights))
    return seen.hexdigest()[:_LENGTH]


def _samples(path: Path) -> bytes:
    """Read pieces from the whole length of a file, its first and last bytes included."""
    last = max(0, path.stat().st_size - _SAMPLE_BYTES)
    pieces = []
    with open(path, "rb") as file:
        for index in range(_SAMPLES):
            file.seek(last * index // (_SAMPLES - 1))
            pieces.append(file.read(_SAMPLE_BYTES))
    return b"".join(pieces)
