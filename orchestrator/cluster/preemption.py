"""Notices that a worker's node is about to be lost, so that its trials commit in time.

Ray drains a node that is preempted, scaled down, or whose `ray start --block` was sent SIGTERM; a
batch system may send SIGTERM to the worker itself.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_LOOK_S = 1.0


def draining_nodes() -> set[str]:
    """Ids of the nodes that Ray is about to lose; empty if Ray cannot say."""
    import ray

    try:
        return set(ray._private.state.state.get_draining_nodes())
    except (AttributeError, RuntimeError, OSError, ray.exceptions.RayError):
        return set()  # the call is no part of Ray's public interface


class DrainWatch(threading.Thread):
    """Watches in a thread whether any node of one worker drains.

    Ray tells every node of all others, so one process can watch several.
    """

    def __init__(self, *nodes: str) -> None:
        super().__init__(name="preemption", daemon=True)
        self._nodes = frozenset(nodes)
        self._seen = threading.Event()
        self.start()

    @property
    def is_preempted(self) -> bool:
        return self._seen.is_set()

    def run(self) -> None:
        while not self._seen.wait(_LOOK_S):
            if self._nodes & draining_nodes():
                self._seen.set()


class PreemptionWatch(DrainWatch):
    """Watches for SIGTERM too, in a worker's own process. Made in its main thread.

    The first SIGTERM only sets `is_preempted`; the next one goes to the handler before ours.
    """

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self._before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._before is not None:
            signal.signal(number, self._before)
        self._seen.set()
