"""A token file in the run folder, by which a node shows that it sees the same folder."""

from __future__ import annotations

import uuid
from pathlib import Path

from sweeps.storage.durable_writes import write_text
from sweeps.storage.run_folder import RunFolder


def write_token(root: Path) -> str:
    """Write a random token into the run folder, and return it."""
    token = uuid.uuid4().hex
    write_text(RunFolder(root).token, token)
    return token


def sees_run_folder(root: Path, token: str) -> bool:
    """Whether `root` on this machine is the folder with that token, and not another one."""
    try:
        return RunFolder(root).token.read_text(encoding="utf-8") == token
    except OSError:
        return False
