"""Workers whose driver is gone: they end by themselves, and change nothing before they do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

import pytest
from support.real_sweeps import of
from support.witnessed import GRID, LONG, LONG_GRID, Witnessed, is_alive, judge

from trainers.trial.checkpoint import verify

pytestmark = pytest.mark.faults


def test_workers_end_by_themselves_where_their_driver_is_gone(
    engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    command = make(engine, *LONG_GRID, examples=LONG)
    command.start()
    command.wait_for_work()
    workers = command.worker_pids()
    assert workers
    command.kill()
    took_s = command.wait_for_end_of(workers)
    done = len(command.steps())
    time.sleep(1.0)
    assert len(command.steps()) == done
    note("kill -9 of the driver: its workers", f"gone after {took_s:.1f} s")


def test_a_driver_that_is_started_at_once_does_not_meet_the_workers_of_the_last(
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
) -> None:
    command = make(engine, GRID)
    command.start()
    command.wait_for_work()
    command.kill()
    assert command.run() == 0, command.output
    assert len(of(command.events(), "attempt")) == 2
    verdict = judge(command, whole(engine, GRID))
    note("kill -9 of the driver, the same command at once", verdict)
    assert verdict.is_good, verdict


def test_a_worker_that_slept_through_its_drivers_death_changes_nothing(
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
) -> None:
    """Stopped in a trial, it wakes, if it still can, when a newer attempt has committed."""
    command = make(engine, *LONG_GRID, examples=LONG)
    command.start()
    key = command.wait_for_work()
    (start,) = of(command.events(), "start", key)
    sleeper = int(start["worker"].rpartition(":")[2])
    os.kill(sleeper, signal.SIGSTOP)
    try:
        for pid, _ in command.living():  # Ray's processes too, which would end it
            if pid != sleeper:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert command.process is not None
        command.process.wait()
        command.kills = 1
        command.start()
        command.wait_for_work()
        command.wait_until(lambda events: of(events[begin(events) :], "checkpoint", key))
        slept = is_alive(sleeper)  # else the system's hangup, for a stopped orphan, has ended it
        if slept:
            os.kill(sleeper, signal.SIGCONT)
        took_s = command.wait_for_end_of({sleeper})
        assert command.wait() == 0, command.output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(sleeper, signal.SIGKILL)
    events = command.events()
    for again in of(events[begin(events) :], "start"):
        for folder in command.run_dir.glob(f"trials/{again['trial']}/checkpoints/step-*"):
            manifest = verify(folder)
            assert manifest.attempt == again["attempt"] or manifest.step <= again["step"]
    verdict = judge(command, whole(engine, *LONG_GRID, examples=LONG))
    gone = f"gone {took_s:.1f} s after it woke" if slept else "gone with it"
    note(f"a worker that slept through its driver's death, {gone}", verdict)
    assert verdict.is_good, verdict


def begin(events: list[dict[str, object]]) -> int:
    """Where the last start of the command begins in its ledger."""
    return max(i for i, event in enumerate(events) if event["event"] == "attempt")
