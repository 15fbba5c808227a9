"""Weights & Biases, from the driver only, and never in the way of training.

The driver hands over ledger events and training rows and goes on at once; everything that can wait
for a server happens on one background thread. Workers need neither key nor internet.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from orchestrator.tracking.inbox import Inbox
from orchestrator.tracking.wandb_login import Link, find_link, is_off
from orchestrator.tracking.wandb_process import WandbService, tear_down
from orchestrator.tracking.wandb_runs import SweepRuns
from sweeps.config.spec import TrackingSpec
from sweeps.core.secrets import scrub
from sweeps.ledger.ledger import Event, Tail
from sweeps.storage.run_folder import RunFolder

log = logging.getLogger(__name__)

MOST_ROWS = 10_000  # that wait for the background thread: a few MB
START_S = 10.0
_TICK_S = 0.5
_RESERVE_S = 4.0  # of the time to finish: to leave a hanging server and sum up on disk
_MOST_FAILURES = 5
_LAST_S = 2.0  # for the thread to end after wandb-core was killed


class Tracker:
    """Tracks one sweep; every method returns soon and none raises.

    Args:
        folder: the run folder; W&B's files go to its `wandb` folder, and its ledger says what was
            tracked before.
        sweep_name: the group of the trials' runs.
        public: the whole resolved config; `allow_list` says which part is sent.
    """

    def __init__(
        self,
        tracking: TrackingSpec,
        folder: RunFolder,
        *,
        sweep_name: str,
        public: Mapping[str, Any],
    ) -> None:
        self._tracking = tracking
        self._folder = folder
        self._sweep_name = sweep_name
        self._public = public
        self._past: list[Event] = []
        self._inbox: Inbox[Callable[[], None]] = Inbox(MOST_ROWS)
        self._thread: threading.Thread | None = None
        self._decided = threading.Event()
        self._link = Link(online=False)
        self._service: WandbService | None = None
        self._runs: SweepRuns | None = None
        self._stopping = False
        self._failures: list[str] = []
        self._trouble = ""  # why tracking was given up
        self._told_dropped = False
        self._told_link = False

    def begin(self) -> None:
        """Start looking for a server, in the background; `news` says what came of it."""
        if is_off(self._tracking) or self._thread is not None:
            return
        # Read here: what the driver appends from now on comes as events.
        self._past = list(Tail(self._folder.ledger).read())
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def news(self) -> str | None:
        """Whether it is online or offline, in one line; once, when it is known. Never waits."""
        if self._told_link or not (self._thread is None or self._decided.is_set()):
            return None
        self._told_link = True
        return self._line()

    def start(self) -> str:
        """`begin`, and wait `START_S` at most for the news."""
        self.begin()
        self._told_link = True
        if self._thread is not None and not self._decided.wait(START_S):
            return f"W&B: still looking for a server; its files go to {self._folder.tracking}"
        return self._line()

    def _line(self) -> str:
        if self._thread is None:
            return "W&B: off"
        if self._trouble:
            return f"W&B: off: {self._trouble}"
        if self._link.online:
            return f"W&B: online, {self._link.page} (group {self._sweep_name})"
        return f"W&B: offline ({self._link.why}); {self._how_to_sync()}"

    def on_event(self, event: Event) -> None:
        """Follow any ledger event."""
        if self._takes():
            self._inbox.put(partial(self._follow, event))

    def on_metrics(self, key: str, row: Mapping[str, Any]) -> None:
        """Log a row of a trial's training: `step`, and numbers under SFTTrainer's names."""
        if self._takes():
            self._inbox.put_row(partial(self._log_row, key, dict(row)))
            if self._inbox.dropped and not self._told_dropped:
                self._told_dropped = True
                log.warning("W&B is slow: training rows are dropped, evaluations are kept")

    def finish(self, summary: Mapping[str, Any] | None, timeout_s: float) -> list[str]:
        """End all runs within `timeout_s` (a few seconds more where the server hangs).

        Args:
            summary: numbers and words to add to the sweep's own run.

        Returns:
            Lines for the user: where the runs are, and how to upload what was not.
        """
        thread = self._thread
        if thread is None or self._stopping:
            return []
        close_by = time.monotonic() + timeout_s - _RESERVE_S
        self._inbox.put(partial(self._stop, dict(summary or {}), close_by))
        self._stopping = True
        thread.join(timeout_s)
        cut_short = thread.is_alive()
        if cut_short and self._service is not None:
            self._service.abandon()
            thread.join(_LAST_S)
        return self._last_lines(cut_short=cut_short)

    def _takes(self) -> bool:
        return self._thread is not None and not self._stopping and not self._trouble

    def _work(self) -> None:
        """The background thread: everything that may wait for a server."""
        try:
            self._connect()
        except ImportError:
            self._trouble = "wandb is not installed (pip install wandb)"
        except Exception as error:
            tear_down()
            self._trouble = scrub(f"{type(error).__name__}: {error}".splitlines()[0])
        self._decided.set()
        while self._runs is not None and not self._trouble:
            act = self._inbox.take(_TICK_S)
            try:
                if act is not None:
                    act()
                if self._runs is not None:
                    self._runs.close_ended()
            except Exception as error:
                self._note_failure(error)
        if self._service is not None:
            tear_down()

    def _connect(self) -> None:
        # Tables wait here for `wandb sync`; in the home folder they would outlive the sweep.
        os.environ.setdefault("WANDB_DATA_DIR", str(self._folder.tracking))
        os.environ.setdefault("WANDB_CACHE_DIR", str(self._folder.tracking / "cache"))
        self._link = find_link(self._tracking)
        self._service = WandbService(
            self._tracking,
            self._folder.root,
            group=self._sweep_name,
            online=self._link.online,
        )
        self._runs = SweepRuns(
            self._service,
            self._folder,
            self._past,
            sweep_name=self._sweep_name,
            public=self._public,
            trouble=self._link.trouble,
        )

    def _follow(self, event: Event) -> None:
        assert self._runs is not None
        self._runs.on_event(event)

    def _log_row(self, key: str, row: Mapping[str, Any]) -> None:
        assert self._runs is not None
        self._runs.on_row(key, row)

    def _stop(self, summary: Mapping[str, Any], close_by: float) -> None:
        assert self._runs is not None
        runs, self._runs = self._runs, None  # leaves the loop, also where this fails
        runs.close_all(summary, timeout_s=max(1.0, close_by - time.monotonic()))

    def _note_failure(self, error: Exception) -> None:
        """One event that cannot be tracked is passed over; after several, tracking stops."""
        log.debug("tracking", exc_info=error)
        if self._service is not None and self._service.abandoned:
            self._runs = None  # leaves the loop; the last lines say what to do
            return
        self._failures.append(scrub(f"{type(error).__name__}: {error}".splitlines()[0]))
        if len(self._failures) == 1:
            log.warning("W&B: something could not be tracked: %s", self._failures[0])
        if len(self._failures) >= _MOST_FAILURES:
            self._trouble = self._failures[-1]
            log.warning("W&B: tracking stops, training goes on. %s", self._trouble)

    def _how_to_sync(self) -> str:
        return f"to upload it later: wandb sync {self._quoted_folder()}/offline-run-*"

    def _quoted_folder(self) -> str:
        return shlex.quote(str(self._folder.tracking))

    def _last_lines(self, *, cut_short: bool) -> list[str]:
        lines = []
        if self._inbox.dropped:
            lines.append(f"W&B: {self._inbox.dropped} training rows were dropped: it was too slow")
        if self._trouble:
            lines.append(f"W&B: tracking stopped early: {self._trouble}")
        elif self._failures:
            lines.append(f"W&B: not everything was tracked: {self._failures[0]}")
        unsent = self._service is not None and bool(self._service.unsent)
        if unsent or (cut_short and self._link.online):
            lines.append(
                "W&B: not everything was uploaded, but all of it is on disk; to upload it: "
                f"wandb sync --include-online {self._quoted_folder()}/*run-*"
            )
        elif self._link.online:
            lines.append(f"W&B: {self._link.page} (group {self._sweep_name})")
        elif self._service is not None:
            lines.append(f"W&B: offline; {self._how_to_sync()}")
        return lines
