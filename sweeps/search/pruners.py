"""Optuna's pruners, deciding as they do, but not looking through all trials at every report.

Optuna's own read every trial of the study each time: at ten thousand trials that is milliseconds a
report, and a single process takes the reports of all. Here what they look for is kept at hand. What
is written into the study, and each decision, are theirs; `tests/test_pruning.py` compares the two.
"""

from __future__ import annotations

import bisect
from array import array
from collections import defaultdict
from typing import Any

import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, PercentilePruner, SuccessiveHalvingPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_RUNG = "completed_rung_"  # as Optuna names what it notes in a trial


class Rungs:
    """Of one bracket: the values noted at each rung, sorted."""

    def __init__(self) -> None:
        self._values: dict[int, list[float]] = defaultdict(list)

    def read(self, trial: FrozenTrial) -> None:
        """Take what is noted in a trial already."""
        for name, value in trial.system_attrs.items():
            if name.startswith(_RUNG):
                self.note(int(name.removeprefix(_RUNG)), value)

    def note(self, rung: int, value: float) -> None:
        bisect.insort(self._values[rung], value)

    def count(self, rung: int) -> int:
        return len(self._values[rung])

    def is_among_the_best(
        self, rung: int, value: float, factor: int, direction: StudyDirection
    ) -> bool:
        """Whether a value is in the best 1/factor of its rung; the single best one always is."""
        values = self._values[rung]
        last = max(len(values) // factor, 1)  # the place of the worst that goes on
        if direction == StudyDirection.MAXIMIZE:
            return value >= values[-last]
        return value <= values[last - 1]


def climb(
    pruner: SuccessiveHalvingPruner, rungs: Rungs, study: optuna.Study, trial: FrozenTrial
) -> bool:
    """Note a trial's latest value at each rung that it has come to; True where it stops at one."""
    step = trial.last_step
    assert step is not None
    assert pruner._min_resource is not None
    value = trial.intermediate_values[step]
    noted = trial.system_attrs
    rung = next(n for n in range(step + 2) if f"{_RUNG}{n}" not in noted)
    while True:
        exponent = pruner._min_early_stopping_rate + rung
        if step < pruner._min_resource * pruner._reduction_factor**exponent:
            return False
        study._storage.set_trial_system_attr(trial._trial_id, f"{_RUNG}{rung}", value)
        rungs.note(rung, value)
        if rungs.count(rung) <= pruner._bootstrap_count:
            return True
        if not rungs.is_among_the_best(rung, value, pruner._reduction_factor, study.direction):
            return True
        rung += 1


class Halving(SuccessiveHalvingPruner):
    """Successive halving (ASHA)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._rungs: Rungs | None = None

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if trial.last_step is None:
            return False
        if self._min_resource is None:  # it is found from the first trials that complete
            return bool(super().prune(study, trial))
        if self._rungs is None:
            self._rungs = Rungs()
            for other in study.get_trials(deepcopy=False):
                self._rungs.read(other)
        return climb(self, self._rungs, study, trial)


class Brackets(HyperbandPruner):
    """Hyperband: successive halving in brackets, each trial in one that its number decides."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._rungs: dict[int, Rungs] = {}

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if trial.last_step is None:
            return False
        if not self._pruners:
            self._try_initialization(study)
        if not self._pruners:  # its resource is found from the first trials that complete
            return False
        if not self._rungs:
            self._rungs = {bracket: Rungs() for bracket in range(len(self._pruners))}
            for other in study.get_trials(deepcopy=False):
                self._rungs[self._get_bracket_id(study, other)].read(other)
        bracket = self._get_bracket_id(study, trial)
        return climb(self._pruners[bracket], self._rungs[bracket], study, trial)


class Percentile(PercentilePruner):
    """The median and other percentiles of the trials that have completed."""

    def __init__(self, percentile: float = 50.0, *more: Any, **options: Any) -> None:
        super().__init__(percentile, *more, **options)
        self._completed = 0
        self._values: dict[int, array[float]] = defaultdict(lambda: array("d"))  # by step
        self._seen = 0  # trials looked at
        self._open: list[int] = []  # of those, the ones that had not ended

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        self._look(study)
        step = trial.last_step
        if step is None or not self._completed or self._completed < self._n_startup_trials:
            return False
        if step < self._n_warmup_steps or not self._is_due(step, trial):
            return False
        there = self._values[step]
        if len(there) < max(self._n_min_trials, 1):
            return False
        is_maximized = study.direction == StudyDirection.MAXIMIZE
        best = (max if is_maximized else min)(trial.intermediate_values.values())
        percentile = 100 - self._percentile if is_maximized else self._percentile
        bound = float(np.nanpercentile(np.frombuffer(there), percentile))
        return best < bound if is_maximized else best > bound

    def _look(self, study: optuna.Study) -> None:
        """Take the values of trials that have completed since the last look."""
        trials = study.get_trials(deepcopy=False)
        self._open += range(self._seen, len(trials))
        self._seen = len(trials)
        for number in self._open:
            if trials[number].state is TrialState.COMPLETE:
                self._completed += 1
                for step, value in trials[number].intermediate_values.items():
                    self._values[step].append(value)
        self._open = [n for n in self._open if not trials[n].state.is_finished()]

    def _is_due(self, step: int, trial: FrozenTrial) -> bool:
        """Whether this is the trial's first report of the interval that it falls into."""
        since = step - (step - self._n_warmup_steps) % self._interval_steps
        return all(other < since for other in trial.intermediate_values if other != step)
