"""Calls of the Coordinator that nobody waits for."""

from __future__ import annotations

import pickle
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.driving import SMALL, make
from support.sweep_events import BOX

from orchestrator.coordinator import handle
from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.coordinator.handle import send
from sweeps.core.errors import StaleAttemptError
from sweeps.core.trial import Decision


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorActor:
    made = CoordinatorActor(*make(SMALL), tmp_path)
    made.begin(BOX)
    return made


def test_the_answer_of_one_in_this_process_is_there_at_once(coordinator: CoordinatorActor) -> None:
    trial = coordinator.next_job("w").trial
    assert trial is not None
    attempt = coordinator.start("w", trial.key, "box:1", "cpu", 0, [])
    assert attempt is not None
    rows = [{"step": 1, "loss": 2.0}]
    assert send(coordinator.log, trial.key, attempt, rows).result(0) is Decision.CONTINUE
    late = send(coordinator.log, trial.key, attempt + 1, rows)  # raises where it is asked for
    with pytest.raises(StaleAttemptError):
        late.result(0)


class Reference:
    """As Ray's: an answer that comes later."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def future(self) -> Future[Any]:
        made: Future[Any] = Future()
        made.set_result(self.answer)
        return made


def test_an_actor_is_waited_for_unless_it_is_only_sent_to(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def get(reference: Reference) -> Any:
        waited.append(reference)
        return reference.answer

    monkeypatch.setattr("ray.get", get)
    actor = SimpleNamespace(is_done=SimpleNamespace(remote=lambda *given: Reference(given)))
    remote: Any = handle._Remote(actor)
    assert remote.is_done(1, 2) == (1, 2)
    assert len(waited) == 1
    assert send(remote.is_done, 3).result(0) == (3,)
    assert len(waited) == 1


def test_a_handle_travels_to_other_processes() -> None:
    remote: Any = pickle.loads(pickle.dumps(handle._Remote("an actor's handle")))
    assert remote._actor == "an actor's handle"
