"""Commits checkpoints, so that there is a whole one with a manifest that proves it, or none.

Write into a draft folder, bring every file to disk, MANIFEST.json last, then one rename. A
checkpoint counts only if each file has the size and the hash that its manifest says, and no file is
there that the manifest does not name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.config.spec import TrainSpec
from sweeps.core import fault_injection
from sweeps.core.errors import StaleAttemptError, SweepError
from sweeps.core.trial import Report
from sweeps.storage.durable_writes import publish, write_synced
from sweeps.storage.run_folder import RunFolder, checkpoint_step

if TYPE_CHECKING:
    from trainers.trial.ranks import Ranks

log = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
# Without these a resumed trial would start them afresh in silence.
_STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError)


class DiskFullError(OSError):
    """There is no room for a checkpoint; the message says how much it takes."""

    def __str__(self) -> str:
        return str(self.strerror)


class CheckpointError(Exception):
    """A checkpoint is not whole; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is, and which files its folder must hold.

    Attributes:
        key: the trial's.
        base: fingerprint of the base model.
        seconds: spent training up to here.
        reports: the trial's reports so far, as JSON.
        files: name -> [bytes, sha256].
    """

    key: str
    step: int
    attempt: int
    base: str
    seconds: float
    reports: Sequence[dict[str, Any]]
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)

    def trial_reports(self) -> list[Report]:
        return [Report.from_json(report) for report in self.reports]


Found = tuple[Path, Manifest] | None  # the checkpoint from which a trial goes on


def commit(
    draft: Path, final: Path, manifest: Manifest, *, ask: Callable[[], None] = lambda: None
) -> int:
    """Turn a written `draft` into the checkpoint `final`; returns its size in bytes.

    Args:
        ask: called last, before the checkpoint takes its name; raises if this attempt is over.

    Raises:
        StaleAttemptError: a newer attempt at the trial has committed here already.
    """
    fault_injection.passing("checkpoint.before")
    names = sorted(path for path in draft.rglob("*") if path.is_file())
    files = {str(path.relative_to(draft)): (path.stat().st_size, _sha256(path)) for path in names}
    text = json.dumps(asdict(manifest) | {"files": files}, indent=1, allow_nan=False)
    write_synced(draft / MANIFEST, text.encode(), "checkpoint")
    ask()
    _refuse_older(final.parent, manifest)
    publish(draft, final, "checkpoint")  # also over the same step of an attempt that died untold
    fault_injection.passing("checkpoint.after")
    return sum(size for size, _ in files.values())


def _refuse_older(checkpoints: Path, manifest: Manifest) -> None:
    """Keep what a newer attempt wrote: a worker whose driver is gone may live on."""
    for path in _folders(checkpoints):
        if checkpoint_step(path) is None:
            continue
        try:
            newest = int(json.loads((path / MANIFEST).read_bytes())["attempt"])
        except _UNREADABLE:
            continue  # not whole: to be replaced
        if newest > manifest.attempt:
            raise StaleAttemptError(
                f"attempt {manifest.attempt} at trial {manifest.key} is over: {path} is of "
                f"attempt {newest}"
            )


@contextmanager
def writing(draft: Path) -> Iterator[None]:
    """Remove `draft` if writing or committing it within fails, and say why.

    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        full = disk_full(error, draft)
        shutil.rmtree(draft, ignore_errors=True)
        if full is not None:
            raise full from error
        raise


def disk_full(error: Exception, draft: Path) -> DiskFullError | None:
    """The error to raise if writing `draft` failed because the disk is full; else None."""
    whole = [_bytes(path) for path in _folders(draft.parent) if checkpoint_step(path) is not None]
    free = shutil.disk_usage(draft.parent).free / 2**20
    # safetensors names the disk in other words, and torch.save does not name it at all.
    said = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space" in str(error)
    failed_to_write = "inline_container" in str(error) or "file write failed" in str(error)
    if not said and not (failed_to_write and free < 1 + max(whole, default=0) / 2**20):
        return None
    size = f"about {max(whole) / 2**20:.1f}" if whole else f"more than {_bytes(draft) / 2**20:.1f}"
    return DiskFullError(
        errno.ENOSPC,
        f"the disk is full: a checkpoint takes {size} MB, and {free:.1f} MB are free. The "
        "checkpoints before it are whole. Free some room, or lower sweep.keep",
    )


