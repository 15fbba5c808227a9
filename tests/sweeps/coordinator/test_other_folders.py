"""`sweep.reuse` and `sweep.learn_from`: what other run folders give to a sweep."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.driving import (
    LR,
    MIXED,
    OPTIM,
    begin,
    drive,
    ending,
    loss,
    make,
    open_sweep,
    report,
    story,
    train,
)
from support.sweep_events import BOX, of_kind, read

from sweeps.config.spec import BudgetSpec
from sweeps.coordinator.coordinator import Coordinator
from sweeps.coordinator.other_folders import found_elsewhere
from sweeps.core.errors import SweepError
from sweeps.core.trial import State
from sweeps.ledger.events import Attempt, Known, Learnt
from sweeps.ledger.history import read_history
from sweeps.results.ranking import best
from sweeps.storage.run_folder import RunFolder

HERE = replace(BOX, data="d1", base="b1", examples=64)
GRID = {LR: "choice(1e-4, 1e-3, 1e-2)", OPTIM: "choice(sgd, adamw_torch)"}
PART = {LR: "choice(1e-3, 1e-4)"}  # with the base config's optimizer, sgd
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {"space": GRID, "trials": None},
    "tpe": {"space": MIXED, "trials": 7, "search_options": {"n_startup_trials": 3}},
    "gp": {"space": MIXED, "trials": 7, "search_options": {"n_startup_trials": 3}},
    "random": {"space": MIXED, "trials": 7},
    "cmaes": {"space": {LR: MIXED[LR], "trainer.weight_decay": "interval(0.0, 0.1)"}, "trials": 7},
    "qmc": {"space": MIXED, "trials": 7},
    "quick": {"space": {LR: MIXED[LR]}, "trials": 7, "first": ({LR: 1e-4}, {LR: 3e-4})},
}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def began(made: Any, root: Path, facts: Attempt = HERE) -> Coordinator:
    """As a driver starts a sweep: it looks at the other folders, and the Coordinator begins."""
    root.mkdir(parents=True, exist_ok=True)
    ledger = root / "ledger.jsonl"
    past = read_history(ledger) if ledger.exists() else open_sweep(made, root / "none").history
    if not ledger.exists():
        past.spec = {}
    found = found_elsewhere(replace(made[0], run_dir=str(root)), made[1], past, facts)
    coordinator = Coordinator(*made, RunFolder(root))
    coordinator.begin(facts, found)
    return coordinator


def earlier(root: Path, facts: Attempt = HERE, **sweep: Any) -> str:
    """A folder whose sweep has ended; its checkpoints lie there."""
    made = make(**{"space": PART, "search": "grid", "trials": None, **sweep})
    coordinator = began(made, root, facts)
    while trial := coordinator.ask():
        attempt = begin(coordinator, trial)
        if coordinator.claim_base(trial.key, attempt):
            coordinator.report(trial.key, attempt, report(0, 9.0))
        for index in range(1, 5):
            coordinator.report(trial.key, attempt, report(index, loss(trial, index)))
            folder = RunFolder(root).checkpoint(trial.key, 2 * index)
            folder.mkdir(parents=True)
            (folder / "weights").write_text(trial.key)
            coordinator.committed(trial.key, attempt, 2 * index, 1)
        coordinator.end(
            ending(trial.key, attempt, State.COMPLETED, totals={"seconds": 7.0, "tokens": 99})
        )
    coordinator.close()
    return str(root)


@pytest.mark.parametrize("pruner", ["none", "hyperband"])
@pytest.mark.parametrize("search", SEARCHES)
def test_finished_trials_are_taken_over_and_the_folder_is_needed_no_more(
    search: str, pruner: str, tmp_path: Path
) -> None:
    other = earlier(tmp_path / "other")
    sweep = make(search=search, pruner=pruner, **SEARCHES[search], reuse=(other,))
    whole = began(sweep, tmp_path / "whole")
    taken = [record for record in whole.history.trials.values() if record.folder]
    assert [(record.values[LR], record.state) for record in taken] == [
        (1e-3, State.COMPLETED),
        (1e-4, State.COMPLETED),
    ]
    assert taken[0].totals == {"seconds": 7.0, "tokens": 99}
    assert whole.study.trials[0].value == 0.5  # Optuna knows it as its own
    assert whole.history.base is not None
    drive(whole)

    killed = began(sweep, tmp_path / "killed")
    (tmp_path / "other").rename(tmp_path / "gone")
    for kill in itertools.count():
        if drive(killed, most=1 + kill % 2) == 0:
            break
        if trial := killed.ask():
            train(killed, trial, stop_after=2)
        killed.close()
        killed = began(sweep, tmp_path / "killed")
    assert story(killed) == story(whole)
    assert [t.state for t in killed.study.trials] == [t.state for t in whole.study.trials]
    assert TrialState.RUNNING not in [t.state for t in whole.study.trials]
    assert len(of_kind(read(tmp_path / "killed" / "ledger.jsonl"), Known)) == 2
    if search == "grid":
        assert len(whole.history.trials) == 6
        assert len(whole.study.trials) == 6


def test_its_checkpoint_comes_along_and_may_be_the_best(tmp_path: Path) -> None:
    other = earlier(tmp_path / "other", keep=1)
    sweep = make(PART, search="grid", trials=None, reuse=(other,))
    coordinator = began(sweep, tmp_path / "run")
    assert coordinator.is_finished
    found = best(coordinator.history)
    assert found is not None
    folder = RunFolder(tmp_path / "run")
    checkpoint = folder.checkpoint(found.record.key, found.report.step)
    assert (checkpoint / "weights").read_text() == found.record.key
    assert folder.trial_config(found.record.key).is_file()
    worse = next(r for r in coordinator.history.trials.values() if r.key != found.record.key)
    assert worse.checkpoints == []  # it was not kept there


def test_seeds_are_taken_over_in_their_order(tmp_path: Path) -> None:
    other = earlier(tmp_path / "other", repeats=2)
    sweep = make(PART, search="grid", trials=None, repeats=3, reuse=(other,))
    coordinator = began(sweep, tmp_path / "run")
    assert [r.repeat for r in coordinator.history.trials.values()] == [0, 0, 1, 1]
    assert drive(coordinator) == 2
    assert [r.seed for r in coordinator.history.trials.values()] == [0, 0, 1, 1, 2, 2]
    one = make(PART, search="grid", trials=None, reuse=(other,))
    drive(began(one, tmp_path / "grown"))
    coordinator = began(
        make(PART, search="grid", trials=None, repeats=2, reuse=(other,)), tmp_path / "grown"
    )
    assert len(of_kind(read(tmp_path / "grown" / "ledger.jsonl"), Known)) == 4
    assert coordinator.is_finished


@pytest.mark.parametrize(
    ("facts", "budget", "said"),
    [
        (replace(HERE, data="d2"), 64, "another data (fingerprint d1, here d2): they cannot"),
        (replace(HERE, base="b2"), 64, "another base model (fingerprint b1, here b2)"),
        (HERE, 32, "another budget (64 examples, here 32 examples)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(
    facts: Attempt, budget: int, said: str, tmp_path: Path
) -> None:
    other = earlier(tmp_path / "other")
    spec, space = make(PART, reuse=(other,))
    spec = replace(spec, sweep=replace(spec.sweep, budget=BudgetSpec(examples=budget)))
    with pytest.raises(SweepError) as refused:
        began((spec, space), tmp_path / "run", facts)
    assert said in str(refused.value)
    assert f"sweep.learn_from=[{other}]" in str(refused.value)
    for place, why in ((tmp_path / "nowhere", "is no folder"), (tmp_path, "holds no sweep")):
        with pytest.raises(SweepError, match=why):
            began(make(PART, reuse=(str(place),)), tmp_path / "run")
    with pytest.raises(SweepError, match="own folder"):
        began(make(PART, reuse=(other,)), tmp_path / "other")


def test_trials_under_other_data_are_left_there(tmp_path: Path) -> None:
    """A folder that went on with accept_changes has some of each."""
    other = earlier(tmp_path / "other", replace(HERE, data="old"))
    earlier(tmp_path / "other", space={LR: "choice(1e-3, 1e-4, 1e-2)"})
    coordinator = began(make(GRID, search="grid", trials=None, reuse=(other,)), tmp_path / "run")
    assert [r.values[LR] for r in coordinator.history.trials.values()] == [1e-2]


def test_none_that_fits_is_a_note(tmp_path: Path) -> None:
    other = earlier(tmp_path / "other")
    spec, space = make({LR: "choice(5e-4, 6e-4)"}, search="grid", trials=None, reuse=(other,))
    past = open_sweep((spec, space), tmp_path / "run").history
    past.spec = {}
    found = found_elsewhere(spec, space, past, HERE)
    assert found.known == ()
    assert found.lines == (f"taken over from {other}: none, since none is a trial of this sweep",)


def test_the_best_configs_of_other_data_are_tried_first(tmp_path: Path) -> None:
    other = earlier(
        tmp_path / "other",
        replace(HERE, data="other"),
        space={LR: "choice(1e-3, 1e-4, 5e-2)", OPTIM: "choice(adafactor, sgd)"},
        trials=4,
    )
    space = {LR: MIXED[LR], OPTIM: "choice(sgd, adamw_torch)"}
    sweep = make(space, search="tpe", trials=4, first=({LR: 2e-3},), learn_from=(other,))
    whole = began(sweep, tmp_path / "whole")
    drive(whole)
    rates = [record.values[LR] for record in whole.history.trials.values()]
    # Of adafactor, which is not searched here, the rate; the search drew sgd to it, the next best.
    assert rates[:3] == [2e-3, 1e-3, 1e-4]
    (learnt,) = of_kind(read(tmp_path / "whole" / "ledger.jsonl"), Learnt)
    assert learnt.first == ({LR: 1e-3}, {LR: 1e-3, OPTIM: "sgd"}, {LR: 1e-4})

    killed = began(sweep, tmp_path / "killed")
    (tmp_path / "other").rename(tmp_path / "gone")
    for _ in range(9):
        drive(killed, most=1)
        killed.close()
        killed = began(sweep, tmp_path / "killed")
    assert story(killed) == story(whole)


def test_a_grid_learns_nothing_from_others() -> None:
    from sweeps.search.samplers import search_problems

    spec, space = make(GRID, search="grid", trials=None, learn_from=("x",))
    (problem,) = search_problems(spec.sweep, space)
    assert str(problem).startswith("sweep.learn_from: a grid is tried whole")
