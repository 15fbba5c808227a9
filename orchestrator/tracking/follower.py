"""Follows a sweep's files in the tracking process, which TrackerProcess starts.

It reads a `Job` from its stdin, and at the end of the sweep the seconds that are left. If stdin
ends before, the driver is gone, and the process leaves at once.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from orchestrator.tracking.tracker import Job, Message, Tracker, tracker_class
from sweeps.core.secrets import scrub
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.ledger import Tail

log = logging.getLogger("orchestrator.tracking.follower")  # also if it runs as __main__

_TICK_S = 0.2
_RESERVE_S = 4.0  # of the time to finish: to leave a hanging server and sum up on disk
_MOST_FAILURES = 5


class Follower(logging.Handler):
    """Gives a tracker what the sweep's files say; its warnings go to `out` like its other lines."""

    def __init__(self, job: Job, tracker: Tracker, out: BinaryIO) -> None:
        super().__init__(logging.WARNING)
        self._job = job
        self._tracker = tracker
        self._out = out
        self._ledger = Tail(job.folder.ledger)
        self._rows: dict[str, Tail] = {}
        self._ended: dict[str, float] = {}  # trial -> time.monotonic
        self._failures: list[str] = []
        self._trouble = ""  # why tracking was given up
        self._is_connected = False

    def run(self, seconds_left: queue.Queue[float]) -> None:
        """Follow the sweep until `seconds_left` says that it is over."""
        self.connect()
        timeout_s = None
        while timeout_s is None and not self._trouble:
            with suppress(queue.Empty):
                timeout_s = seconds_left.get(timeout=_TICK_S)
            self._read()
            self._try(self._tracker.tick)
        if timeout_s is not None:
            self._try(partial(self._tracker.close, max(1.0, timeout_s - _RESERVE_S)))
        self._say(is_over=True)

    def connect(self) -> None:
        """Look for the server, and say what came of it."""
        try:
            line = self._tracker.connect(self._past())
            self._is_connected = True
        except Exception as error:
            package = self._tracker.package
            is_missing = isinstance(error, ImportError)
            missing = f"{package} is not installed (pip install {package})"
            self._trouble = missing if is_missing else _first_line(error)
            line = f"{self._tracker.name}: off: {self._trouble}"
        self._say(line)

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage(), is_warning=True)

    def _past(self) -> Iterator[Event]:
        """The ledger's events that were there when the driver started this process."""
        end = self._job.tracked.get(self._ledger.path, 0)
        for event in self._ledger.events() if end else ():
            yield event
            if self._ledger.offset >= end:
                return

    def _read(self) -> None:
        """Pass on what was written since the last call."""
        for event in self._ledger.events():
            if isinstance(event, events.TrialEvent):
                # They were written before the event, and following that may take long.
                self._read_rows(event.trial)
            self._try(partial(self._tracker.on_event, event))
            match event:
                case events.Start(trial=key):
                    self._open_rows(key)
                case events.End(trial=key):
                    self._ended[key] = time.monotonic()
        for key in self._rows:
            self._read_rows(key)
        latest = time.monotonic() - self._job.patience.linger_s
        for key in [key for key, ended in self._ended.items() if ended <= latest]:
            del self._ended[key]
            self._rows.pop(key, None)

    def _read_rows(self, key: str) -> None:
        for row in self._rows[key].read() if key in self._rows else ():
            self._try(partial(self._tracker.on_row, key, row))

    def _open_rows(self, key: str) -> None:
        self._ended.pop(key, None)
        path = self._job.folder.metrics(key)
        if key not in self._rows:
            self._rows[key] = Tail(path, self._job.tracked.get(path, 0))

    def _try(self, act: Callable[[], None]) -> None:
        """Pass over what cannot be tracked; after several failures, tracking stops."""
        if self._trouble:
            return
        try:
            act()
        except Exception as error:
            self._failures.append(_first_line(error))
            name = self._tracker.name
            if len(self._failures) == 1:
                log.warning("%s: something could not be tracked: %s", name, self._failures[0])
            if len(self._failures) >= _MOST_FAILURES:
                self._trouble = self._failures[-1]
                log.warning("%s: tracking stops, training goes on. %s", name, self._trouble)

    def _say(self, text: str = "", *, is_warning: bool = False, is_over: bool = False) -> None:
        cut_short = bool(self._trouble) or not is_over
        lines = self._tracker.last_lines(cut_short=cut_short) if self._is_connected else []
        if self._trouble:
            lines = [f"{self._tracker.name}: tracking stopped early: {self._trouble}", *lines]
        elif self._failures:
            first = self._failures[0]
            lines = [f"{self._tracker.name}: not everything was tracked: {first}", *lines]
        pickle.dump(Message(text=text, is_warning=is_warning, last_lines=lines), self._out)
        self._out.flush()


def main() -> None:
    # A batch system signals every process of a job; the driver says when it is time to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not for the driver
    job: Job = pickle.load(sys.stdin.buffer)
    tracker = tracker_class(job.tracking)(job)
    follower = Follower(job, tracker, out)
    logging.getLogger("orchestrator").addHandler(follower)
    if job.only_look:
        follower.connect()
    else:
        seconds_left: queue.Queue[float] = queue.Queue()
        threading.Thread(target=_listen, args=(seconds_left,), daemon=True).start()
        follower.run(seconds_left)
    tracker.leave()
    os._exit(0)


def _listen(seconds_left: queue.Queue[float]) -> None:
    """Hear from the driver, and end with it: its end of the pipe closes, however it dies."""
    with suppress(EOFError):
        seconds_left.put(pickle.load(sys.stdin.buffer))
        sys.stdin.buffer.read()
    os._exit(1)


def _first_line(error: Exception) -> str:
    return scrub(f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    main()