def verify(folder: Path) -> Manifest:
    """Check that a checkpoint is whole, and return its manifest.

    Raises:
        CheckpointError: what is missing, cut short, changed or not named there.
    """
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = Manifest(**data)
        named = {str(n): (int(size), str(digest)) for n, (size, digest) in data["files"].items()}
        manifest.trial_reports()
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}") from None
    except _UNREADABLE as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be read: {error}") from error
    there = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    found = {str(path.relative_to(folder)) for path in there} - {MANIFEST}
    if found != set(named):
        odd = sorted(found ^ set(named))
        raise CheckpointError(f"{folder}: missing, or not of the checkpoint: {', '.join(odd)}")
    missing = [name for name in _STATE_FILES if name not in named]
    if missing:
        raise CheckpointError(f"{folder} has no {', '.join(missing)}")
    for name, (size, digest) in named.items():
        path = folder / name
        if path.is_symlink() or path.stat().st_size != size or _sha256(path) != digest:
            raise CheckpointError(f"{path} is not what was written")
    return manifest


def newest(checkpoints: Path, *, key: str, base: str, last_step: float = math.inf) -> Found:
    """Find the newest whole checkpoint of a trial; logs a warning for each that is not whole.

    Args:
        last_step: checkpoints after it do not count.

    Raises:
        SweepError: a checkpoint here belongs to another trial or base model.
    """
    steps = [(checkpoint_step(path), path) for path in _folders(checkpoints)]
    known = ((s, path) for s, path in steps if s is not None and s <= last_step)
    for _, path in sorted(known, reverse=True):
        try:
            manifest = verify(path)
        except CheckpointError as error:
            log.warning("a checkpoint is not used: %s", error)
            continue
        if manifest.key != key:
            raise SweepError(
                f"{path} is a checkpoint of trial {manifest.key}, not of {key}; move it away"
            )
        if manifest.base != base:
            raise SweepError(
                f"{path} was trained on another base model ({manifest.base}, now {base}). Give "
                "back the old base, or choose another run_dir=..."
            )
        return path, manifest
    return None


def newest_of_all(checkpoints: Path, *, key: str, base: str, ranks: Ranks) -> Found:
    """Find the newest whole checkpoint that every rank has; every rank must call this.

    Ranks on different nodes have different folders, and a copy in one may be late or torn. The path
    is this rank's own.

    Raises:
        SweepError: as `newest`; on all ranks if on one.
    """
    last_step = math.inf
    while True:
        there = ranks.each(partial(newest, checkpoints, key=key, base=base, last_step=last_step))
        states = [(found[1].step, found[1].attempt) if found else (-1, 0) for found in there]
        if len(set(states)) == 1:
            return there[ranks.rank]
        # The same step of two attempts is not the same state.
        first, last = min(states)[0], max(states)[0]
        last_step = first if first < last else first - 1


def beginning(folder: RunFolder, train: TrainSpec) -> Path | None:
    """The checkpoint whose weights a trial begins with; None for the base model's.

    Raises:
        CheckpointError: it is not whole.
    """
    if train.warm is None:
        return None
    path = folder.checkpoint(train.warm.trial, train.warm.step)
    verify(path)
    return path


def weights(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's safetensors into main memory, name -> tensor."""
    from safetensors.torch import load_file

    held: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        held |= load_file(path)
    return held


def make_ready(checkpoints: Path) -> None:
    """Make a trial's folder of checkpoints, without what killed attempts left half written."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for path in _folders(checkpoints):
        if path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
