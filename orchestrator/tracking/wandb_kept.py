"""Keeps what a later start's tracking must know, in the run folder beside W&B's own files."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from sweeps.storage.durable_writes import write_text
from sweeps.storage.run_folder import RunFolder

_FILE = "kept.json"


class Kept:
    """What earlier starts left; written after each change.

    Without it nothing is lost: runs are opened once more that need not be.

    Attributes:
        closed: trial -> how its run was closed.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.tracking / _FILE
        found: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
        self.closed: dict[str, str] = found.get("closed") or {}

    def save(self) -> None:
        """Write it down; a full disk is told by others."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({"closed": self.closed}))
