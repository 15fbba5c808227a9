"""Killed at every point of every kind of write, and gone on with: nothing is lost or changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from witnessed import GRID, TPE, Witnessed, judge

pytestmark = pytest.mark.faults

ABREAST = 2
# Point, number of the passing that is the last, and which process that is.
KILLS = [
    ("folder.rename", 1, "driver"),  # the prepared data
    ("text.middle", 1, "driver"),  # sweep.yaml
    ("text.rename", 1, "driver"),
    ("text.before", 4, "coordinator"),  # config.yaml, trials.csv
    ("text.middle", 5, "coordinator"),
    ("text.after", 6, "coordinator"),
    ("ledger.before", 9, "coordinator"),
    ("ledger.middle", 12, "coordinator"),
    ("ledger.middle", 25, "coordinator"),
    ("ledger.after", 18, "coordinator"),
    ("remove.middle", 2, "coordinator"),  # a checkpoint half removed
    ("checkpoint.before", 2, "worker"),
    ("checkpoint.middle", 3, "worker"),
    ("checkpoint.rename", 2, "worker"),
    ("checkpoint.after", 3, "worker"),
    ("batch", 6, "worker"),  # in an accumulation window
    ("step", 5, "worker"),
]


@pytest.mark.parametrize(("point", "number", "who"), KILLS)
def test_killed_there_it_goes_on_from_there(
    point: str,
    number: int,
    who: str,
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
) -> None:
    command = make(engine, GRID)
    command.arm("kill", point, number)
    code = command.run()
    assert command.fired, "that point was not passed"
    command.kills = 1
    if who == "worker":
        assert code == 0, command.output
    else:
        assert code in (1, -9), command.output
        command.fault = ""
        assert command.run() == 0, command.output
    verdict = judge(command, whole(engine, GRID), ABREAST)
    note(f"kill -9 of the {who} at {point}, passing {number}", verdict)
    assert verdict.is_good, verdict


@pytest.mark.parametrize("point", ["checkpoint.after", "ledger.after"])
def test_tpe_one_at_a_time_suggests_what_it_would_have(
    point: str,
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
) -> None:
    command = make(engine, *TPE)
    command.arm("kill", point, 11 if point == "checkpoint.after" else 30)
    code = command.run()
    assert command.fired
    command.kills = 1
    if code != 0:
        command.fault = ""
        assert command.run() == 0, command.output
    verdict = judge(command, whole(engine, *TPE), 1)
    note(f"TPE, one at a time, kill -9 at {point}", verdict)
    assert verdict.is_good, verdict
