"""sweep.search=quick: steps from the first rates to one whose neighbours are worse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.driving import (
    LR,
    begin,
    drive,
    drive_abreast,
    ending,
    make,
    open_sweep,
    report,
    story,
    train,
)

from orchestrator.coordinator.assignment import assignment_rules
from orchestrator.terminal.progress import planned_configs, planned_trials
from sweeps.config.spec import Spec
from sweeps.core.trial import State, Trial
from sweeps.search.samplers import search_problems
from sweeps.space.space import Space

FIRST = ({LR: 3e-4}, {LR: 1e-3})
RATES = {LR: "tag(log, interval(1e-7, 1.0))"}


def quick(space: Any = RATES, **sweep: Any) -> tuple[Spec, Space]:
    made = make(space, **{"search": "quick", "trials": 8, "first": FIRST, **sweep})
    made[0].public["sweep"].update(search="quick", first=list(made[0].sweep.first))
    return made


def best_at(rate: float) -> Any:
    """A loss that is lowest at `rate`, and lower at half of it than at twice of it."""

    def loss(trial: Trial, index: int) -> float:
        away = math.log(trial.values[LR] / rate)
        return 1 + abs(away) * (2 if away > 0 else 1) + 1 / index

    return loss


def tried(sweep: tuple[Spec, Space], root: Path, best: float) -> list[float]:
    coordinator = open_sweep(sweep, root)
    drive(coordinator, losses=best_at(best))
    assert coordinator.is_finished
    return [record.values[LR] for record in coordinator.history.trials.values()]


@pytest.mark.parametrize(
    ("best", "after"),
    [
        (3e-4, [1e-4]),
        (1e-3, [3e-3]),
        (1e-4, [1e-4, 3e-5]),
        (1e-2, [3e-3, 1e-2, 3e-2]),
        (1e-6, [1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7]),
        (1e-7, [1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7]),  # eight trials are all
    ],
)
def test_it_steps_until_the_best_lies_between_worse_ones(
    best: float, after: list[float], tmp_path: Path
) -> None:
    assert tried(quick(), tmp_path, best) == [3e-4, 1e-3, *after]


@pytest.mark.parametrize(
    ("space", "first", "best", "rates"),
    [
        ("choice(1e-5, 1e-4, 1e-3)", 1e-4, 1e-3, [1e-4, 1e-5, 1e-3]),
        ("choice(1e-5, 1e-4, 1e-3)", 1e-3, 1e-5, [1e-3, 1e-4, 1e-5]),
        ("tag(log, interval(1e-4, 2e-3))", 1e-3, 1e-2, [1e-3, 3e-4, 2e-3]),
        ("tag(log, interval(1e-4, 1e-2))", 2e-4, 2e-4, [2e-4, 1e-4, 1e-3]),
    ],
)
def test_it_stays_within_the_space(
    space: str, first: float, best: float, rates: list[float], tmp_path: Path
) -> None:
    assert tried(quick({LR: space}, first=({LR: first},)), tmp_path, best) == rates


@pytest.mark.parametrize("end", [State.DIVERGED, State.FAILED, State.PRUNED])
def test_a_trial_that_did_not_complete_is_worse_than_any(end: State, tmp_path: Path) -> None:
    coordinator = open_sweep(quick(), tmp_path)
    while trial := coordinator.ask():
        rate = trial.values[LR]
        if rate < 1e-4:
            train(coordinator, trial, best_at(rate))
            continue
        attempt = begin(coordinator, trial)
        coordinator.report(trial.key, attempt, report(1, rate))  # good until then
        coordinator.end(ending(trial.key, attempt, end, reason=f"at {rate}"))
    rates = [record.values[LR] for record in coordinator.history.trials.values()]
    assert rates == [3e-4, 1e-3, 1e-4, 3e-5, 1e-5]


@pytest.mark.parametrize("width", [1, 2, 16])
def test_it_tries_the_same_on_any_number_of_devices(width: int, tmp_path: Path) -> None:
    coordinator = open_sweep(quick(first=({LR: 3e-5}, {LR: 1e-4}), repeats=2), tmp_path)
    drive_abreast(coordinator, width)
    assert coordinator.is_finished
    by_config = coordinator.history.by_config().values()
    assert [records[0].values[LR] for records in by_config] == [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    assert {len(records) for records in by_config} == {2}


def test_it_goes_on_after_a_kill_and_knows_when_it_has_ended(tmp_path: Path) -> None:
    whole = open_sweep(quick(), tmp_path / "whole")
    drive(whole, losses=best_at(3e-3))
    for _ in range(9):
        killed = open_sweep(quick(), tmp_path / "killed")
        drive(killed, most=1, losses=best_at(3e-3))
        if trial := killed.ask():
            train(killed, trial, best_at(3e-3), stop_after=2)
        killed.close()
    assert story(killed) == story(whole)
    assert open_sweep(quick(), tmp_path / "killed").is_finished
    total = planned_trials(whole.history, planned_configs(whole.history.spec))
    assert total == len(whole.history.trials) == 4


def test_both_first_rates_train_at_once_and_no_more_are_expected() -> None:
    rules = assignment_rules(*quick(repeats=3), workers=4, lanes=1)
    assert (rules.at_once, rules.planned) == (6, 6)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"first": ()}, f"quick begins with values of its own: 'sweep.first=[{{{LR}: 3e-4}}, "),
        ({"space": {**RATES, "peft.r": "choice(4, 8)"}}, f"sweep.space searches {LR}, peft.r."),
        ({"space": {LR: "interval(0.1, 1.0)"}, "first": ({LR: 0.1},)}, "by tag(log, interval(lo"),
        ({"space": {LR: "choice(a, b)"}, "first": ({LR: "a"},)}, "a choice of numbers, or take"),
        ({"space": {}, "first": ()}, "sweep.space searches nothing."),
    ],
)
def test_what_it_cannot_search_is_refused(sweep: dict[str, Any], message: str) -> None:
    made = quick(**sweep)
    (problem,) = search_problems(made[0].sweep, made[1])
    assert message in str(problem)
