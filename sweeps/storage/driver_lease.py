"""Locks a sweep by an object in its store, for drivers that share no folder."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from sweeps.core.errors import FolderHeldError
from sweeps.storage.object_store import Store

_NAME = "driver.json"
BEAT_S = 10.0
_DEAD_S = 3 * BEAT_S  # a holder that has not written for so long is dead


class Lease:
    """Holds a sweep: `take` it before anything is read, `beat` often, `release` it in the end.

    No clocks are compared: a holder lives if its object changes while it is watched.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._word = uuid.uuid4().hex
        self._beats = 0
        self._last = 0.0

    def take(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Take the lease, after up to half a minute of watching an earlier holder.

        Raises:
            FolderHeldError: another driver lives.
        """
        holder = self._read()
        if holder and not _is_dead_here(holder):
            who = f"{holder.get('host')}, pid {holder.get('pid')}"
            say(f"{self._store} was driven by {who}: waiting {_DEAD_S:g} s to see if it lives")
            deadline = time.monotonic() + _DEAD_S
            while time.monotonic() < deadline:
                time.sleep(1.0)
                now = self._read()
                if now is None:
                    break
                if now != holder:
                    raise FolderHeldError(
                        f"{self._store} is in use by {who}. Wait for it, or choose another "
                        "run_dir=... or storage=..."
                    )
        self._write()

    def beat(self) -> None:
        """Write the lease again if `BEAT_S` have passed since the last time.

        Raises:
            FolderHeldError: another driver has taken over, since this one was silent for too long.
        """
        if time.monotonic() - self._last < BEAT_S:
            return
        holder = self._read()
        if holder is not None and holder.get("word") != self._word:
            who = f"{holder.get('host')}, pid {holder.get('pid')}"
            raise FolderHeldError(f"{who} has taken over the sweep in {self._store}")
        self._write()

    def release(self) -> None:
        holder = self._read()
        if holder is not None and holder.get("word") == self._word:
            self._store.write(_NAME, b"{}")

    def _read(self) -> dict[str, Any] | None:
        data = self._store.read(_NAME)
        try:
            return dict(json.loads(data)) or None if data else None
        except (ValueError, TypeError):
            return None

    def _write(self) -> None:
        self._beats += 1
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        line = {**me, "word": self._word, "beat": self._beats}
        self._store.write(_NAME, json.dumps(line).encode())
        self._last = time.monotonic()


def holder_of(store: Store) -> str | None:
    """`host, pid` of the driver that holds a sweep in its store, alive or not; None if none does.

    Raises:
        OSError: the store does not answer.
    """
    holder = Lease(store)._read()
    return f"{holder.get('host')}, pid {holder.get('pid')}" if holder else None


def _is_dead_here(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return True
    except PermissionError:
        return False
    return int(holder["pid"]) == os.getpid()
