"""The append-only file that is the only durable truth of a sweep: one JSON object a line."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.errors import LedgerDamagedError
from sweeps.files import sync_folder

log = logging.getLogger(__name__)

Event = dict[str, Any]

EVENTS = frozenset(
    ("sweep", "attempt", "ask", "start", "report", "checkpoint", "retry", "end", "interrupt")
)


class Ledger:
    """Appends events to `path`, each on disk before `append` returns.

    Opening it mends a torn last line, the trace of a kill in the middle of a write: the line is
    cut off with a warning, since nothing was promised for it yet.

    Raises:
        LedgerDamagedError: on opening, where any other line cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = _mend(path) if path.exists() else []
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (held for the sweep's life)
        sync_folder(path.parent)  # the file's name, too, must outlive a crash

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and return it, with its time in seconds since the epoch.

        Raises:
            OSError: it could not be written, and the file is as it was before.
        """
        assert event in EVENTS, event
        line: Event = {"event": event, "time": round(time.time(), 3), **fields}
        self._write(json.dumps(line, allow_nan=False).encode() + b"\n")
        return line

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(data)
            if written != len(data):  # a full disk takes a part, and says nothing
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), size)  # half a line would damage the next one
            raise

    def close(self) -> None:
        self._file.close()


def _mend(path: Path) -> list[Event]:
    events: list[Event] = []
    good_bytes = 0
    with open(path, "rb") as file:
        lines = file.readlines()
    for number, line in enumerate(lines, start=1):
        event = parse(line)
        if event is None:
            if number < len(lines):
                raise LedgerDamagedError(
                    f"{path}, line {number} is damaged: {line[:60]!r}. Only a torn last line can "
                    "be mended. Restore the file from a copy, or choose another run_dir=..."
                )
            log.warning("%s: the last line (%d) is torn and was dropped", path, number)
            with open(path, "r+b") as file:
                file.truncate(good_bytes)
                os.fsync(file.fileno())
            break
        events.append(event)
        good_bytes += len(line)
    return events


def parse(line: bytes) -> Event | None:
    """The event in a complete line, or None where it is torn or not an event of ours."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    known = isinstance(event, Mapping) and event.get("event") in EVENTS
    return dict(event) if known else None


class Tail:
    """Reads what another process appends to a JSON-lines file; complete lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """The lines that were completed since the last call; unreadable ones are passed over."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return
        end = chunk.rfind(b"\n") + 1
        self._offset += end
        for line in chunk[:end].splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value
