"""Keeps a run folder's copy in a store up to date while a sweep runs, and fetches it.

A thread follows the ledger: a store that is slow or unreachable delays the copies, never a trial.
The checkpoints of nodes that see the run folder are copied here; other nodes copy theirs before
they report them (`orchestrator.storage.worker_files`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from orchestrator.storage.worker_files import (
    checkpoint_name,
    fetch_checkpoints,
    split_name,
    take_draft,
)
from sweeps.coordinator.retention import kept_steps
from sweeps.core.errors import FolderHeldError, first_line
from sweeps.ledger import events
from sweeps.ledger.history import History
from sweeps.ledger.ledger import Tail
from sweeps.storage.driver_lease import Lease
from sweeps.storage.ledger_copy import LedgerCopy
from sweeps.storage.object_store import Store
from sweeps.storage.requests import ANSWER, fetch_requests
from sweeps.storage.run_folder import CHECKPOINTS, REPORT, RunFolder

_TICK_S = 0.5
_METRICS_EVERY_S = 60.0  # of running trials; those of a trial that ended go at once
_REQUESTS_EVERY_S = 5.0  # a listing each, which a store charges for
_AT_ONCE = 16  # small files that are fetched side by side


def bring_back(store: Store, folder: RunFolder, *, checkpoints: bool) -> None:
    """Fetch what a driver needs to go on, if it is missing here or older.

    Args:
        checkpoints: too, for workers that look for them in the folder.

    Raises:
        SweepError: the ledger here and the one there tell of different events.
    """
    LedgerCopy(store, folder.ledger).settle()
    fetch_requests(store, folder)
    there = store.tree(folder.name(folder.trials))
    wanted = [folder.spec, folder.table, folder.study]
    wanted += [
        path
        for name in there
        if (path := folder.trials / name) in folder.trial_files(name.partition("/")[0])
    ]
    missing = [path for path in wanted if not path.exists()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda path: _fetch(store, folder.name(path), path), missing))
    for whole in (folder.data, folder.best):
        if not whole.exists():
            store.get_folder(folder.name(whole), whole)
    if checkpoints:
        for key in _checkpoint_names(there):
            fetch_checkpoints(store, folder, key)


def _checkpoint_names(files: Iterable[str]) -> dict[str, set[str]]:
    """By trial key, the names of the checkpoints in a store, from the files under trials/."""
    found: dict[str, set[str]] = {}
    for file in files:
        key, _, rest = file.partition(f"/{CHECKPOINTS}/")
        if rest:
            found.setdefault(key, set()).add(rest.partition("/")[0])
    return found


def _fetch(store: Store, name: str, path: Path) -> None:
    try:
        store.get(name, path)
    except FileNotFoundError:
        return


class Copies(threading.Thread):
    """Copies from `begin` to `finish`; `news` says once what the user should know.

    Args:
        keep: sweep.keep; the checkpoints of other trials are removed from the store too.
    """

    def __init__(self, store: Store, folder: RunFolder, keep: int, lease: Lease) -> None:
        super().__init__(name="copies", daemon=True)
        self._store = store
        self._folder = folder
        self._keep = keep
        self._lease = lease
        self._ledger = LedgerCopy(store, folder.ledger)
        self._tail = Tail(folder.ledger)
        self._history = History()
        self._there: dict[str, set[str]] = {}  # trial key -> its checkpoints' names in the store
        self._todo: list[Callable[[], None]] = []
        self._written: dict[Path, float] = {}  # small files, as they were when they were copied
        self._metrics_at = self._requests_at = 0.0
        self._over = threading.Event()
        self._news: list[str] = []
        self._silent = False
        self.lost: FolderHeldError | None = None

    # ------------------------------------------------------------------ for the driver

    @property
    def store(self) -> Store:
        return self._store

    def take_draft(self) -> None:
        """Fetch the verified best checkpoint, if a worker of another node made it."""
        try:
            take_draft(self._store, self._folder)
        except OSError as error:
            self._complain(error)

    def begin(self) -> None:
        """Copy what other nodes need before they can train; then go on in the background.

        Raises:
            OSError: the store cannot be written.
        """
        self._ledger.settle()
        self._there = _checkpoint_names(self._store.tree(self._folder.name(self._folder.trials)))
        self._copy_data()
        self._round()
        self.start()

    def news(self) -> str:
        return self._news.pop(0) if self._news else ""

    def finish(self, patience_s: float) -> list[str]:
        """Copy what is left, best/ too, for `patience_s` at most; lines for the user."""
        self._over.set()
        last = threading.Thread(target=self._last, name="last copies", daemon=True)
        last.start()
        last.join(patience_s)
        if last.is_alive() or self._silent:
            return [f"{self._store} has not everything: the same command copies the rest."]
        return [f"copied to {self._store}"]

    # ------------------------------------------------------------------ in the background

    def run(self) -> None:
        beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        beating.start()
        while not self._over.wait(_TICK_S):
            try:
                self._round()
            except OSError as error:
                self._complain(error)

    def _beat(self) -> None:
        """Renew the lease. In its own thread: a large copy may take longer than the lease lasts."""
        while not self._over.wait(_TICK_S):
            try:
                self._lease.beat()
            except FolderHeldError as error:
                self.lost = error
                return
            except OSError:
                continue

    def _last(self) -> None:
        if self.ident is not None:
            self.join()
        if self.lost is not None:
            return
        try:
            self._round()
            self._copy_small(_all_small(self._folder))
            if self._folder.best.is_dir():
                self._store.put_folder(self._folder.best, self._folder.name(self._folder.best))
            self._lease.release()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._silent:
            words = first_line(error)[:200]
            self._news.append(f"{self._store} does not take copies ({words}); the sweep goes on")
        self._silent = True

    def _round(self) -> None:
        self._follow()
        while self._todo:
            self._todo[0]()  # stays in the list if it fails
            del self._todo[0]
        self._ledger.push()
        if time.monotonic() - self._metrics_at > _METRICS_EVERY_S:
            self._metrics_at = time.monotonic()
            running = [record.key for record in self._history.unfinished()]
            self._copy_small([self._folder.metrics(key) for key in running])
        self._copy_small([self._folder.spec, self._folder.table])
        if time.monotonic() - self._requests_at > _REQUESTS_EVERY_S:
            self._requests_at = time.monotonic()
            fetch_requests(self._store, self._folder)
        self._copy_small(self._folder.requests.glob(f"*{ANSWER}"))
        if self._silent:
            self._silent = False
            self._news.append(f"{self._store} takes copies again")

    def _follow(self) -> None:
        """Read the new events, and queue the copies that they ask for."""
        add, tidy = self._todo.append, False
        for event in self._tail.events():
            self._history.apply(event)
            tidy = tidy or isinstance(event, events.Checkpoint | events.End)
            match event:
                case events.Ask(trial=key):
                    add(partial(self._copy_small, [self._folder.trial_config(key)]))
                case events.Known(trial=key):
                    add(partial(self._copy_small, self._folder.trial_files(key)))
                    if event.checkpoint is not None:
                        add(partial(self._copy_checkpoint, key, event.checkpoint, 0))
                case events.Checkpoint(trial=key):
                    add(partial(self._copy_small, [self._folder.row_losses(key)]))
                    add(partial(self._copy_checkpoint, key, event.step, event.attempt))
                case events.End(trial=key):
                    add(partial(self._copy_small, self._folder.trial_files(key)))
        if tidy:
            add(self._tidy)

    # ------------------------------------------------------------------ what it copies

    def _copy_data(self) -> None:
        """Copy the tokenized data, for other nodes and for a driver that lacks the source."""
        data, name = self._folder.data, self._folder.name(self._folder.data)
        here = {
            str(path.relative_to(data)): path.stat().st_size
            for path in data.rglob("*")
            if path.is_file()
        }
        # Other data may have files of the same sizes: its report has a fingerprint.
        is_same = self._store.read(f"{name}/{REPORT}") == (data / REPORT).read_bytes()
        if not is_same or self._store.files_of(name) != here:
            self._store.put_folder(data, name)

    def _copy_small(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if not path.is_file():
                continue
            changed = path.stat().st_mtime
            if self._written.get(path) != changed:
                self._store.put(path, self._folder.name(path))
                self._written[path] = changed

    def _copy_checkpoint(self, key: str, step: int, attempt: int) -> None:
        name = checkpoint_name(step, attempt)
        if name in self._there.setdefault(key, set()):
            return
        self._there[key].add(name)
        wanted = kept_steps(self._history, self._keep).get(key, set())
        path = self._folder.checkpoint(key, step)
        if step not in wanted or not path.is_dir():
            return  # it need not stay, or a node that does not see this folder has copied it
        try:
            self._store.put_folder(path, self._folder.name(path.with_name(name)))
        except FileNotFoundError:
            return  # it was removed here in the meantime: a newer one is on its way

    def _tidy(self) -> None:
        """Remove checkpoints that need not stay. One whose event is not known yet is left alone."""
        kept = kept_steps(self._history, self._keep)
        for key, names in self._there.items():
            record = self._history.trials.get(key)
            if record is None:
                continue
            for name in sorted(names):
                step, attempt = split_name(name)
                known = step in record.checkpoints or record.state.is_finished()
                if step not in kept[key] and known and attempt <= record.attempt:
                    self._store.remove(self._folder.name(self._folder.checkpoints(key) / name))
                    names.discard(name)


def _all_small(folder: RunFolder) -> list[Path]:
    trials = [path for trial in folder.trials.glob("*") for path in folder.trial_files(trial.name)]
    return [folder.spec, folder.table, folder.study, folder.report, *trials]
