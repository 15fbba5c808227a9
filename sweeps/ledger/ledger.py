"""The append-only file that is the only durable truth of a sweep: one JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.core.errors import LedgerDamagedError
from sweeps.ledger.events import KINDS, Event, read_event
from sweeps.storage.durable_writes import append_synced, sync

log = logging.getLogger(__name__)

# What a line of the ledger that was not written by us can raise.
# ArithmeticError: an integer that no float holds.
UNLIKELY = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError)
_DECODER = json.JSONDecoder()


class Ledger:
    """Appends events to `path`, each on disk before `append` returns.

    Opening it mends a torn last line, the trace of a kill in the middle of a write: the line is
    cut off with a warning, since nothing was promised for it yet.

    Args:
        each: is given every event there is, one at a time: a long sweep's events all together
            would take a gigabyte.

    Raises:
        LedgerDamagedError: on opening, see `read_ledger`.
    """

    def __init__(self, path: Path, each: Callable[[Event], object]) -> None:
        self.path = path
        if path.exists():
            count, size = read_ledger(path, each, ", or choose another run_dir=...")
            if size < path.stat().st_size:
                log.warning("%s: the last line (%d) is torn and was dropped", path, count + 1)
                _cut(path, size)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (held for the sweep's life)
        sync(path.parent)  # the file's name, too, must outlive a crash

    def append(self, event: Event) -> Event:
        """Write an event and return it, with its time.

        Raises:
            OSError: it could not be written, and the file is as it was before.
        """
        event = replace(event, time=round(time.time(), 3))
        line = json.dumps(event.to_json(), allow_nan=False, default=dict)
        append_synced(self._file, line.encode() + b"\n", self.path)
        return event

    def close(self) -> None:
        self._file.close()


def read_ledger(path: Path, each: Callable[[Event], object], or_else: str = ".") -> tuple[int, int]:
    """Give `each` the events of a ledger; a torn last line, maybe in the making, is left out.

    Args:
        or_else: the way out of a damaged ledger, after "a copy".

    Returns:
        The lines that were read, and their bytes.

    Raises:
        LedgerDamagedError: any other line cannot be read, or `each` cannot follow it.
    """
    count = size = 0
    with open(path, "rb") as file:
        for line in file:
            read = parse(line)
            if read is None:
                if file.read(1):
                    raise LedgerDamagedError(
                        f"{path}, line {count + 1} is damaged: {line[:60]!r}. Only a torn last "
                        f"line can be mended. Restore the file from a copy{or_else}"
                    )
                break
            try:
                each(read_event(read))
            except UNLIKELY as error:
                raise LedgerDamagedError(
                    f"{path}, line {count + 1} does not follow from the lines before it "
                    f"({error!r}). Restore the file from a copy{or_else}"
                ) from error
            count, size = count + 1, size + len(line)
    return count, size


def parse(line: bytes) -> dict[str, Any] | None:
    """The keys of a complete line, or None if it is torn or not an event of ours."""
    try:
        text = line.decode()
        event, end = _DECODER.raw_decode(text)  # json.loads does more for each, and takes longer
    except ValueError:
        return None
    if text[end:] != "\n":
        return None
    name = event.get("event") if isinstance(event, dict) else None
    return event if isinstance(name, str) and name in KINDS else None


def _cut(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


class Tail:
    """Reads what another process appends to a JSON-lines file; complete lines only."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset  # bytes read so far

    def events(self) -> Iterator[Event]:
        """The events that were completed since the last call, of a ledger."""
        return map(read_event, self.read())

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines that were completed since the last call; unreadable ones are passed over."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self.offset += len(line)
                    try:
                        value = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(value, dict):
                        yield value
        except FileNotFoundError:
            return
