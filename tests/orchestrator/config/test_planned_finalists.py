"""`sweep.finalists` in what a sweep says of itself before and while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.driving import SMALL, drive, make, open_sweep

from orchestrator.config.command import Command
from orchestrator.config.device_hours import expected_lines
from orchestrator.config.engine_choice import planned_trials
from orchestrator.plan import plan_lines
from orchestrator.terminal import progress
from sweeps.storage.run_folder import RunFolder
from trainers.trial.task import DryRun


def test_further_seeds_of_the_best_are_counted(tmp_path: Path) -> None:
    spec, space = made = make(SMALL, search="grid", trials=None, repeats=3, finalists=2)
    assert planned_trials(spec, space) == 4 + 2 * 2
    line = plan_lines(spec, space, RunFolder(tmp_path))[0]
    assert line == "sweep made: 4 trials by grid, then 2 more seeds of the best 2"
    step = DryRun(rows=1, tokens=100, peak_mb=1, checkpoint_mb=1, seconds=1, train_s=36)
    (hours,) = expected_lines(spec, space, 1000, step)
    assert "about 0.8 device-hours for 8 trials" in hours
    coordinator = open_sweep(made, tmp_path)
    for _ in range(3):
        assert progress.planned_trials(coordinator.history, 4) == 8
        drive(coordinator, most=3)
    assert len(coordinator.history.trials) == 8
    assert progress.planned_trials(coordinator.history, 4) == 8


def test_without_further_seeds_there_are_no_finalists() -> None:
    command = Command.read(["sweep=lr_grid", "sweep.finalists=3"])
    (problem,) = command.problems
    assert str(problem) == (
        "sweep.finalists = 3: the best configs get further seeds, and sweep.repeats=1 has none: "
        "sweep.repeats=3 gives each of them three."
    )


@pytest.mark.parametrize(("finalists", "most"), [(1, 2), (3, 6)])
def test_quick_trains_as_many_at_once_as_its_finals_have(finalists: int, most: int) -> None:
    from sweeps.search.quick import abreast

    key = "trainer.learning_rate"
    spec, _ = make(
        {key: "tag(log, interval(1e-5, 1e-2))"},
        search="quick",
        first=({key: 1e-3}, {key: 3e-3}),
        repeats=3,
        finalists=finalists,
    )
    assert abreast(spec.sweep) == most
