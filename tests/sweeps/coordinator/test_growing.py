"""A sweep that grows on its folder: a wider space, killed before, at and after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.driving import LR, OPTIM, drive, make, open_sweep, story, train

from sweeps.coordinator.coordinator import Coordinator
from sweeps.storage.run_folder import RunFolder

DECAY = "trainer.weight_decay"
NARROW, WIDE = "tag(log, interval(1e-4, 1e-3))", "tag(log, interval(1e-5, 1e-2))"
OPTIONS, MORE = "choice(sgd, adamw_torch)", "choice(lion, adamw_torch, sgd)"
MIXED = {LR: NARROW, OPTIM: OPTIONS}, {LR: WIDE, OPTIM: MORE}
RATES = {LR: NARROW, DECAY: "interval(0.0, 0.1)"}, {LR: WIDE, DECAY: "interval(0.0, 0.2)"}
SPACES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "grid": (
        {LR: "choice(1e-4, 1e-3)", OPTIM: OPTIONS},
        {LR: "choice(1e-5, 1e-4, 1e-3)", OPTIM: MORE},
    ),
    "random": MIXED,
    "tpe": MIXED,
    "gp": RATES,
    "cmaes": RATES,
    "qmc": MIXED,
    "quick": ({LR: NARROW}, {LR: WIDE}),
}
OPTIONS_OF = {
    "tpe": {"n_startup_trials": 3},
    "gp": {"n_startup_trials": 3, "deterministic_objective": True},
}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def small_and_grown(search: str, **sweep: Any) -> list[Any]:
    """The sweep as it began, and as it grew."""
    first = ({LR: 2e-4}, {LR: 5e-4}) if search == "quick" else ()
    trials = (None, None) if search == "grid" else (5, 9)
    settings = {"search_options": OPTIONS_OF.get(search, {}), "first": first, **sweep}
    return [
        make(space, search=search, trials=many, **settings)
        for space, many in zip(SPACES[search], trials, strict=True)
    ]


def half_done(coordinator: Coordinator, most: int) -> None:
    """Train some, and die with two reports of the next."""
    drive(coordinator, most=most)
    if trial := coordinator.ask():
        train(coordinator, trial, stop_after=2)
    coordinator.close()


@pytest.mark.parametrize("pruner", ["none", "hyperband"])
@pytest.mark.parametrize("search", SPACES)
def test_it_replays_to_the_same_decisions_whenever_it_was_killed(
    search: str, pruner: str, tmp_path: Path
) -> None:
    small, grown = small_and_grown(search, pruner=pruner)
    half_done(open_sweep(small, tmp_path / "whole"), 3)
    whole = open_sweep(grown, tmp_path / "whole")
    drive(whole)

    half_done(open_sweep(small, tmp_path / "killed"), 1)
    killed = open_sweep(small, tmp_path / "killed")
    train(killed, killed.ask())
    half_done(killed, 1)
    Coordinator(*grown, RunFolder(tmp_path / "killed")).close()  # before the ledger says so
    open_sweep(grown, tmp_path / "killed").close()
    for most in (1, 2):
        half_done(open_sweep(grown, tmp_path / "killed"), most)
    killed = open_sweep(grown, tmp_path / "killed")
    drive(killed)
    assert story(killed) == story(whole)
    assert [trial.state for trial in killed.study.trials] == [t.state for t in whole.study.trials]
    assert TrialState.RUNNING not in [trial.state for trial in killed.study.trials]
    assert killed.is_finished
    # Optuna knows all trials in the space as it is now.
    for name in SPACES[search][1]:
        kinds = {repr(t.distributions[name]) for t in killed.study.trials if name in t.params}
        assert len(kinds) == 1


def test_a_grid_gets_more_cells_and_trains_none_twice(tmp_path: Path) -> None:
    small, grown = small_and_grown("grid")
    drive(open_sweep(small, tmp_path / "grown"))
    one = open_sweep(grown, tmp_path / "grown")
    assert not one.is_finished
    assert drive(one) == 9 - 4
    at_once = open_sweep(grown, tmp_path / "at_once")
    drive(at_once)
    assert one.history.trials.keys() == at_once.history.trials.keys()
    values = [tuple(record.values.values()) for record in one.history.trials.values()]
    assert values[4:6] == [(1e-5, "lion"), (1e-5, "adamw_torch")]  # as it is written now
    assert len(one.study.trials) == 9
    assert open_sweep(grown, tmp_path / "grown").ask() is None


def test_what_was_suggested_before_lies_in_the_space_of_its_time(tmp_path: Path) -> None:
    small, grown = small_and_grown("tpe")
    drive(open_sweep(small, tmp_path))
    coordinator = open_sweep(grown, tmp_path)
    drive(coordinator)
    values = [dict(record.values) for record in coordinator.history.trials.values()]
    assert all(1e-4 <= each[LR] <= 1e-3 and each[OPTIM] != "lion" for each in values[:5])
    assert any(not 1e-4 <= each[LR] <= 1e-3 or each[OPTIM] == "lion" for each in values[5:])
