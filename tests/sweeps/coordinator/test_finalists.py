"""`sweep.finalists`: the best get further seeds once the search is over; and more repeats later."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.driving import LR, begin, drive, ending, loss, make, open_sweep, report, story, train
from support.sweep_events import of_kind, read

from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.trial import State, Trial
from sweeps.ledger.events import Finalists, Removed
from sweeps.results.ranking import best, config_ranks
from sweeps.storage.requests import Request
from sweeps.storage.run_folder import RunFolder

RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
GRID = {LR: f"choice({', '.join(map(str, RATES))})"}
WIDE = {LR: "tag(log, interval(1e-5, 1e-2))"}
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {"space": GRID, "trials": None},
    "random": {"space": WIDE},
    "tpe": {"space": WIDE, "search_options": {"n_startup_trials": 3}},
    "qmc": {"space": WIDE},
    "cmaes": {"space": WIDE},
    "quick": {"space": WIDE, "first": ({LR: 1e-4}, {LR: 3e-4})},
}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def made(search: str = "grid", **sweep: Any) -> Any:
    return make(search=search, **{"trials": 7, "repeats": 3, **SEARCHES[search], **sweep})


def noisy(trial: Trial, index: int) -> float:
    """The second and third seed of the best rate are bad: it was lucky."""
    spoilt = trial.seed > 0 and abs(trial.values[LR] - 1e-3) < 1e-9
    return loss(trial, index) + 0.01 * trial.seed + 5.0 * spoilt


def seeds(coordinator: Coordinator) -> dict[float, list[int]]:
    """Rate -> the seeds that were trained."""
    found: dict[float, list[int]] = {}
    for record in coordinator.history.trials.values():
        found.setdefault(record.values[LR], []).append(record.seed)
    return found


@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
@pytest.mark.parametrize("search", SEARCHES)
def test_only_the_best_get_further_seeds_whenever_it_was_killed(
    search: str, pruner: str, tmp_path: Path
) -> None:
    sweep = made(search, pruner=pruner, finalists=2)
    whole = open_sweep(sweep, tmp_path / "whole")
    drive(whole)
    history = whole.history
    alone = [record for record in history.trials.values() if record.repeat == 0]
    assert [record.repeat for record in history.trials.values()] == [0] * len(alone) + [1, 2] * 2
    ended = [record for record in alone if record.state is State.COMPLETED]
    values = {record.config: history.value(record) or 0.0 for record in ended}
    assert history.finalists == tuple(sorted(values, key=values.__getitem__)[:2])

    for kill in itertools.count():
        killed = open_sweep(sweep, tmp_path / "killed")
        if drive(killed, most=1 + kill % 2) == 0:
            break
        if trial := killed.ask():
            train(killed, trial, stop_after=2)
        killed.close()
    assert story(killed) == story(whole)
    assert [t.state for t in killed.study.trials] == [t.state for t in whole.study.trials]
    assert TrialState.RUNNING not in [t.state for t in whole.study.trials]
    (chosen,) = of_kind(read(tmp_path / "killed" / "ledger.jsonl"), Finalists)
    assert (chosen.configs, chosen.among, chosen.most) == (history.finalists, len(alone), 2)
    assert killed.is_finished


def test_the_winner_is_the_best_mean_of_those_with_all_seeds(tmp_path: Path) -> None:
    coordinator = open_sweep(made(finalists=2), tmp_path)
    drive(coordinator, losses=noisy)
    assert seeds(coordinator) == {
        rate: [0, 1, 2] if rate in (1e-3, 3e-3) else [0] for rate in RATES
    }
    found = best(coordinator.history)
    assert found is not None
    assert found.record.values[LR] == 3e-3  # by the first seed, 1e-3 was
    ranks = config_ranks(coordinator.history)
    second, third = sorted(ranks, key=ranks.__getitem__)[1:3]
    assert len(coordinator.history.repeats(second)) == 3  # though its mean is worse
    assert len(coordinator.history.repeats(third)) == 1
    assert coordinator.study.trials[3].value == 0.5  # Optuna was told by the search


def test_more_trials_choose_anew_and_more_finalists_add_theirs(tmp_path: Path) -> None:
    space = {LR: "choice(1e-2, 1e-5, 1e-4, 3e-3, 1e-3, 3e-4)"}
    drive(open_sweep(made(space=space, trials=3, finalists=1), tmp_path))
    coordinator = open_sweep(made(space=space, trials=6, finalists=1), tmp_path)
    assert not coordinator.is_finished
    drive(coordinator)
    assert seeds(coordinator)[1e-3] == [0, 1, 2]
    assert seeds(coordinator)[1e-2] == [0, 1, 2]  # of the first choice
    assert seeds(coordinator)[3e-3] == [0]
    coordinator = open_sweep(made(space=space, trials=6, finalists=3), tmp_path)
    drive(coordinator)
    assert seeds(coordinator)[3e-3] == [0, 1, 2]
    assert coordinator.is_finished
    again = open_sweep(made(space=space, trials=6, finalists=3), tmp_path)
    assert story(again) == story(coordinator)
    assert again.ask() is None


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_more_repeats_are_trained_on_an_ended_folder(pruner: str, tmp_path: Path) -> None:
    drive(open_sweep(made(repeats=1, pruner=pruner), tmp_path))
    killed = open_sweep(made(repeats=2, pruner=pruner), tmp_path)
    assert not killed.is_finished
    assert drive(killed, most=2) == 2
    coordinator = open_sweep(made(repeats=2, pruner=pruner), tmp_path)
    drive(coordinator)
    for records in coordinator.history.by_config().values():
        completed = records[0].state is State.COMPLETED
        assert [record.repeat for record in records] == ([0, 1] if completed else [0])
    assert coordinator.is_finished
    assert [t.state for t in coordinator.study.trials].count(TrialState.RUNNING) == 0


def test_finalists_in_the_middle_of_repeats_leave_nothing_running(tmp_path: Path) -> None:
    drive(open_sweep(made(repeats=3), tmp_path), most=8)
    coordinator = open_sweep(made(repeats=3, finalists=1), tmp_path)
    drive(coordinator)
    assert [t.state for t in coordinator.study.trials].count(TrialState.RUNNING) == 0
    assert len(coordinator.history.finalists) == 1
    rebuilt = open_sweep(made(repeats=3, finalists=1), tmp_path)
    assert [t.value for t in rebuilt.study.trials] == [t.value for t in coordinator.study.trials]


def keep_files(coordinator: Coordinator, root: Path, losses: Any) -> None:
    """Train all, with a checkpoint for each report."""
    while trial := coordinator.ask():
        attempt = begin(coordinator, trial)
        for index in range(1, 5):
            coordinator.report(trial.key, attempt, report(index, losses(trial, index)))
            folder = RunFolder(root).checkpoint(trial.key, 2 * index)
            folder.mkdir(parents=True)
            coordinator.committed(trial.key, attempt, 2 * index, 1)
        coordinator.end(ending(trial.key, attempt, State.COMPLETED))


@pytest.mark.parametrize("finalists", [None, 6])
def test_the_best_checkpoint_is_one_that_is_kept(finalists: int | None, tmp_path: Path) -> None:
    """A config whose checkpoint was removed may win by the seeds that it got later."""

    def losses(trial: Trial, index: int) -> float:
        is_late = trial.values[LR] == 1e-5
        return loss(trial, index) - (9.0 if is_late and trial.seed else 0.0)

    keep_files(open_sweep(made(repeats=1, keep=1), tmp_path), tmp_path, losses)
    assert of_kind(read(tmp_path / "ledger.jsonl"), Removed)
    coordinator = open_sweep(made(repeats=3, finalists=finalists, keep=1), tmp_path)
    keep_files(coordinator, tmp_path, losses)
    found = best(coordinator.history)
    assert found is not None
    assert (found.record.values[LR], found.record.seed) == (1e-5, 1)
    assert RunFolder(tmp_path).checkpoint(found.record.key, found.report.step).is_dir()


def test_a_sweep_that_a_user_has_finished_goes_on_if_it_grows(tmp_path: Path) -> None:
    coordinator = open_sweep(made(repeats=1), tmp_path)
    drive(coordinator, most=3)
    coordinator.note(Request(name="1", verb="finish", by="me"), "it ends", trials=())
    coordinator.close()
    assert open_sweep(made(repeats=1), tmp_path).is_finished
    for _ in range(2):
        grown = open_sweep(made(repeats=2, finalists=1), tmp_path)
        assert not grown.is_finished
        assert grown.ask() is not None
        grown.close()
