"""Ctrl-C once: trials commit where they are. Twice: it leaves now. Then the same command."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from support.real_sweeps import of
from support.witnessed import LONG, LONG_GRID, Witnessed, judge

pytestmark = pytest.mark.faults

_AT_ONCE_S = 15.0  # Ray takes some of it to come down


def test_interrupted_once_and_twice_it_goes_on(
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
) -> None:
    command = make(engine, *LONG_GRID, examples=LONG)
    command.start()
    command.wait_for_work()
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "go on with the same command" in command.output
    committed = {event["trial"]: event["step"] for event in of(command.events(), "checkpoint")}
    done = {key: step for key, step, _ in command.steps()}
    assert done == committed  # not a step is lost

    command.start()
    command.wait_for_work()
    assert command.repeated() == 0
    command.send(signal.SIGINT)
    time.sleep(0.2)
    command.send(signal.SIGINT)
    began = time.monotonic()
    assert command.wait() == 130, command.output
    took_s = time.monotonic() - began
    assert took_s < _AT_ONCE_S
    assert "go on with the same command" in command.output
    command.kills = 1
    assert command.run() == 0, command.output
    verdict = judge(command, whole(engine, *LONG_GRID, examples=LONG))
    note(f"Ctrl-C once, then twice (gone after {took_s:.1f} s)", verdict)
    assert verdict.is_good, verdict
