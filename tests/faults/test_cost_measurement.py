"""Killed while it measures what trials cost alone, a sweep measures what is missing, no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.real_sweeps import LR, of
from support.witnessed import Witnessed

pytestmark = pytest.mark.faults

# Two optimizers, so two measurements.
SPACE = f"sweep.space={{{LR}: choice(1e-4,1e-3), trainer.optim: choice(adamw_torch,sgd)}}"


def test_killed_while_it_measures_costs_it_goes_on_with_those_that_are_missing(
    engine: str, make: Callable[..., Witnessed], note: Callable[[str, object], None]
) -> None:
    command = make(engine, SPACE)
    command.arm("kill", "cost", 2)  # the worker, as it begins with the second
    command.start()
    command.wait_until(lambda events: of(events, "cost"))
    command.wait_until(lambda events: command.fired)
    command.kill()  # the driver, before the worker's successor has measured
    steps = command.steps()
    before = command.events()
    assert len(of(before, "cost")) == 1
    assert command.run() == 0, command.output
    events = command.events()
    assert events[: len(before)] == before
    first, second = of(events, "cost")
    assert {first["update"]["trainer.optim"], second["update"]["trainer.optim"]} == {
        "adamw_torch",
        "sgd",
    }
    assert command.steps() == steps  # no trial has trained a step more
    costs = {row["tokens_per_second"] for row in command.rows()}
    assert "" not in costs
    note("kill -9 of worker and driver in the cost measurement", f"{len(costs)} costs, steps kept")
