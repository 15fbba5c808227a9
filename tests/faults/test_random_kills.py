"""kill -9 at random moments, of the driver, of workers and of the Coordinator, again and again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from support.witnessed import GRID, INTERVAL, TPE, Witnessed, is_alive, judge

pytestmark = pytest.mark.faults

_STEPS_A_KILL = 6  # of each trial, so that a sweep does not end before it was killed often enough
_LATEST_S = 3.0  # after the first step of a start
_STARTING_S = 12.0  # about what a start takes until its first step
_STARTS = 0.2  # share of the kills that may hit a start


@pytest.mark.parametrize("words", [(GRID,), TPE], ids=["grid", "tpe at concurrency 1"])
def test_random_kills(
    words: tuple[str, ...],
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
    request: pytest.FixtureRequest,
) -> None:
    kills = int(request.config.getoption("--kills", 6))
    steps = _STEPS_A_KILL * kills
    # Retries are for workers that die by themselves; these must not use them up.
    more = (*words, f"sweep.evaluations={steps // INTERVAL}", f"sweep.max_retries={kills}")
    command = make(engine, *more, examples=8 * steps)
    draw = random.Random(len(words))
    victims = []
    while command.kills < kills:
        if command.process is None or command.process.poll() is not None:
            assert command.process is None or command.process.returncode in (1, -9), command.output
            command.start()
        victims += kill_one(command, draw)
    if command.process is not None and command.process.poll() is None:
        assert command.wait() in (0, 1), command.output
    if command.process is None or command.process.returncode != 0:
        assert command.run() == 0, command.output
    undisturbed = whole(engine, *more, examples=8 * steps)
    verdict = judge(command, undisturbed, 1 if words is TPE else None)
    tally = ", ".join(f"{victims.count(who)} {who}" for who in sorted(set(victims)))
    name = "TPE, one at a time" if words is TPE else "grid"
    note(f"{len(victims)} random kills ({tally}), {name}", verdict)
    assert verdict.is_good, verdict


def kill_one(command: Witnessed, draw: random.Random) -> list[str]:
    """Wait for a moment, and kill the driver or one of its processes; who it was.

    It is nobody where the sweep came to an end by itself.
    """
    assert command.process is not None
    if draw.random() < _STARTS:
        time.sleep(draw.uniform(0, _STARTING_S))
    else:
        done = len(command.steps())
        while len(command.steps()) == done and command.process.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, _LATEST_S))
    if command.process.poll() is not None:
        return []
    who = draw.choice(("driver", "driver", "worker", "worker", "coordinator"))
    if who == "worker":
        pids = sorted(pid for pid in command.worker_pids() if is_alive(pid))
    else:
        pids = command.coordinator_pids() if who == "coordinator" else []
    if not pids:
        command.kill()
        return ["driver"]
    os.kill(draw.choice(pids), signal.SIGKILL)
    command.kills += 1
    return [who]
