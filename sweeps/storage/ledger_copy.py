"""Copies the ledger to a store, in parts, since an object cannot be appended to."""

from __future__ import annotations

from pathlib import Path

from sweeps.core.errors import SweepError
from sweeps.storage.durable_writes import write_synced
from sweeps.storage.object_store import Store

_FOLDER = "ledger"
PART_BYTES = 2**20  # only the last part is written again, so that a long sweep's lines cost as much


class LedgerCopy:
    """Call `settle` once, then `push` after each batch of events."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store = store
        self._path = path
        self._sent = 0  # bytes that the store is known to have

    def settle(self) -> None:
        """Take the longer of ledger and copy as the ledger, if one continues the other.

        Raises:
            SweepError: their events differ: two drivers have written one sweep.
        """
        there = self._read()
        here = self._path.read_bytes() if self._path.exists() else b""
        whole_here = here[: here.rfind(b"\n") + 1]  # a torn last line was never promised
        if there.startswith(whole_here):
            if len(there) > len(whole_here):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_synced(self._path, there, "ledger")
        elif not here.startswith(there):
            raise SweepError(
                f"{self._path} and its copy in {self._store} tell of different events: two drivers "
                "have written this sweep. Move the one that is not to be gone on with away, or "
                "choose another run_dir=..."
            )
        self._sent = len(there)

    def push(self) -> None:
        """Copy what was appended since, whole lines only.

        Raises:
            OSError: the store does not take it; call again later.
        """
        with open(self._path, "rb") as file:
            number = self._sent // PART_BYTES
            file.seek(number * PART_BYTES)
            rest = file.read()
        rest = rest[: rest.rfind(b"\n") + 1]
        end = number * PART_BYTES + len(rest)
        while self._sent < end:
            part = rest[:PART_BYTES]
            rest = rest[PART_BYTES:]
            self._store.write(f"{_FOLDER}/{number:06d}.jsonl", part)
            self._sent = number * PART_BYTES + len(part)
            number += 1

    def _read(self) -> bytes:
        parts = []
        for number, name in enumerate(self._store.names(_FOLDER)):
            part = self._store.read(f"{_FOLDER}/{name}")
            if part is None or name != f"{number:06d}.jsonl":
                break
            parts.append(part)
            if len(part) < PART_BYTES:
                break
        data = b"".join(parts)
        return data[: data.rfind(b"\n") + 1]
