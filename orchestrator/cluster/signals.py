"""Ctrl-C and SIGTERM, as a sweep takes them, and whether anybody is left who could commit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
_LOOK_S = 0.2
_ECHO_S = 1.0  # a batch system signals every process, and its script passes the signal on
_BEAT_S = 0.5


class Signals:
    """Takes SIGINT and SIGTERM while it is entered.

    At first there is nothing to commit, and the first one leaves. After `collect` they are kept in
    `seen`, for the driver's loop.
    """

    def __init__(self) -> None:
        self.seen: list[signal.Signals] = []
        self._taken = 0.0
        self._leave: Callable[[], object] | None = None
        self._is_lost: Callable[[], bool] = bool
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        for number in SIGNAL_EXIT:
            self._old[number] = signal.getsignal(number)
        self.take_over()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def take_over(self) -> None:
        """Set our handlers; again when Ray runs, which prints a stack where SIGTERM comes."""
        for number in SIGNAL_EXIT:
            signal.signal(number, self._take)

    def collect(self, leave: Callable[[], object], is_lost: Callable[[], bool]) -> None:
        """From now on the first one is kept, and the second calls `leave`, whatever goes on.

        After the first one a thread calls `leave` as soon as `is_lost()`: a signal to the whole
        process group ends Ray's head too, a call of Ray's may then block the main thread, and Ray
        ends this process some seconds later with an exit code of its own.
        """
        self._leave, self._is_lost = leave, is_lost

    def stop_watching(self) -> None:
        """Ray is about to be stopped: that its head is gone says nothing from now on."""
        self._is_lost = bool

    @property
    def exit_code(self) -> int:
        return SIGNAL_EXIT[self.seen[0]]

    def _take(self, number: int, frame: FrameType | None) -> None:
        echo = bool(self.seen) and number == self.seen[-1] == signal.SIGTERM
        if echo and time.monotonic() - self._taken < _ECHO_S:
            return
        self._taken = time.monotonic()
        self.seen.append(signal.Signals(number))
        if self._leave is None:
            raise SystemExit(self.exit_code)
        if len(self.seen) > 1:
            self._leave()
        else:
            threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def _watch(self) -> None:
        assert self._leave is not None
        while not self._is_lost():
            time.sleep(_LOOK_S)
        self._leave()


class Heartbeat(threading.Thread):
    """Whether Ray and the Coordinator's process still answer; asks from a thread of its own.

    A signal to the whole process group (`timeout`, a batch system) ends some of Ray's processes
    too: then nobody is left to commit, or to say so, and waiting would be for ever.

    Args:
        ping: calls a method of the Coordinator that does nothing, without waiting for it.
    """

    def __init__(self, ping: Callable[[], Future[None]]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._ping = ping
        self._ray_heard = self._coordinator_heard = time.monotonic()
        self._error: Exception | None = None
        self._over = threading.Event()

    def __enter__(self) -> Heartbeat:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def run(self) -> None:
        import ray

        call = self._ping()
        while not self._over.wait(_BEAT_S):
            try:
                ray.nodes()  # blocks where Ray's head is gone, and in the end aborts the process
                self._ray_heard = time.monotonic()
                if call.done():
                    call.result()
                    self._coordinator_heard = time.monotonic()
                    call = self._ping()
            except Exception as error:
                self._error = error
                return

    def ray_silent_s(self) -> float:
        """Seconds since Ray last answered."""
        return time.monotonic() - self._ray_heard

    def silent_s(self) -> float:
        """Seconds since both last answered.

        Raises:
            ray.exceptions.RayActorError: the Coordinator's process is dead.
        """
        if self._error is not None:
            raise self._error
        return time.monotonic() - min(self._ray_heard, self._coordinator_heard)
