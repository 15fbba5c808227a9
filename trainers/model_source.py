"""Where a base model lies: embedded, in a folder, in the Hub's cache or on the Hub; its config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.errors import SweepError
from sweeps.spec import ModelSpec
from trainers import hub

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDED = "tiny"  # model.path of the model that ships with this package; ./tiny is a folder


def resolve_path(path: str) -> str:
    """What the libraries are given for `model.path`: a folder of this disk, or a Hub id.

    Raises:
        SweepError: a folder without a config.json, such as an adapter's.
    """
    if path == EMBEDDED:
        return str(Path(__file__).parent / "tiny_llama")
    if not hub.is_local(path):
        return path
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "adapter_config.json").is_file():
        raise SweepError(
            f"model.path = {path}: holds an adapter, not a base model. Name the base model, or "
            "merge the adapter into it first (`merge_and_unload`) and name the result"
        )
    raise SweepError(f"model.path = {path}: this folder has no config.json, so it is no model")


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """The model's config.

    Raises:
        SweepError: where the model is neither on disk nor reachable, or of an unknown kind.
    """
    from transformers import AutoConfig

    with reading(spec) as path:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, **source(spec))
    return config


def context_tokens(config: PretrainedConfig) -> int | None:
    """The longest sequence that the model was made for; None where its config does not say."""
    tokens = getattr(config.get_text_config(), "max_position_embeddings", None)
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def source(spec: ModelSpec) -> dict[str, Any]:
    """What every `from_pretrained` is given besides the path."""
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


@contextlib.contextmanager
def reading(spec: ModelSpec) -> Iterator[str]:
    """Within, the model is read from the path given; failures become one SweepError."""
    path = resolve_path(spec.path)
    with hub.reading("model", path, local=hub.is_local(path)):
        yield path
