"""What one decision to prune costs: Optuna's pruners beside ours: python -m benchmarks.pruning

A study with so many ended trials, then 60 trials at once that report and are judged. Ours decide as
Optuna's do (`tests/test_pruning.py`), and must not grow with the number of trials.
"""

from __future__ import annotations

import random
import statistics
import time

from benchmarks.measure import machine, table

TRIALS = (1_000, 10_000)
REPORTS = 4


def main() -> None:
    import optuna
    from optuna.pruners import HyperbandPruner, MedianPruner, SuccessiveHalvingPruner

    from sweeps.search.pruners import Brackets, Halving, Percentile

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    halving = {"min_resource": 1, "reduction_factor": 2}
    hyperband = {"min_resource": 1, "max_resource": 2 * REPORTS, "reduction_factor": 2}
    rows: list[tuple[object, ...]] = [("pruner", "trials before", "Optuna's, ms", "ours, ms")]
    for trials in TRIALS:
        rows += [
            (
                "asha",
                trials,
                spent(SuccessiveHalvingPruner(**halving), trials),
                spent(Halving(**halving), trials),
            ),
            (
                "hyperband",
                trials,
                spent(HyperbandPruner(**hyperband), trials),
                spent(Brackets(**hyperband), trials),
            ),
            ("median", trials, spent(MedianPruner(), trials), spent(Percentile(), trials)),
        ]
    print(machine())
    print(table(*rows))


def spent(pruner: object, trials: int) -> str:
    """Mean of a decision, in ms: in some of Hyperband's brackets there is nothing to decide."""
    import optuna

    study = optuna.create_study(
        study_name="sweep", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    draw = random.Random(0)
    for _ in range(trials):
        trial = study.ask()
        for step in range(1, REPORTS + 1):
            trial.report(draw.random(), step)
        # As a pruner notes it where it judges the trial, which would take its time here.
        study._storage.set_trial_system_attr(trial._trial_id, "completed_rung_0", draw.random())
        study.tell(trial, draw.random())
    taken = []
    for trial in [study.ask() for _ in range(60)]:
        trial.report(draw.random(), 1)
        began = time.perf_counter()
        trial.should_prune()
        taken.append(time.perf_counter() - began)
    return f"{1000 * statistics.fmean(taken[10:]):.3f}"  # our first one reads the study, once


if __name__ == "__main__":
    main()
