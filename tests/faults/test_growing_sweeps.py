"""Killed where a sweep grows, chooses finalists, or takes over what other folders know."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from support.real_sweeps import LR, SCHEDULE, losses, of
from support.witnessed import BOUND, GRID, TPE, Witnessed, apart, judge, winner

pytestmark = pytest.mark.faults

Make = Callable[..., Witnessed]
Note = Callable[[str, object], None]
PART = f"sweep.space={{{LR}: choice(1e-4,1e-2), {SCHEDULE}: choice(cosine)}}"
FINALS = (GRID, "sweep.repeats=2", "sweep.finalists=1")
FIRST = (*TPE, f"sweep.first=[{{{LR}: 3e-3}}, {{{LR}: 1e-3, {SCHEDULE}: constant}}]")


def go_on(command: Witnessed, *words: str) -> None:
    """Start it as often as it is killed, and once more."""
    armed = command.fault.count(";")
    for _ in range(armed + 1):
        code = command.run(*words)
        if code == 0:
            break
        assert code in (1, -9), command.output
        assert "Traceback" not in command.output
        command.kills += 1
    assert len(command.fired) == armed
    assert command.process is not None
    assert command.process.returncode == 0, command.output


def line_of(command: Witnessed, kind: str) -> int:
    """The number of the first line of this kind in the ledger."""
    return [event["event"] for event in command.events()].index(kind) + 1


def test_killed_as_its_space_grows(engine: str, make: Make, whole: Make, note: Note) -> None:
    command = make(engine)
    assert command.run(PART) == 0, command.output
    for point in ("ledger.before", "ledger.after"):  # of the line that says so
        command.arm("kill", point, 1)
    go_on(command, GRID)
    verdict = judge(command, whole(engine, GRID))
    note("kill -9 of the Coordinator before and after its space grew", verdict)
    assert verdict.is_good, verdict


def test_killed_as_finalists_are_chosen(engine: str, make: Make, whole: Make, note: Note) -> None:
    reference = whole(engine, *FINALS)
    (chosen,) = of(reference.events(), "finalists")
    command = make(engine, *FINALS)
    command.arm("kill", "ledger.after", line_of(reference, "finalists"))
    go_on(command)
    assert of(command.events(), "finalists")[0]["configs"] == chosen["configs"]
    verdict = judge(command, reference)
    note("kill -9 of the Coordinator as it chose finalists", verdict)
    assert verdict.is_good, verdict


def test_killed_as_trials_are_taken_over(engine: str, make: Make, whole: Make, note: Note) -> None:
    """The folder that they came from is gone when it goes on."""
    reference = whole(engine, GRID)
    command = make(engine, GRID)
    other = command.root / "other"
    shutil.copytree(whole(engine, PART).run_dir, other)
    reuse = f"sweep.reuse=[{other}]"
    command.arm("kill", "ledger.after", 5)  # the sweep, its start, a trial, the base, a trial
    assert command.run(reuse) != 0
    assert command.fired
    shutil.rmtree(other)
    command.fault = ""
    assert command.run(reuse) == 0, command.output
    taken = {event["trial"] for event in of(command.events(), "known")}
    expected = losses(reference.events())
    trained = {key for key, _, _ in command.steps()}
    assert len(taken) == 2
    assert trained == expected.keys() - taken
    rest = {key: expected[key] for key in trained}
    assert apart(losses(command.events()), rest) <= BOUND[engine]
    assert winner(command) == winner(reference)
    note("kill -9 as trials were taken over, whose folder is gone", "2 of 4 trained, all ranked")


def test_killed_as_known_good_configs_are_tried(
    engine: str, make: Make, whole: Make, note: Note
) -> None:
    command = make(engine, *FIRST)
    command.arm("kill", "ledger.after", 3)  # the first ask
    command.arm("kill", "ledger.after", 20)
    go_on(command)
    verdict = judge(command, whole(engine, *FIRST), 1)
    note("kill -9 as configs of sweep.first are tried", verdict)
    assert verdict.is_good, verdict
