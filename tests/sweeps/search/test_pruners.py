"""Our pruners beside Optuna's: the same decisions, the same notes in the study, less to read."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import FrozenTrial, TrialState

from sweeps.search.pruners import Brackets, Halving, Percentile

REPORTS = 9
AT_ONCE = 5

PAIRS: dict[str, tuple[type[BasePruner], type[BasePruner], Mapping[str, Any]]] = {
    "halving": (Halving, SuccessiveHalvingPruner, {"min_resource": 1, "reduction_factor": 2}),
    "halving by 3, from 2": (
        Halving,
        SuccessiveHalvingPruner,
        {"min_resource": 2, "reduction_factor": 3, "min_early_stopping_rate": 1},
    ),
    "halving, some for a start": (
        Halving,
        SuccessiveHalvingPruner,
        {"min_resource": 1, "reduction_factor": 2, "bootstrap_count": 4},
    ),
    "halving, auto": (Halving, SuccessiveHalvingPruner, {"min_resource": "auto"}),
    "hyperband": (Brackets, HyperbandPruner, {"max_resource": REPORTS, "reduction_factor": 2}),
    "hyperband, auto": (Brackets, HyperbandPruner, {"reduction_factor": 3}),
    "median": (Percentile, MedianPruner, {}),
    "median, warm": (
        Percentile,
        MedianPruner,
        {"n_startup_trials": 2, "n_warmup_steps": 3, "interval_steps": 2},
    ),
    "percentile": (
        Percentile,
        PercentilePruner,
        {"percentile": 70.0, "n_startup_trials": 0, "n_min_trials": 3, "interval_steps": 3},
    ),
}


class Life:
    """Trials side by side in one study; what was decided, and what is noted."""

    def __init__(self, pruner: BasePruner, direction: str) -> None:
        self.study = optuna.create_study(
            study_name="sweep",
            direction=direction,
            pruner=pruner,
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        self.decisions: list[tuple[int, int, bool]] = []

    def live(self, seed: int, trials: int) -> None:
        draw = random.Random(seed)
        running: list[tuple[optuna.Trial, int]] = []
        asked = 0
        while running or asked < trials:
            while len(running) < AT_ONCE and asked < trials:
                running.append((self.study.ask(), 0))
                asked += 1
            trial, step = running.pop(draw.randrange(len(running)))
            step += 1
            trial.report(round(draw.random(), 1) if seed % 2 else draw.gauss(0, 1), step)
            pruned = trial.should_prune()
            self.decisions.append((trial.number, step, pruned))
            if pruned:
                self.study.tell(trial, state=TrialState.PRUNED)
            elif draw.random() < 0.03:
                self.study.tell(trial, state=TrialState.FAIL)
            elif step == REPORTS:
                self.study.tell(trial, draw.random())
            else:
                running.append((trial, step))

    def notes(self) -> list[dict[str, Any]]:
        return [dict(trial.system_attrs) for trial in self.study.trials]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("name", PAIRS)
def test_our_pruner_decides_as_optunas(name: str, seed: int, direction: str) -> None:
    ours, optunas, options = PAIRS[name]
    one, other = Life(ours(**options), direction), Life(optunas(**options), direction)
    for life in (one, other):
        life.live(seed, 60)
    assert one.decisions == other.decisions
    assert one.notes() == other.notes()
    assert {True, False} == {pruned for *_, pruned in one.decisions}


@pytest.mark.parametrize("name", ["halving", "hyperband", "median"])
def test_a_pruner_that_comes_to_a_study_later_knows_what_was_before(name: str) -> None:
    ours, optunas, options = PAIRS[name]
    one, other = Life(ours(**options), "minimize"), Life(optunas(**options), "minimize")
    for life in (one, other):
        life.live(2, 30)
    one.study.pruner = ours(**options)
    for life in (one, other):
        life.live(5, 30)
    assert one.decisions == other.decisions


@pytest.mark.parametrize("name", ["halving", "hyperband", "median"])
def test_a_report_looks_at_no_trial_that_has_ended(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much is read is counted, since time is not to be trusted on a machine that is busy."""
    ours, _, options = PAIRS[name]
    life = Life(ours(**options), "minimize")
    life.live(2, 80)
    trial, other = life.study.ask(), life.study.ask()
    trial.report(0.0, 1)
    trial.should_prune()  # it learns of those that have ended since the last report
    looked: set[int] = set()

    def look(self: FrozenTrial, field: str) -> Any:
        if field in ("system_attrs", "intermediate_values"):
            looked.add(object.__getattribute__(self, "number"))
        return object.__getattribute__(self, field)

    other.report(0.0, 1)
    monkeypatch.setattr(FrozenTrial, "__getattribute__", look)
    other.should_prune()
    monkeypatch.undo()
    assert looked <= {trial.number, other.number}
    assert looked
