"""Identifies the base model in a folder, without reading all of its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLES = 16
_SAMPLE_BYTES = 64 * 1024
_LENGTH = 16  # hex digits


def folder_hash(folder: Path) -> str:
    """Hash the config and samples of each weight file.

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
