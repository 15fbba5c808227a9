"""Killed at every point of every kind of write, and gone on with: nothing is lost or changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.witnessed import LONG, LONG_GRID, TPE, Witnessed, judge

pytestmark = pytest.mark.faults

# Point, number of the passing that is the last, and which process that is.
KILLS = [
    ("folder.rename", 1, "driver"),  # the prepared data
    ("best.rename", 1, "driver"),
    ("text.middle", 1, "driver"),  # sweep.yaml
    ("text.rename", 1, "driver"),
    ("text.before", 4, "Coordinator"),  # config.yaml, trials.csv
    ("text.middle", 3, "Coordinator"),
    ("text.after", 3, "Coordinator"),
    ("rows.before", 2, "Coordinator"),  # row_losses.npy, which the ledger's next line relies on
    ("rows.middle", 3, "Coordinator"),
    ("rows.rename", 2, "Coordinator"),
    ("rows.after", 3, "Coordinator"),
    ("ledger.before", 9, "Coordinator"),
    ("ledger.middle", 12, "Coordinator"),
    ("ledger.middle", 25, "Coordinator"),
    ("ledger.after", 18, "Coordinator"),
    ("remove.middle", 2, "Coordinator"),  # a checkpoint half removed
    ("checkpoint.before", 2, "worker"),
    ("checkpoint.middle", 3, "worker"),
    ("checkpoint.rename", 2, "worker"),
    ("checkpoint.after", 3, "worker"),
    ("batch", 8, "worker"),  # in an accumulation window
    ("step", 5, "worker"),
]


def test_killed_at_every_point_it_goes_on_from_there(
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
) -> None:
    """One sweep that is killed at one after another, and started again as often as it takes."""
    command = make(engine, *LONG_GRID, f"sweep.max_retries={len(KILLS)}", examples=LONG)
    for point, number, _ in KILLS:
        command.arm("kill", point, number)
    for _ in range(len(KILLS) + 1):
        before = command.fired
        code = command.run()
        for point, number, who in KILLS:
            if f"{point}-{number}" in command.fired - before:
                outcome = "its trials went on" if who == "worker" else f"exit {code}, went on"
                note(f"kill -9 of the {who} at {point}, passing {number}", outcome)
        if code == 0:
            break
        assert code in (1, -9), command.output
        assert "Traceback" not in command.output
    assert command.fired == {f"{point}-{number}" for point, number, _ in KILLS}
    assert command.process is not None
    assert command.process.returncode == 0, command.output
    command.kills = len(KILLS)
    verdict = judge(command, whole(engine, *LONG_GRID, examples=LONG))
    note(f"all these {len(KILLS)} kills, in one sweep", verdict)
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
