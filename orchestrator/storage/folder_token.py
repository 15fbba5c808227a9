"""A token file in the run folder, by which a node shows that it sees the same folder."""

from __future__ import annotations

import uuid
from pathlib import Path

from sweeps.storage.durable_writes import write_text
from sweeps.storage.run_folder import RunFolder

# ---------------------------------------------------------------------- who sees the run folder


def write_token(root: Path) -> str:
    """Write a token into the run folder that tells it from any other of the same name."""
    token = uuid.uuid4().hex
    write_text(RunFolder(root).token, token)
    return token


def sees_run_folder(root: Path, token: str) -> bool:
    """Whether this machine's `root` is the folder that was marked, not its own of that name."""
    try:
        return RunFolder(root).token.read_text(encoding="utf-8") == token
    except OSError:
        return False
