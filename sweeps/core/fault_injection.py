"""Injects faults and records what was trained, for the tests of crashes.

SWEEPS_FAULT=ACTION:POINT:N[+][:FLAG] lets the N-th passing of POINT in a process fail (N+: that one
and all after it). With FLAG, a path, it fails in one process only: the one that makes that file.

    kill    the process kills itself, as `kill -9` would
    full    the disk is full: OSError, ENOSPC
    oom     the memory is full: MemoryError
    lost    the device is lost: RuntimeError, in CUDA's words

Several faults are separated by semicolons.

SWEEPS_WITNESS=PATH lets every optimizer step append a line to PATH.

If neither is set, passing a point costs one call of a cached function.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

FAULT = "SWEEPS_FAULT"
WITNESS = "SWEEPS_WITNESS"
POINTS = frozenset(
    (
        *("ledger.before", "ledger.middle", "ledger.after"),
        *("text.before", "text.middle", "text.rename", "text.after"),
        *("rows.before", "rows.middle", "rows.rename", "rows.after"),  # row_losses.npy
        # after the files and before the manifest; in it; before the rename; before the ledger line
        *("checkpoint.before", "checkpoint.middle", "checkpoint.rename", "checkpoint.after"),
        *("remove.middle", "folder.rename", "best.rename"),  # a tree half removed; the data; best/
        *("batch", "step"),  # before a micro-batch; after an optimizer step
        "dry_run",  # before the one step that precedes all trials
        "cost",  # before a measurement of what a trial costs alone
    )
)
ACTIONS = ("kill", "full", "oom", "lost")

_suspended = False


@dataclass(kw_only=True)
class Fault:
    """One armed fault; `passed` counts in this process."""

    action: str
    point: str
    number: int
    lasting: bool = False
    flag: str = ""
    passed: int = 0

    def is_due(self) -> bool:
        self.passed += 1
        due = self.passed >= self.number if self.lasting else self.passed == self.number
        return due and (not self.flag or _make(self.flag))

    def happen(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "oom":
            raise MemoryError(f"out of memory, as {FAULT} asked for")
        if self.action == "lost":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def passing(point: str, tear: Callable[[], object] | None = None) -> None:
    """Fail here if a fault is due; `tear` first does half of the work."""
    for fault in () if _suspended else _armed():
        if fault.point == point and fault.is_due():
            if tear is not None:
                tear()
            fault.happen()


def witness(*words: object) -> None:
    """Append a line to the witness, if there is one."""
    path = _witness()
    if path is None or _suspended:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(descriptor)


@contextmanager
def suspended() -> Iterator[None]:
    """Turn faults and the witness off, for the dry run, which is no trial."""
    global _suspended
    _suspended = True
    try:
        yield
    finally:
        _suspended = False


def parse(text: str) -> Fault:
    """Read one fault; raises ValueError if `text` is none, or a test would pass untested."""
    action, point, number, *flag = text.split(":", 3)
    if action not in ACTIONS or point not in POINTS:
        raise ValueError(f"{FAULT}={text}: {ACTIONS} at one of {sorted(POINTS)}")
    return Fault(
        action=action,
        point=point,
        number=int(number.removesuffix("+")),
        lasting=number.endswith("+"),
        flag=flag[0] if flag else "",
    )


@functools.cache
def _armed() -> tuple[Fault, ...]:
    return tuple(parse(text) for text in os.environ.get(FAULT, "").split(";") if text)


@functools.cache
def _witness() -> str | None:
    return os.environ.get(WITNESS) or None


def _make(flag: str) -> bool:
    try:
        os.close(os.open(flag, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
