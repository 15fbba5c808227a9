"""Out of memory: once more with half the micro-batch, the same losses, and the table says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from real_sweeps import losses, of
from witnessed import GRID, Witnessed, apart

pytestmark = pytest.mark.faults

PLAIN = "peft.lora_dropout=0"  # masks are drawn per micro-batch, and so differ with its size
Make = Callable[..., Witnessed]


def test_out_of_memory_is_tried_once_with_half_the_micro_batch(
    engine: str, make: Make, whole: Make, note: Callable[[str, object], None]
) -> None:
    command = make(engine, GRID, PLAIN)
    command.arm("oom", "batch", 9)
    assert command.run() == 0, command.output
    assert command.fired
    (retry,) = of(command.events(), "retry")
    assert retry["kind"] == "oom"
    told = "out of memory at micro-batch 4 x 2, goes on with 2 x 4"
    assert retry["reason"] == told
    assert [row["error"] for row in command.rows() if row["error"]] == [told]
    assert told in command.output
    worst = apart(losses(command.events()), losses(whole(engine, GRID, PLAIN).events()))
    note("out of memory, half the micro-batch", f"losses within {worst:.1e}")
    assert worst < 1e-5


def test_out_of_memory_twice_fails_the_trial(
    engine: str, make: Make, note: Callable[[str, object], None]
) -> None:
    command = make(engine, GRID, PLAIN, "sweep.max_same_error=9", "sweep.max_concurrent=1")
    command.arm("oom", "batch", "1+", once=False)
    assert command.run() == 1, command.output
    rows = command.rows()
    assert {row["status"] for row in rows} == {"failed"}
    assert all(row["error"].startswith("oom: ") for row in rows)
    assert all("micro-batch 2 x 4: at half the micro-batch too" in row["error"] for row in rows)
    note("out of memory again and again", "every trial failed, and says why")
