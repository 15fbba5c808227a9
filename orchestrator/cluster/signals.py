"""Handles Ctrl-C and SIGTERM, and checks whether Ray and the Coordinator still answer."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any, NoReturn

SIGNAL_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
_LOOK_S = 0.002  # Ray ends this process with code 1 as soon as it uses a raylet that is gone
_ECHO_S = 1.0  # a batch system signals every process, and its script passes the signal on
_BEAT_S = 0.5
ANSWER_S = 3.0  # for a question to Ray that is under way when Ray is to be stopped


class Signals:
    """Takes SIGINT and SIGTERM while it is entered, if that is in the main thread.

    Before `collect` there is nothing to commit, and the first signal leaves at once. After it,
    signals are kept in `seen`, for the driver's loop.

    Args:
        ends_process: leaving at once ends the process; if not, it raises SystemExit in the main
            thread, for a caller whose process goes on.
    """

    def __init__(self, *, ends_process: bool = True) -> None:
        self.seen: list[signal.Signals] = []
        self.ends_process = ends_process
        self._taken = 0.0
        self._leave: Callable[[], object] | None = None
        self._is_lost: Callable[[], bool] = bool
        self._is_over = threading.Event()
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if _is_main():  # no other thread may set handlers; there, signals are the caller's
            for number in SIGNAL_EXIT:
                self._old[number] = signal.getsignal(number)
            self.take_over()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_watching()
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def take_over(self) -> None:
        """Set our handlers; again once Ray runs, whose handler of SIGTERM prints a stack."""
        for number in self._old:
            signal.signal(number, self._take)

    def collect(self, leave: Callable[[], object], is_lost: Callable[[], bool]) -> None:
        """From now on keep the first signal; the second calls `leave` at once.

        After the first a thread calls `leave` as soon as `is_lost()`: a signal to the whole
        process group ends Ray's head too, a call of Ray's may then block the main thread, and Ray
        ends this process some seconds later with an exit code of its own.
        """
        self._leave, self._is_lost = leave, is_lost

    def stop_watching(self) -> None:
        """Ignore from now on that Ray's head is gone, since Ray is about to be stopped."""
        self._is_over.set()

    def leave(self) -> NoReturn:
        """End the process, or the main thread's sweep, with the exit code of the last signal."""
        code = SIGNAL_EXIT[self.seen[-1]]
        if self.ends_process:
            os._exit(code)
        if not _is_main():
            _thread.interrupt_main()  # it comes here, too
        raise SystemExit(code)

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
            if len(self.seen) == 1:  # not by print, which this may have interrupted
                os.write(2, b"\n%b: no trial was started.\n" % self.seen[0].name.encode())
            raise SystemExit(self.exit_code)
        if len(self.seen) > 1:
            self._leave()
        else:
            threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def _watch(self) -> None:
        assert self._leave is not None
        while not self._is_over.wait(_LOOK_S):
            if self._is_lost() and not self._is_over.is_set():
                self._leave()
                return


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


class Heartbeat(threading.Thread):
    """Asks in a thread whether Ray and the Coordinator's process still answer.

    A signal to the whole process group (`timeout`, a batch system) ends some of Ray's processes
    too: then no process is left that could commit, and waiting would never end.

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
        # If Ray is stopped amid a question, the question ends the process a minute later.
        self.join(ANSWER_S)

    def run(self) -> None:
        import ray

        call = self._ping()
        while not self._over.wait(_BEAT_S):
            try:
                ray.nodes()  # blocks if Ray's head is gone, and in the end aborts the process
            except ray.exceptions.RayError:
                continue  # its head is gone: silent
            self._ray_heard = time.monotonic()
            try:
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
