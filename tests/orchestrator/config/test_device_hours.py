"""The device-hours that a sweep is expected to take, and those that it took, in words and money."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from support.driving import LR, make
from support.sweep_events import Sweep

from orchestrator.config.device_hours import expected_lines, used_lines
from orchestrator.driver import Driver
from sweeps.config.spec import ClusterSpec, EngineSpec
from sweeps.core.ending import Cause
from sweeps.ledger.events import Attempt, End, Interrupt, Request, Start
from sweeps.ledger.history import History
from trainers.trial.task import DryRun

STEP = DryRun(rows=8, tokens=1000, peak_mb=1, checkpoint_mb=1, seconds=90.0, train_s=3.6)


def expected(devices: int = 1, price: float | None = None, **sweep: Any) -> str:
    spec, space = make({LR: "choice(1e-4, 1e-3)"}, **{"search": "grid", "trials": None, **sweep})
    engine = EngineSpec(devices_per_trial=devices)
    cluster = ClusterSpec(price_per_device_hour=price)
    (line,) = expected_lines(replace(spec, engine=engine, cluster=cluster), space, 500_000, STEP)
    return line


def test_the_expected_device_hours_follow_from_the_measured_step() -> None:
    assert expected().startswith("expected: about 1 device-hours for 2 trials at the speed of that")
    assert "about 3 device-hours for 6 trials" in expected(repeats=3)
    assert "about 2 device-hours for 2" in expected(devices=2)
    assert "about 1 device-hours (costs 2.50 at 2.5 each) for" in expected(price=2.5)
    pruner = {"pruner": "asha", "pruner_options": {"min_resource": 2}}
    assert "about 0.75 device-hours for 2 trials" in expected(**pruner)
    assert "of which asha is to save 25%" in expected(**pruner)
    assert "sweep.device_hours=0.5 ends it before" in expected(device_hours=0.5)
    assert "ends it before" not in expected(device_hours=2.0)


def test_nothing_is_expected_of_a_step_that_was_not_measured() -> None:
    spec, space = make(trials=2)
    assert expected_lines(spec, space, 500_000, replace(STEP, train_s=0.0)) == []


def lived(*moments: tuple[float, Any], **engine: Any) -> History:
    """A history of trials 0 and 1 whose events are at these seconds."""
    events = Sweep({LR: "choice(1e-4, 1e-3)"})
    events.spec["engine"] = engine
    keys = [events.trial({LR: value}, state=None, start=False) for value in (1e-4, 1e-3)]
    history = events.history()
    for time_s, told in moments:
        event = Attempt() if told is None else told(keys)
        history.apply(replace(event, time=time_s))
    return history


def start(place: int, worker: str, attempt: int = 1) -> Any:
    return lambda keys: Start(
        trial=keys[place], attempt=attempt, worker=worker, device="cpu", step=0
    )


def end(place: int, state: str = "completed") -> Any:
    return lambda keys: End(trial=keys[place], attempt=1, state=state)


def interrupt(keys: Any) -> Interrupt:
    return Interrupt(reason="SIGINT", cause="SIGNAL")


def request(keys: Any) -> Request:
    return Request(request="1", verb="set", by="ann@box", said="done")


@pytest.mark.parametrize(
    ("moments", "engine", "seconds"),
    [
        ([(2000, start(0, "a")), (2360, end(0))], {}, 360),
        ([(2000, start(0, "a")), (2100, start(1, "a")), (2360, end(0)), (2720, end(1))], {}, 720),
        ([(2000, start(0, "a")), (2000, start(1, "b")), (2360, end(0)), (2720, end(1))], {}, 1080),
        ([(2000, start(0, "a")), (2360, end(0))], {"devices_per_trial": 2}, 720),
        ([(2000, start(0, "a")), (2360, end(0))], {"gpus_per_trial": 0.5}, 180),
        # A driver dies, and another goes on an hour later.
        ([(2000, start(0, "a")), (2300, start(1, "a")), (5900, None), (6000, start(0, "b", 2)),
          (6060, end(0))], {}, 360),
        # Before the next start's own event stands what users have asked for in the meantime.
        ([(2000, start(0, "a")), (2000, start(1, "b")), (2300, interrupt), (90000, request),
          (90000, end(1, "stopped")), (90001, None), (90002, start(0, "c", 2)), (90062, end(0))],
         {}, 660),
        ([(2000, start(0, "a")), (2300, interrupt), (90000, request)], {}, 300),
    ],
)  # fmt: skip
def test_a_device_counts_while_it_has_a_trial(
    moments: list[tuple[float, Any]], engine: dict[str, Any], seconds: float
) -> None:
    history = lived(*moments, **engine)
    assert history.device_hours() == pytest.approx(seconds / 3600)


def test_a_start_that_is_not_in_the_ledger_yet_has_spent_nothing() -> None:
    """Trials of the start before seem to run until then, however long ago that was."""
    history = lived((2000, start(0, "a")), (2300, interrupt))
    history.spec = {**history.spec, "sweep": {"device_hours": 1.0}}
    driver: Any = SimpleNamespace(_history=history, _attempts=history.attempts)
    assert Driver._spent(driver, 1.0) is None
    driver._attempts -= 1
    assert Driver._spent(driver, 1.0) is Cause.DEVICE_HOURS


def test_what_still_trains_counts_until_now() -> None:
    history = lived((2000, start(0, "a")))
    assert history.device_hours(2000 + 7200) == pytest.approx(2)
    assert used_lines(history) == []
    history = lived((2000, start(0, "a")), (2000 + 7200, end(0)))
    history.spec = {**history.spec, "cluster": {"price_per_device_hour": 3.0}}
    assert used_lines(history) == [
        "Used: 2 device-hours (costs 6.00 at 3 each), over all starts.",
    ]
