"""Locks a run folder for one process at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from sweeps.core.commands import command_line
from sweeps.core.errors import FolderHeldError, SweepError


class Lock:
    """Holds the run folder for the driver's life; the kernel lets go when the process dies.

    Raises:
        FolderHeldError: another living process holds it; the message names its host and pid.
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
