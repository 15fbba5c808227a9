"""Every path of a run folder, every durable write into it, and the lock on it."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps import faults
from sweeps.commands import command_line
from sweeps.errors import FolderHeldError, SweepError

REPORT = "report.json"  # in the folder of tokenized data
STEP_PREFIX = "step-"
REMOVING_PREFIX = ".removing-"
_SYNCS_AT_ONCE = 16


@dataclass(frozen=True)
class RunFolder:
    """Where everything of one sweep lies. Names are fixed; scripts outside may rely on them."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "sweep.yaml"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def has_begun(self) -> bool:
        """Whether the ledger says anything yet: before that, nothing was trained."""
        return self.ledger.exists() and self.ledger.stat().st_size > 0

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def table(self) -> Path:
        return self.root / "trials.csv"

    @property
    def study(self) -> Path:
        return self.root / "study.db"

    @property
    def data(self) -> Path:
        """The tokenized data, prepared once by the driver and read by every worker."""
        return self.root / "data"

    @property
    def tracking(self) -> Path:
        """W&B's local files."""
        return self.root / "wandb"

    @property
    def best(self) -> Path:
        return self.root / "best"

    @property
    def best_draft(self) -> Path:
        """Where the best checkpoint is put together before it takes the name best/."""
        return self.root / ".best.draft"

    @property
    def scratch(self) -> Path:
        """Tune's own files while a driver lives; nothing in it is read back."""
        return self.root / ".tune"

    @property
    def mark(self) -> Path:
        """A word by which another node knows that it sees this folder."""
        return self.root / ".here"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    def trial(self, key: str) -> Path:
        return self.trials / key

    def trial_config(self, key: str) -> Path:
        return self.trial(key) / "config.yaml"

    def metrics(self, key: str) -> Path:
        return self.trial(key) / "metrics.jsonl"

    @property
    def refusal(self) -> Path:
        """Why no trial could be started, where that was not foreseen: a traceback."""
        return self.root / "error.txt"

    def error(self, key: str) -> Path:
        return self.trial(key) / "error.txt"

    def checkpoints(self, key: str) -> Path:
        return self.trial(key) / "checkpoints"

    def checkpoint(self, key: str, step: int) -> Path:
        return self.checkpoints(key) / f"{STEP_PREFIX}{step:06d}"


def checkpoint_step(folder: Path) -> int | None:
    """The step in a checkpoint folder's name, or None where it is no such folder."""
    digits = folder.name.removeprefix(STEP_PREFIX)
    return int(digits) if folder.name != digits and digits.isdecimal() else None


def is_prepared(data: Path) -> bool:
    """Whether a folder holds tokenized data, and not something of the user's."""
    return (data / REPORT).is_file()


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Bring all that lies in `folder` to the disk before its rename can be.

    Together: a disk that is told of ten files at once takes little longer than for one.
    """
    with ThreadPoolExecutor(_SYNCS_AT_ONCE) as pool:
        list(pool.map(_sync, (folder, *folder.rglob("*"))))


def write_synced(path: Path, data: bytes, what: str) -> None:
    """Write a file and bring it to disk; `what` names it among the fault points."""
    with open(path, "wb") as file:
        faults.passing(f"{what}.middle", lambda: os.write(file.fileno(), data[: len(data) // 2]))
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace `path` as a whole: readers see the old text or the new, never a part."""
    faults.passing("text.before")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(draft, text.encode(), "text")
        faults.passing("text.rename")
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    faults.passing("text.after")


def publish(draft: Path, final: Path, what: str = "folder") -> None:
    """Bring a whole folder to disk and give it its name, in place of what has it now."""
    _sync_tree(draft)
    faults.passing(f"{what}.rename")
    remove_tree(final)
    os.replace(draft, final)
    sync_folder(final.parent)


def append_synced(file: io.RawIOBase, data: bytes, path: Path) -> None:
    """Append to a file of the ledger's kind: all of `data` is on disk, or nothing of it.

    Raises:
        OSError: it could not be written, and the file is as it was before.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        faults.passing("ledger.before")
        faults.passing("ledger.middle", lambda: file.write(data[: len(data) // 2]))
        if file.write(data) != len(data):  # a full disk takes a part, and says nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)  # half a line would damage the next one
        raise
    faults.passing("ledger.after")


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
    faults.passing("remove.middle")
    shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the kernel lets go of `path` where it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Lock:
    """Holds the run folder for the driver's life; the kernel lets go when the process dies.

    Raises:
        FolderHeldError: where another living process holds it; names its host and pid.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (held for our life)
        except OSError as error:
            raise SweepError(
                f"run_dir = {path.parent}: no sweep can be written there ({error.strerror}: "
                f"{error.filename}). Choose a run_dir=... that can be"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "an unknown process"
            self._file.close()
            raise FolderHeldError(
                f"{path.parent} is in use by {holder}. Wait for it, follow it with "
                f"`{command_line(['status', str(path.parent)])}`, or choose another run_dir=..."
            ) from None
        except OSError as error:
            self._file.close()
            raise SweepError(
                f"{path} cannot be locked: {error}. Choose a run_dir=... on a file system that "
                "knows locks."
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{socket.gethostname()}, pid {os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()
