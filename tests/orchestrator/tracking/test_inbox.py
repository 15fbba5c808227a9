"""The queue between the driver and a slow listener."""

from __future__ import annotations

from orchestrator.tracking.inbox import Inbox


def test_a_full_inbox_drops_the_oldest_rows_and_no_event() -> None:
    inbox: Inbox[str] = Inbox(most_rows=2)
    inbox.put("start")
    for row in ("row 1", "row 2", "row 3"):
        inbox.put_row(row)
    inbox.put("end")
    inbox.put_row("row 4")
    taken = [inbox.take(0.0) for _ in range(5)]
    assert taken == ["start", "row 3", "end", "row 4", None]
    assert inbox.dropped == 2


def test_rows_that_were_taken_make_room() -> None:
    inbox: Inbox[int] = Inbox(most_rows=2)
    for row in range(10):
        inbox.put_row(row)
        assert inbox.take(0.0) == row
    assert inbox.dropped == 0
