"""Each verb, then kill -9 of the driver and the same command: what was asked for is still there."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from support.real_sweeps import Events, of, under_way
from support.witnessed import Witnessed

from orchestrator.cli import main
from sweeps.core.trial import State
from sweeps.ledger.history import History, read_history

pytestmark = pytest.mark.faults

LR = "trainer.learning_rate"
# The words after RUN_DIR, TRIAL for the running trial, and what holds of the history at the end.
VERBS: dict[str, tuple[list[str], Callable[[History, str], bool]]] = {
    "stop": (["TRIAL"], lambda h, key: h.trials[key].state is State.STOPPED),
    "finish": ([], lambda h, _: h.is_closed and not h.unfinished()),
    "set": (["sweep.max_concurrent=1"], lambda h, _: h.spec["sweep"]["max_concurrent"] == 1),
    "add": ([f"{LR}=3e-4"], lambda h, _: [r.origin for r in h.trials.values()].count("added") == 1),
    "clone": (
        ["TRIAL", f"{LR}=3e-4"],
        lambda h, key: [r.parent for r in h.trials.values()].count(key) == 1,
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_outlives_the_driver(
    verb: str, engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    words, holds = VERBS[verb]
    command = make(engine, examples=256)
    command.start()
    key = command.wait_until(under_way)
    assert main([verb, str(command.run_dir), *(key if w == "TRIAL" else w for w in words)]) == 0
    command.send(signal.SIGKILL)
    command.wait()
    assert command.run() in (0, 1), command.output  # 1: `finish` before any trial completed
    assert holds(read_history(command.run_dir / "ledger.jsonl"), key)
    note(f"{verb}, then kill -9 of the driver", "still there")


def test_a_pause_outlives_the_driver_and_ends_when_asked(
    engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    command = make(engine, examples=256)
    command.start()
    command.wait_until(under_way)
    assert main(["pause", str(command.run_dir), "--now"]) == 0
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
    note("pause --now, then kill -9 of the driver", "still paused, then resumed")
