"""Durable writes into a run folder: all of a file or folder is on disk, or nothing of it."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.core import fault_injection
from sweeps.storage.run_folder import REMOVING_PREFIX

_SYNCS_AT_ONCE = 16


def sync(path: Path) -> None:
    """Make a file's contents durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Sync every file of `folder` to disk before the folder is renamed.

    In parallel: a disk syncs ten files at once in little more time than one.
    """
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        list(pool.map(sync, (folder, *folder.rglob("*"))))


def write_synced(path: Path, data: bytes, what: str) -> None:
    """Write a file and sync it; `what` is the prefix of its fault points."""
    with open(path, "wb") as file:
        fault_injection.passing(
            f"{what}.middle", lambda: os.write(file.fileno(), data[: len(data) // 2])
        )
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace `path` as a whole: readers see the old text or the new, never a part."""
    write_bytes(path, text.encode(), "text")


def write_bytes(path: Path, data: bytes, what: str) -> None:
    """Replace `path` as a whole; `what` is the prefix of its fault points."""
    fault_injection.passing(f"{what}.before")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(draft, data, what)
        fault_injection.passing(f"{what}.rename")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync(path.parent)
    fault_injection.passing(f"{what}.after")


def publish(draft: Path, final: Path, what: str = "folder") -> None:
    """Sync a whole folder and rename it to `final`, in place of what is there."""
    _sync_tree(draft)
    fault_injection.passing(f"{what}.rename")
    remove_tree(final)
    os.replace(draft, final)
    sync(final.parent)


def append_synced(file: io.RawIOBase, data: bytes, path: Path) -> None:
    """Append to a ledger file: all of `data` is on disk, or nothing of it.

    Raises:
        OSError: `data` could not be written, and the file is as it was before.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        fault_injection.passing("ledger.before")
        fault_injection.passing("ledger.middle", lambda: file.write(data[: len(data) // 2]))
        if file.write(data) != len(data):  # a full disk takes a part, and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)  # half a line would damage the next one
        raise
    fault_injection.passing("ledger.after")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Replace a CSV file; None becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines that may be lost in a crash (the ledger has a writer of its own)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def remove_tree(folder: Path) -> None:
    """Remove a folder so that a kill in the middle leaves nothing that looks whole."""
    doomed = folder.with_name(f"{REMOVING_PREFIX}{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)  # of a kill in the middle: it would be in the way
    try:
        os.replace(folder, doomed)
    except FileNotFoundError:
        return
    fault_injection.passing("remove.middle")
    shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let one process of this machine in at a time; the kernel frees `path` if it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
