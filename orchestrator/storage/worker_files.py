"""Gives a worker its data and checkpoints: from the run folder, or by a store and its disk."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.storage.folder_token import sees_run_folder
from sweeps.core.errors import SweepError
from sweeps.storage.durable_writes import in_turn, remove_tree
from sweeps.storage.object_store import Store
from sweeps.storage.run_folder import STEP_PREFIX, RunFolder, checkpoint_step

log = logging.getLogger(__name__)

_DRAFT = "draft"


def checkpoint_name(step: int, attempt: int) -> str:
    """A checkpoint's name in a store; each attempt has its own, and cannot spoil another's."""
    return f"{STEP_PREFIX}{step:06d}@{attempt}"


def split_name(name: str) -> tuple[int, int]:
    """Step and attempt of a checkpoint's name in a store; (-1, 0) for any other name."""
    head, _, attempt = name.partition("@")
    step = checkpoint_step(Path(head))
    return (step, int(attempt)) if step is not None and attempt.isdecimal() else (-1, 0)


class WorkerFiles:
    """The data and the checkpoints of one worker.

    Args:
        root: the run folder, as the driver names it.
        folder_token: the token in it; empty if there is no other node.
        place: of the store; empty if there is none.
    """

    def __init__(self, root: Path, folder_token: str, place: str) -> None:
        self._is_alone = not folder_token
        self._shares = self._is_alone or sees_run_folder(root, folder_token)
        self._store = Store(place) if place else None
        self.folder = RunFolder(root if self._shares else _own_root(folder_token))

    @property
    def is_usable(self) -> bool:
        """Whether this worker can read the run folder or a store."""
        return self._shares or self._store is not None

    def data(self) -> Path:
        """The tokenized data's folder; a node's first worker fetches it, the others wait."""
        folder = self.folder.data
        if self._shares:
            return folder
        assert self._store is not None
        with in_turn(self.folder.root / ".data.turn"):
            if not folder.is_dir() and not self._store.get_folder(self.folder.name(folder), folder):
                raise SweepError(f"{self._store} holds no data/: it was removed")
        return folder

    def fetch(self, key: str) -> None:
        """Fetch the trial's checkpoints that are missing here.

        On one machine the driver has fetched them, and no trial waits for a store. Ranks of one
        node call this together: the first fetches, the others wait.
        """
        if self._store is None or self._is_alone:
            return
        try:
            with in_turn(self.folder.trial(key) / ".fetch.turn"):
                fetch_checkpoints(self._store, self.folder, key)
        except OSError as error:
            if not self._shares:
                raise
            log.warning("checkpoints of trial %s are looked for here only: %s", key, error)

    def committed(self, key: str, step: int, attempt: int) -> None:
        """Copy a new checkpoint to the store, if the driver cannot; keep only the newest here.

        Raises:
            OSError: the store does not take it.
        """
        if self._shares:
            return
        assert self._store is not None
        path = self.folder.checkpoint(key, step)
        name = self.folder.name(path.with_name(checkpoint_name(step, attempt)))
        self._store.put_folder(path, name)
        for path in self.folder.checkpoints(key).glob(f"{STEP_PREFIX}*"):
            if checkpoint_step(path) != step:
                remove_tree(path)

    def forget(self, key: str) -> None:
        """Remove the files of a trial that has left this worker, if they are copies."""
        if not self._shares:
            shutil.rmtree(self.folder.trial(key), ignore_errors=True)

    def hand_in_draft(self) -> None:
        """Send the verified best checkpoint to the driver, by the store."""
        if not self._shares:
            assert self._store is not None
            self._store.put_folder(self.folder.best_draft, _DRAFT)
            remove_tree(self.folder.best_draft)


def fetch_checkpoints(store: Store, folder: RunFolder, key: str) -> None:
    """Fetch the checkpoints that the folder lacks: of each step, the newest attempt's."""
    newest: dict[int, int] = {}
    there = folder.name(folder.checkpoints(key))
    for name in store.names(there):
        step, attempt = split_name(name)
        newest[step] = max(attempt, newest.get(step, 0))
    for step in sorted(newest, reverse=True):
        final = folder.checkpoint(key, step)
        if step < 0 or final.is_dir():
            continue
        name = f"{there}/{checkpoint_name(step, newest[step])}"
        try:
            store.get_folder(name, final)
        except OSError:
            if store.files_of(name) is not None:
                raise
            # Else it was superseded, and removed while it was fetched.


def take_draft(store: Store, folder: RunFolder) -> None:
    """Fetch the best checkpoint that a worker of another node has sent, if any."""
    if store.files_of(_DRAFT) is not None and not folder.best_draft.is_dir():
        store.get_folder(_DRAFT, folder.best_draft)
    store.remove(_DRAFT)


def _own_root(folder_token: str) -> Path:
    """The folder on this node's disk that its workers share."""
    return Path(tempfile.gettempdir()) / f"sft-sweeps-{os.getuid()}" / folder_token
