"""Out of memory: once more with half the micro-batch, the same losses, and the table says so; in a
pack once more as it is. A device that is lost: once more in another process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.real_sweeps import losses, of
from support.witnessed import GRID, Witnessed, apart

pytestmark = pytest.mark.faults

PLAIN = "peft.lora_dropout=0"  # masks are drawn per micro-batch, and so differ with its size
Make = Callable[..., Witnessed]


def test_out_of_memory_is_tried_once_with_half_the_micro_batch(
    engine: str, make: Make, whole: Make, note: Callable[[str, object], None]
) -> None:
    command = make(engine, GRID, PLAIN, "sweep.max_concurrent=1")
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


def test_no_room_in_the_pack_costs_no_retry_and_halves_nothing(
    make: Make, whole: Make, note: Callable[[str, object], None]
) -> None:
    command = make("packed", GRID, PLAIN)
    command.arm("oom", "batch", 9)
    assert command.run() == 0, command.output
    assert command.fired
    (retry,) = of(command.events(), "retry")
    assert retry["kind"] == "moved"
    assert "it waits for room" in retry["reason"]
    worst = apart(losses(command.events()), losses(whole("packed", GRID, PLAIN).events()))
    note("no room in the pack", f"losses within {worst:.1e}")
    assert worst < 1e-5


def test_a_lost_device_costs_each_of_its_trials_a_retry_and_the_process_ends(
    engine: str, make: Make, whole: Make, note: Callable[[str, object], None]
) -> None:
    command = make(engine, GRID, PLAIN)
    command.arm("lost", "batch", 9)
    assert command.run() == 0, command.output
    assert command.fired
    retries = of(command.events(), "retry")
    assert {retry["reason"] for retry in retries} == {
        "RuntimeError: CUDA error: an illegal memory access was encountered"
    }
    starts = of(command.events(), "start")
    lost = {retry["trial"] for retry in retries}
    first = {
        start["worker"] for start in starts if start["attempt"] == 1 and start["trial"] in lost
    }
    (process,) = first
    last = max(i for i, event in enumerate(command.events()) if event["event"] == "retry")
    assert process not in {start["worker"] for start in of(command.events()[last:], "start")}
    worst = apart(losses(command.events()), losses(whole(engine, GRID, PLAIN).events()))
    note("a lost device", f"{len(retries)} trials tried again, losses within {worst:.1e}")
    assert worst < 1e-5
