"""Ctrl-C and SIGTERM, as a sweep takes them, and whether anybody is left who could commit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Signals:
    """Takes SIGINT and SIGTERM while it is entered.

    At first there is nothing to commit, and the first one leaves. After `collect` they are kept in
    `seen`, for the driver's loop.
    """

    def __init__(self) -> None:
        self.seen: list[signal.Signals] = []
        self._leave: Callable[[], object] | None = None
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
        """Set our handlers; again after `ray.init`, which sets one of its own for SIGTERM."""
        for number in SIGNAL_EXIT:
            signal.signal(number, self._take)

    def collect(self, leave: Callable[[], object]) -> None:
        """From now on the first one is kept, and the second calls `leave`, whatever goes on."""
        self._leave = leave

    @property
    def exit_code(self) -> int:
        return SIGNAL_EXIT[self.seen[0]]

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.seen.append(signal.Signals(number))
        if self._leave is None:
            raise SystemExit(self.exit_code)
        if len(self.seen) > 1:
            self._leave()


class Pulse:
    """Whether the Coordinator's process still answers; asks without waiting.

    A signal to the whole process group (`timeout`, a batch system) ends Ray's processes too: then
    nobody is left to commit, and waiting for it would be for ever.
    """

    def __init__(self, office: Any) -> None:
        self._office = office
        self._call = office.ping.remote()
        self._heard = time.monotonic()

    def silent_s(self) -> float:
        """Seconds since it last answered.

        Raises:
            ray.exceptions.RayActorError: it is dead.
        """
        import ray

        ready, _ = ray.wait([self._call], timeout=0)
        if ready:
            ray.get(self._call)
            self._heard = time.monotonic()
            self._call = self._office.ping.remote()
        return time.monotonic() - self._heard
