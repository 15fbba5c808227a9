"""What one decision of Optuna's pruners costs: python -m benchmarks.pruning

A study with so many ended trials, then 60 trials at once that report and are judged. After 10,000
trials a decision may take up to 10 ms.
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

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    halving = {"min_resource": 1, "reduction_factor": 2}
    rows: list[tuple[object, ...]] = [("pruner", "trials before", "ms")]
    for trials in TRIALS:
        rows += [
            ("asha", trials, spent(SuccessiveHalvingPruner(**halving), trials)),
            ("hyperband", trials, spent(HyperbandPruner(max_resource=8, **halving), trials)),
            ("median", trials, spent(MedianPruner(), trials)),
        ]
    print(machine())
    print(table(*rows))


def spent(pruner: object, trials: int) -> str:
    """Mean of a decision, in ms: some of Hyperband's brackets have nothing to decide."""
    import optuna

    study = optuna.create_study(
        study_name="sweep", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    draw = random.Random(0)
    for _ in range(trials):
        ended = optuna.trial.create_trial(
            value=draw.random(),
            intermediate_values={step: draw.random() for step in range(1, REPORTS + 1)},
            system_attrs={"completed_rung_0": draw.random()},  # as halving notes it
        )
        study.add_trial(ended)
    taken = []
    for trial in [study.ask() for _ in range(60)]:
        trial.report(draw.random(), 1)
        began = time.perf_counter()
        trial.should_prune()
        taken.append(time.perf_counter() - began)
    return f"{1000 * statistics.fmean(taken):.3f}"


if __name__ == "__main__":
    main()
