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
from sweeps.ledger.history import History
from sweeps.ledger.ledger import Tail
from sweeps.storage.driver_lease import Lease
from sweeps.storage.ledger_copy import LedgerCopy
from sweeps.storage.object_store import Store
from sweeps.storage.run_folder import REPORT, RunFolder

_TICK_S = 0.5
_METRICS_EVERY_S = 60.0  # of running trials; those of a trial that ended go at once
_AT_ONCE = 16  # small files that are fetched side by side
_TRIAL_FILES = ("config.yaml", "metrics.jsonl", "error.txt")


def bring_back(store: Store, folder: RunFolder, *, checkpoints: bool) -> None:
    """Fetch what a driver needs to go on, if it is missing here or older.

    Args:
        checkpoints: too, for workers that look for them in the folder.

    Raises:
        SweepError: the ledger here and the one there tell of different events.
    """
    LedgerCopy(store, folder.ledger).settle()
    wanted = [name for name in ("sweep.yaml", "trials.csv", "study.db") if _lacks(folder, name)]
    there = store.tree("trials")
    wanted += [
        f"trials/{name}"
        for name in there
        if name.endswith(_TRIAL_FILES) and "/checkpoints/" not in name
    ]
    wanted = [name for name in wanted if _lacks(folder, name)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda name: _fetch(store, name, folder.root / name), wanted))
    for name in ("data", "best"):
        if _lacks(folder, name):
            store.get_folder(name, folder.root / name)
    for key in {name.partition("/")[0] for name in there if "/checkpoints/" in name}:
        if checkpoints:
            fetch_checkpoints(store, folder, key)


def _lacks(folder: RunFolder, name: str) -> bool:
    return not (folder.root / name).exists()


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
        self._metrics_at = 0.0
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
        self._list_checkpoints()
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
                self._store.put_folder(self._folder.best, "best")
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
        if self._silent:
            self._silent = False
            self._news.append(f"{self._store} takes copies again")

    def _follow(self) -> None:
        """Read the new events, and queue the copies that they ask for."""
        tidy = False
        for event in self._tail.read():
            self._history.apply(event)
            key = str(event.get("trial") or "")  # an ask that gave a known config has none
            if event["event"] == "ask" and key:
                self._todo.append(partial(self._copy_small, [self._folder.trial_config(key)]))
            if event["event"] == "checkpoint":
                self._todo.append(
                    partial(self._copy_checkpoint, key, event["step"], event["attempt"])
                )
            if event["event"] == "end":
                self._todo.append(partial(self._copy_small, _small_of(self._folder, key)))
            tidy = tidy or event["event"] in ("checkpoint", "end")
        if tidy:
            self._todo.append(self._tidy)

    # ------------------------------------------------------------------ what it copies

    def _copy_data(self) -> None:
        """Copy the tokenized data, for other nodes and for a driver that lacks the source."""
        files = self._store.files_of("data")
        here = {
            str(path.relative_to(self._folder.data)): path.stat().st_size
            for path in self._folder.data.rglob("*")
            if path.is_file()
        }
        # Other data may have files of the same sizes: its report has a fingerprint.
        report = (self._folder.data / REPORT).read_bytes()
        if files != here or self._store.read(f"data/{REPORT}") != report:
            self._store.put_folder(self._folder.data, "data")

    def _copy_small(self, paths: Iterable[Path]) -> None:
        for path in paths:
            if not path.is_file():
                continue
            changed = path.stat().st_mtime
            if self._written.get(path) != changed:
                self._store.put(path, str(path.relative_to(self._folder.root)))
                self._written[path] = changed

    def _list_checkpoints(self) -> None:
        for name in self._store.tree("trials"):
            key, _, rest = name.partition("/checkpoints/")
            if rest:
                self._there.setdefault(key, set()).add(rest.partition("/")[0])

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
            self._store.put_folder(path, f"trials/{key}/checkpoints/{name}")
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
                    self._store.remove(f"trials/{key}/checkpoints/{name}")
                    names.discard(name)


def _small_of(folder: RunFolder, key: str) -> list[Path]:
    return [folder.trial(key) / name for name in _TRIAL_FILES]


def _all_small(folder: RunFolder) -> list[Path]:
    trials = [path for name in _TRIAL_FILES for path in folder.root.glob(f"trials/*/{name}")]
    return [folder.spec, folder.table, folder.study, *trials]
