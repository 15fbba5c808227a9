"""Whether Ray and the Coordinator still answer, as the driver is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import RpcError

from orchestrator.cluster import signals
from orchestrator.cluster.signals import Heartbeat

SOON_S = 10.0


class Coordinator:
    """Answers pings while `answers`; each ping that it was sent is kept."""

    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        self.pings: list[Future[None]] = []

    def ping(self) -> Future[None]:
        call: Future[None] = Future()
        if self.answers:
            call.set_result(None)
        self.pings.append(call)
        return call


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_BEAT_S", 0.01)
    monkeypatch.setattr("ray.nodes", list)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_while_both_answer_neither_is_silent() -> None:
    coordinator = Coordinator()
    with Heartbeat(coordinator.ping) as heartbeat:
        wait_for(lambda: len(coordinator.pings) > 5)
        assert heartbeat.silent_s() < SOON_S / 2
        assert heartbeat.ray_silent_s() < SOON_S / 2


def test_a_coordinator_that_is_busy_is_asked_once_and_its_silence_grows() -> None:
    coordinator = Coordinator(answers=False)
    with Heartbeat(coordinator.ping) as heartbeat:
        wait_for(lambda: heartbeat.silent_s() > 0.2)
        assert heartbeat.ray_silent_s() < heartbeat.silent_s()
        (call,) = coordinator.pings
        coordinator.answers = True
        call.set_result(None)
        wait_for(lambda: len(coordinator.pings) > 1)
        wait_for(lambda: heartbeat.silent_s() < 0.2)


def test_a_ray_that_hangs_is_silent_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Coordinator()
    hangs: Future[list[Any]] = Future()
    monkeypatch.setattr("ray.nodes", hangs.result)
    with Heartbeat(coordinator.ping) as heartbeat:
        wait_for(lambda: heartbeat.ray_silent_s() > 0.2)
        hangs.set_result([])
        wait_for(lambda: heartbeat.ray_silent_s() < 0.2)


def test_a_ray_that_gives_up_on_its_head_is_silent_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nodes() -> list[Any]:
        raise RpcError("Timed out while waiting for GCS to become available.")

    with Heartbeat(Coordinator().ping) as heartbeat:
        monkeypatch.setattr("ray.nodes", nodes)
        wait_for(lambda: heartbeat.ray_silent_s() > 0.2)
        assert heartbeat.silent_s() > 0.2  # raises nothing
        monkeypatch.setattr("ray.nodes", list)
        wait_for(lambda: heartbeat.ray_silent_s() < 0.2)


def test_the_death_of_the_coordinator_is_raised_where_the_driver_looks() -> None:
    coordinator = Coordinator(answers=False)
    with Heartbeat(coordinator.ping) as heartbeat:
        wait_for(lambda: coordinator.pings)
        coordinator.pings[0].set_exception(ConnectionError("the actor died"))

        def is_told() -> bool:
            try:
                heartbeat.silent_s()
            except ConnectionError:
                return True
            return False

        wait_for(is_told)
