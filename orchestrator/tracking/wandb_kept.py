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
        sweeps: entity/project on a server -> id of W&B's sweep object there.
        views: entity/project on a server -> address of the sweep's saved view there.
        stopped: the runs whose stop button was obeyed; the server may show it pressed for ever.
        alerted: entity/project on a server -> trials that had ended when it was sent an alert.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.tracking / _FILE
        found: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_text(encoding="utf-8"))
        self.closed: dict[str, str] = found.get("closed") or {}
        self.sweeps: dict[str, str] = found.get("sweeps") or {}
        self.views: dict[str, str] = found.get("views") or {}
        self.stopped: list[str] = found.get("stopped") or []
        self.alerted: dict[str, int] = found.get("alerted") or {}

    def save(self) -> None:
        """Write it down; a full disk is told by others."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = {name: value for name, value in vars(self).items() if name != "_path"}
            write_text(self._path, json.dumps(content))
