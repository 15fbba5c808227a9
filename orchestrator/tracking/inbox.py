"""The queue between the driver and a slow listener: never blocks who puts, never grows for ever."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """First in, first out. Events are all kept; of rows only the newest `most_rows`.

    A sweep has few events and their loss would be felt (a run that never ends), while a dropped
    training row is one point less on a curve.
    """

    def __init__(self, most_rows: int) -> None:
        self.dropped = 0  # rows
        self._most_rows = most_rows
        self._items: OrderedDict[int, T] = OrderedDict()
        self._rows: deque[int] = deque()  # tickets of the rows that wait, oldest first
        self._next_ticket = 0
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Add an event."""
        with self._changed:
            self._add(item)

    def put_row(self, item: T) -> None:
        """Add a row; where there are too many, the oldest one goes."""
        with self._changed:
            if len(self._rows) >= self._most_rows:
                del self._items[self._rows.popleft()]
                self.dropped += 1
            self._rows.append(self._next_ticket)
            self._add(item)

    def take(self, timeout_s: float) -> T | None:
        """The oldest item, or None where none came within `timeout_s`."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while not self._items:
                left_s = until - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return None
            ticket, item = self._items.popitem(last=False)
            if self._rows and self._rows[0] == ticket:
                self._rows.popleft()
            return item

    def _add(self, item: T) -> None:
        self._items[self._next_ticket] = item
        self._next_ticket += 1
        self._changed.notify()
