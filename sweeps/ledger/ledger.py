"""The append-only file that is the only durable truth of a sweep: one JSON object a line."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from sweeps.core.errors import LedgerDamagedError
from sweeps.storage.durable_writes import append_synced, sync

log = logging.getLogger(__name__)

Event = dict[str, Any]
_DECODER = json.JSONDecoder()

EVENTS = frozenset(
    ("sweep", "attempt", "ask", "start", "report", "checkpoint", "retry", "end", "interrupt")
)


_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a trial's key is a folder's name, so no more than that
_MOST = 2**63
_COUNTS = ("step", "examples", "tokens")
_NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "sweep": {"name": str, "spec": dict},
    "attempt": {},
    "ask": {"config": int},
    "start": {"trial": str, "attempt": int},
    "report": {"index": int, **dict.fromkeys(_COUNTS, int), "metrics": dict, "decision": str},
    "checkpoint": {"trial": str, "step": int},
    "retry": {"trial": str, "reason": str},
    "end": {"trial": str, "state": str},
    "interrupt": {},
}
_NEW_TRIAL = {"number": int, "repeat": int, "seed": int, "params": dict}
_OPTIONAL: Mapping[str, type | tuple[type, ...]] = {
    **{
        "attempt": int,
        "kind": str,
        "reason": str,
        "worker": str,
        "device": str,
        "time": (int, float),
    },
    **{"choices": dict, "by_hand": bool, "totals": dict, "metrics": dict, "spec": dict},
    **{"duplicate": str, "trial": (str, NoneType), "versions": dict, "rehearsal": dict},
    "first": dict,  # the part of a suggestion that sweep.first gave
    "noted": dict,  # what the pruner noted in the Optuna trial
}


# What is looked up for each field of each line, of which a long sweep has hundreds of thousands.
_KINDS = {event: {**_OPTIONAL, **needed} for event, needed in _NEEDED.items()}


def check(event: Event) -> None:
    """Raise ValueError where a field is missing, or is not what we write there.

    What a line says of the lines before it is for the reader of them all.
    """
    name = event["event"]
    needed, kinds = _NEEDED[name], _KINDS[name]
    if name == "ask" and event.get("trial") is not None:
        needed = {**needed, **_NEW_TRIAL}
        kinds = {**kinds, **_NEW_TRIAL}
    for field in needed:
        if field not in event:
            raise ValueError(f"{field} is missing")
    for field, value in event.items():
        kind = kinds.get(field)
        if kind is int:
            fits = type(value) is int and 0 <= value < _MOST
        else:
            fits = kind is None or isinstance(value, kind)
        if not fits:
            raise ValueError(f"{field} = {value!r:.40}")
    for field in ("trial", "duplicate"):
        key = event.get(field)
        if key is not None and not _KEY.fullmatch(key):
            raise ValueError(f"{field} is no key: {key!r:.40}")
    for field in ("metrics", "totals", "noted"):
        if field in event and not _are_numbers(event[field].values()):
            raise ValueError(f"{field} holds what is no number: {event[field]!r:.80}")


def _are_numbers(values: Iterable[Any]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # text and its like; an integer beyond all floats
        return False


class Ledger:
    """Appends events to `path`, each on disk before `append` returns.

    Opening it mends a torn last line, the trace of a kill in the middle of a write: the line is
    cut off with a warning, since nothing was promised for it yet.

    Args:
        each: is given the number and the event of every line there is, one at a time: a long
            sweep's events all together would take a gigabyte. Without it they go to `events`.

    Raises:
        LedgerDamagedError: on opening, where any other line cannot be read.
    """

    def __init__(self, path: Path, each: Callable[[int, Event], None] | None = None) -> None:
        self.path = path
        self.events: list[Event] = []
        if path.exists():
            _mend(path, each or (lambda _, event: self.events.append(event)))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (held for the sweep's life)
        sync(path.parent)  # the file's name, too, must outlive a crash

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and return it, with its time in seconds since the epoch.

        Raises:
            OSError: it could not be written, and the file is as it was before.
        """
        assert event in EVENTS, event
        line: Event = {"event": event, "time": round(time.time(), 3), **fields}
        append_synced(self._file, json.dumps(line, allow_nan=False).encode() + b"\n", self.path)
        return line

    def close(self) -> None:
        self._file.close()


def _mend(path: Path, each: Callable[[int, Event], None]) -> None:
    good_bytes = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            event = parse(line)
            if event is None:
                if file.read(1):
                    raise LedgerDamagedError(
                        f"{path}, line {number} is damaged: {line[:60]!r}. Only a torn last line "
                        "can be mended. Restore the file from a copy, or choose another run_dir=..."
                    )
                log.warning("%s: the last line (%d) is torn and was dropped", path, number)
                break
            each(number, event)
            good_bytes += len(line)
        else:
            return
    with open(path, "r+b") as file:
        file.truncate(good_bytes)
        os.fsync(file.fileno())


def parse(line: bytes) -> Event | None:
    """The event in a complete line, or None where it is torn or not an event of ours."""
    try:
        text = line.decode()
        event, end = _DECODER.raw_decode(text)  # json.loads does more for each, and takes longer
    except ValueError:
        return None
    if text[end:] != "\n":
        return None
    name = event.get("event") if isinstance(event, dict) else None
    return event if isinstance(name, str) and name in EVENTS else None


class Tail:
    """Reads what another process appends to a JSON-lines file; complete lines only."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset  # bytes read so far

    def read(self) -> Iterator[Event]:
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
