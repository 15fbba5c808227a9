"""Each verb, then kill -9 of the driver and the same command: what was asked for is still there."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable

import pytest
from support.real_sweeps import Events, of, under_way
from support.witnessed import Witnessed

from orchestrator.cli import main
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record, read_history

pytestmark = pytest.mark.faults

LR = "trainer.learning_rate"
TRIALS = 8  # of the grid
# The words, with RUN_DIR left out and TRIAL for the running trial, and what holds at the end.
VERBS: dict[str, tuple[list[str], Callable[[History, str], bool]]] = {
    "stop": (["TRIAL"], lambda h, key: h.trials[key].state is State.STOPPED),
    "finish": ([], lambda h, _: h.is_closed and not h.unfinished()),
    # It is of the start that was meant alone.
    "cancel": ([], lambda h, _: h.count(State.COMPLETED) == len(h.trials) == TRIALS),
    "set": (["sweep.max_concurrent=1"], lambda h, _: h.spec["sweep"]["max_concurrent"] == 1),
    "add": ([f"{LR}=5e-4"], lambda h, _: [r.origin for r in h.trials.values()].count("added") == 1),
    "clone": (
        ["TRIAL", f"{LR}=5e-4"],
        lambda h, key: [r.parent for r in h.trials.values()].count(key) == 1,
    ),
    "clone --warm": (
        ["TRIAL", f"{LR}=5e-4", "--warm"],
        lambda h, key: [r.state for r in warm_clones(h, key)] == [State.COMPLETED],
    ),
}


def warm_clones(history: History, key: str) -> list[Record]:
    records = history.trials.values()
    return [r for r in records if r.warm is not None and r.warm["trial"] == key]


@pytest.mark.parametrize("case", VERBS)
def test_a_verb_outlives_the_driver(
    case: str, engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    words, holds = VERBS[case]
    # What `add` and `clone` check takes seconds, of imports most: the sweep must not end in them.
    importlib.import_module("trainers.sft.trainer")
    command = make(engine, examples=2048 if case.startswith(("add", "clone")) else 1024)
    command.start()
    key = command.wait_until(under_way)
    verb = case.partition(" ")[0]
    assert main([verb, str(command.run_dir), *(key if w == "TRIAL" else w for w in words)]) == 0
    command.send(signal.SIGKILL)
    command.wait()
    assert command.run() in (0, 1), command.output  # 1: `finish` before any trial completed
    history = read_history(command.run_dir / "ledger.jsonl")
    assert holds(history, key)
    assert len(history.answered) == 1
    note(f"{case}, then kill -9 of the driver", "still there")


def test_a_trial_that_is_resumed_outlives_the_driver(
    engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    command = make(engine, examples=1024)
    command.start()
    key = command.wait_until(under_way)
    assert main(["stop", str(command.run_dir), key]) == 0
    command.wait_until(lambda events: of(events, "end", key))
    assert main(["resume", str(command.run_dir), key]) == 0
    command.send(signal.SIGKILL)
    command.wait()
    assert command.run() == 0, command.output
    record = read_history(command.run_dir / "ledger.jsonl").trials[key]
    assert (record.state, record.is_resumed) == (State.COMPLETED, True)
    first, *later = of(command.events(), "start", key)
    assert first["step"] == 0
    assert min(start["step"] for start in later) > 0  # from its checkpoint
    note("stop and resume of a trial, then kill -9 of the driver", "resumed")


@pytest.mark.parametrize("how", ["", "--now"])
def test_a_pause_outlives_the_driver_and_ends_when_asked(
    how: str, engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    command = make(engine, examples=1024)
    command.start()
    command.wait_until(under_way)
    assert main(["pause", str(command.run_dir), *how.split()]) == 0
    command.send(signal.SIGKILL)
    command.wait()
    began = len(of(command.events(), "start"))
    command.start()

    def is_on(events: Events) -> bool:
        return len(of(events, "attempt")) == 2

    command.wait_until(is_on)
    assert len(of(command.events(), "start")) == began
    assert main(["resume", str(command.run_dir)]) == 0
    assert command.wait() == 0, command.output
    history = read_history(command.run_dir / "ledger.jsonl")
    assert [each.state for each in history.trials.values()] == [State.COMPLETED] * TRIALS
    note(f"pause{how and f' {how}'}, then kill -9 of the driver", "still paused, then resumed")
