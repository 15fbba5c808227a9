"""kill -9 at random moments, of the driver, of workers and of the Coordinator, again and again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from real_sweeps import of, under_way
from witnessed import GRID, TPE, Witnessed, is_alive, judge

pytestmark = pytest.mark.faults

EXAMPLES = 8 * 48  # longer than the others, so that there is something to kill
_LATEST_S = 4.0  # after the first step of a start


@pytest.mark.parametrize(
    ("words", "abreast"), [((GRID,), 2), (TPE, 1)], ids=["grid", "tpe at concurrency 1"]
)
def test_random_kills(
    words: tuple[str, ...],
    abreast: int,
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> None:
    kills = int(request.config.getoption("--kills", 6))
    # Retries are for workers that die by themselves; these must not use them up.
    more = (*words, "sweep.evaluations=24", f"sweep.max_retries={kills}")
    undisturbed = whole(engine, *more, examples=EXAMPLES)
    command = make(engine, *more, examples=EXAMPLES)
    draw = random.Random(len(words))
    victims = []
    while command.kills < kills:
        if command.process is None or command.process.poll() is not None:
            if command.process is not None and command.process.returncode == 0:
                break  # it ended before it was killed often enough
            command.start()
        done = len(command.steps())
        while len(command.steps()) == done and command.process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, _LATEST_S))
        victims.append(kill_one(command, draw))
    if command.process is not None and command.process.poll() is None:
        assert command.wait() in (0, 1), command.output
    for _ in range(2):
        if command.process is not None and command.process.returncode != 0:
            command.run()
    assert command.process is not None
    assert command.process.returncode == 0, command.output
    verdict = judge(command, undisturbed, abreast)
    tally = ", ".join(f"{victims.count(who)} {who}" for who in sorted(set(victims)))
    note(f"{command.kills} random kills ({tally}), {words[-1][:12]}", verdict)
    assert verdict.is_good, verdict


def kill_one(command: Witnessed, draw: random.Random) -> str:
    """Kill the driver, or one of the processes that train."""
    who = draw.choice(("driver", "driver", "worker"))
    workers = sorted(pid for pid in command.worker_pids() if is_alive(pid))
    if who == "worker" and workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
        command.kills += 1
        return "worker"
    command.kill()
    return "driver"


def test_workers_end_by_themselves_where_their_driver_is_gone(
    engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    command = make(engine, GRID, examples=EXAMPLES)
    command.start()
    command.wait_until(under_way)
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
    command.wait_until(under_way)
    command.kill()
    assert command.run() == 0, command.output
    assert len(of(command.events(), "attempt")) == 2
    verdict = judge(command, whole(engine, GRID), 2)
    note("kill -9 of the driver, the same command at once", verdict)
    assert verdict.is_good, verdict
