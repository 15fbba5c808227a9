"""Which checkpoints stay: the best of the best, and what an unfinished trial goes on from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.driving import LR, begin, ending, make, open_sweep, report
from support.sweep_events import Sweep

from sweeps.coordinator.coordinator import Coordinator
from sweeps.coordinator.retention import clean, kept_steps
from sweeps.core.trial import State, Trial
from sweeps.storage.run_folder import RunFolder


def on_disk(root: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for path in root.glob("trials/*/checkpoints/step-*"):
        found.setdefault(path.parent.parent.name, set()).add(int(path.name[5:]))
    return found


def add(sweep: Sweep, losses: list[float], state: str | None = "completed") -> str:
    """A trial with a checkpoint at each report, which are at steps 4, 8, 12 and 16."""
    key = sweep.trial({}, losses, None)
    for index in range(1, len(losses) + 1):
        sweep.checkpoint(key, 4 * index)
    if state is not None:
        sweep.end(key, state)
    return key


def test_the_best_checkpoint_of_the_best_trials_stays_not_the_last(tmp_path: Path) -> None:
    sweep = Sweep()
    third = add(sweep, [4.0, 3.0, 2.0, 2.5])
    first = add(sweep, [4.0, 1.0, 2.0, 3.0])
    second = add(sweep, [4.0, 3.0, 2.0, 1.5])
    assert kept_steps(sweep.history(), 2) == {first: {8}, second: {16}, third: set()}
    assert kept_steps(sweep.history(), 9) == {first: {8}, second: {16}, third: {12}}


@pytest.mark.parametrize("state", ["pruned", "diverged", "failed"])
def test_a_trial_that_was_stopped_keeps_nothing_however_good_it_was(state: str) -> None:
    sweep = Sweep()
    stopped = add(sweep, [0.1, 0.2], state)
    done = add(sweep, [4.0, 3.0, 2.0, 1.0])
    assert kept_steps(sweep.history(), 1) == {stopped: set(), done: {16}}


def test_an_unfinished_trial_keeps_its_last_two_and_its_best_and_displaces_nothing() -> None:
    sweep = Sweep()
    done = add(sweep, [4.0, 3.0, 2.0, 1.0])
    running = [add(sweep, losses, None) for losses in ([0.1, 0.3, 0.2, 0.2], [0.3, 0.2], [])]
    kept = kept_steps(sweep.history(), 1)
    assert kept == {done: {16}, running[0]: {4, 12, 16}, running[1]: {4, 8}, running[2]: set()}


def test_maximizing_keeps_the_largest() -> None:
    sweep = Sweep(direction="maximize")
    worse = add(sweep, [0.1, 0.4, 0.2, 0.2])
    better = add(sweep, [0.1, 0.2, 0.9, 0.2])
    assert kept_steps(sweep.history(), 1) == {worse: set(), better: {12}}


def test_repeats_stay_together_and_are_judged_by_their_mean_when_all_are_done() -> None:
    sweep = Sweep(repeats=2)
    keys = []
    for config, losses in enumerate(([1.0, 5.0], [2.0, 2.0], [0.5])):
        for repeat, value in enumerate(losses):
            key = sweep.trial({}, [value], None, config=config, repeat=repeat)
            sweep.checkpoint(key, 4)
            sweep.end(key, "completed")
            keys.append(key)
    kept = kept_steps(sweep.history(), 1)
    # The second config's mean is the best; the third is not judged before its other seed.
    assert [kept[key] for key in keys] == [set(), set(), {4}, {4}, {4}]


def save(coordinator: Coordinator, root: Path, trial: Trial, attempt: int, step: int) -> None:
    folder = RunFolder(root).checkpoint(trial.key, step)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"x" * 100)
    coordinator.committed(trial.key, attempt, step, 100)


def test_disk_use_does_not_grow_with_the_number_of_trials(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=12, keep=2), tmp_path)
    most = 0
    losses = {}
    for number in range(12):
        trial = coordinator.ask()
        assert trial is not None
        attempt = begin(coordinator, trial)
        losses[trial.key] = (number * 5) % 12 + 1.0
        for index in range(1, 5):
            said = report(index, losses[trial.key] + abs(index - 2))
            coordinator.report(trial.key, attempt, said)
            save(coordinator, tmp_path, trial, attempt, said.step)
            most = max(most, sum(len(steps) for steps in on_disk(tmp_path).values()))
        coordinator.end(ending(trial.key, attempt, State.COMPLETED))
    assert most <= 2 + 3  # the kept ones; the running one's best and its last two
    best = sorted(losses, key=lambda key: losses[key])[:2]
    assert on_disk(tmp_path) == {key: {4} for key in best}


def test_a_restart_removes_what_a_kill_left_behind(tmp_path: Path) -> None:
    coordinator = open_sweep(make({LR: "choice(1e-4, 1e-3)"}, search="grid"), tmp_path)
    trials = [trial for _ in range(2) if (trial := coordinator.ask())]
    attempts = [begin(coordinator, trial) for trial in trials]
    for trial, attempt in zip(trials, attempts, strict=True):
        coordinator.report(trial.key, attempt, report(1, 1.0))
        save(coordinator, tmp_path, trial, attempt, 2)
    done, running = trials
    coordinator.end(ending(done.key, attempts[0], State.DIVERGED))
    folder = RunFolder(tmp_path)
    for trial in trials:  # committed, but the kill came before it was told
        folder.checkpoint(trial.key, 4).mkdir(parents=True)
    (folder.checkpoints(running.key) / ".removing-step-000001").mkdir()
    open_sweep(make({LR: "choice(1e-4, 1e-3)"}, search="grid"), tmp_path)
    assert on_disk(tmp_path) == {running.key: {2, 4}}
    assert sorted(os.listdir(folder.checkpoints(running.key))) == ["step-000002", "step-000004"]


def test_what_is_kept_is_the_same_after_a_restart(tmp_path: Path) -> None:
    made = make({LR: "choice(1e-4, 1e-3, 1e-2)"}, search="grid", keep=1)
    coordinator = open_sweep(made, tmp_path)
    for values in ([3.0, 1.0, 2.0], [2.0, 2.5, 2.2, 2.3]):
        trial = coordinator.ask()
        assert trial is not None
        attempt = begin(coordinator, trial)
        for index, value in enumerate(values, start=1):
            coordinator.report(trial.key, attempt, report(index, value))
            save(coordinator, tmp_path, trial, attempt, 2 * index)
        if values[0] == 3.0:
            coordinator.end(ending(trial.key, attempt, State.COMPLETED))
    before = on_disk(tmp_path)
    assert sorted(before.values(), key=len) == [{4}, {2, 6, 8}]
    again = open_sweep(made, tmp_path)
    clean(RunFolder(tmp_path), again.history, 1)
    assert on_disk(tmp_path) == before
