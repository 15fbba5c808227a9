"""Which trial was on which device when, from the ledger's events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History

RUNNING = "running"
RETRIED = "moved or retried"
INTERRUPTED = "interrupted"
_LEAST_PAUSE_S = 60.0
_LEAST_PAUSE_SHARE = 0.05  # of the time at work: shorter pauses stay in the picture


@dataclass(frozen=True, kw_only=True)
class Span:
    """One stay of a trial on a device.

    Attributes:
        start, end: seconds since the epoch; after `without_pauses`, seconds of work.
        outcome: the state in which it ended, or `RUNNING`, `RETRIED` or `INTERRUPTED`.
    """

    trial: str
    worker: str
    device: str
    start: float
    end: float
    outcome: str

    @property
    def place(self) -> str:
        """Host and device; a worker's own number changes from start to start."""
        return f"{self.worker.rpartition(':')[0] or self.worker} {self.device}"


@dataclass
class Timeline:
    """Collects spans from the events of a ledger, one at a time."""

    spans: list[Span] = field(default_factory=list)
    _open: dict[str, Span] = field(default_factory=dict)
    _latest: float = 0.0

    def apply(self, event: Event) -> None:
        if isinstance(event, events.Attempt):  # the last word of the driver before was its end
            for key in list(self._open):
                self._close(key, INTERRUPTED)
        if event.time is not None:
            self._latest = max(self._latest, float(event.time))
        match event:
            case events.Start():
                self._close(event.trial, RETRIED)
                self._open[event.trial] = Span(
                    trial=event.trial,
                    worker=event.worker,
                    device=event.device,
                    start=self._latest,
                    end=self._latest,
                    outcome=RUNNING,
                )
            case events.Retry():
                self._close(event.trial, RETRIED)
            case events.End():
                self._close(event.trial, event.state)

    def until_now(self, history: History, now: float | None) -> list[Span]:
        """Every span; those still open run until `now`, or until the last event if no driver does.

        A span of a trial that waits at its end was interrupted.
        """
        end = self._latest if now is None else max(now, self._latest)
        still = RUNNING if now is not None else INTERRUPTED
        open_ones = [replace(span, end=end, outcome=still) for span in self._open.values()]
        known = [span for span in (*self.spans, *open_ones) if span.trial in history.trials]
        return sorted(known, key=lambda span: span.start)

    def _close(self, key: str, outcome: str) -> None:
        span = self._open.pop(key, None)
        if span is not None:
            self.spans.append(replace(span, end=self._latest, outcome=outcome))


def rows_of(spans: Sequence[Span]) -> tuple[list[int], list[str]]:
    """The row of each span, so that no two overlap in one; and the place of each row.

    A worker's lanes are rows of their own, side by side; the worker of a later start takes the rows
    of an earlier one on the same device.
    """
    taken: list[tuple[str, str, float]] = []  # of each row: its place, last worker, free from
    rows = []
    for span in spans:
        free = [i for i, (at, _, end) in enumerate(taken) if at == span.place and end <= span.start]
        own = [i for i in free if taken[i][1] == span.worker]
        row = next(iter(own or free), len(taken))
        taken[row : row + 1] = [(span.place, span.worker, span.end)]
        rows.append(row)
    order = sorted(range(len(taken)), key=lambda row: (taken[row][0], row))
    position = {row: place for place, row in enumerate(order)}
    return [position[row] for row in rows], [taken[row][0] for row in order]


def without_pauses(spans: Sequence[Span]) -> tuple[list[Span], list[tuple[float, float]]]:
    """Spans in seconds of work since the first began, and (when, how long) of what is left out.

    A sweep that waited over night would be two slivers at the edges of the picture.
    """
    busy: list[list[float]] = []
    for span in sorted(spans, key=lambda span: span.start):
        if busy and span.start <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], span.end)
        else:
            busy.append([span.start, span.end])
    if not busy:
        return [], []
    least = max(_LEAST_PAUSE_S, _LEAST_PAUSE_SHARE * sum(end - start for start, end in busy))
    cuts = []  # (from when on, seconds less)
    for (_, end), (start, _) in pairwise(busy):
        if start - end > least:
            cuts.append((start, start - end))
    origin = busy[0][0]

    def at(time: float) -> float:
        return time - origin - sum(length for start, length in cuts if time >= start)

    moved = [replace(span, start=at(span.start), end=at(span.end)) for span in spans]
    return moved, [(at(start), length) for start, length in cuts]
