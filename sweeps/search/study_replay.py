"""An Optuna study as the ledger tells it, made trial by trial and not step by step.

Doing every ask, report and tell again costs what it cost then, and more: each looks at all trials
before it. A finished study is only its trials, so here each is put together whole and added once.
Two things are more than what the ledger says: the rungs that successive halving notes in a trial
(`rungs`), and the state of the samplers that keep one (`sweeps.search.study` replays those).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from sweeps.space.space import Choice, Dimension


@dataclass(kw_only=True)
class Past:
    """An Optuna trial as far as the ledger tells it."""

    number: int
    picked: Mapping[str, Any]
    values: dict[int, float] = field(default_factory=dict)  # by report index
    state: TrialState = TrialState.RUNNING
    value: float | None = None


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's terms."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.labels)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def can_rebuild(pruner: BasePruner) -> bool:
    """Whether `rungs` knows what this pruner notes in the trials.

    Not where it finds its own resource from the first trials: that depends on when it was asked.
    """
    if isinstance(pruner, HyperbandPruner):
        return isinstance(pruner._max_resource, int)
    return not isinstance(pruner, SuccessiveHalvingPruner) or pruner._min_resource is not None


def add(
    study: optuna.Study,
    past: Past,
    kinds: Mapping[str, BaseDistribution],
    evaluations: int,
) -> None:
    """Add a trial to the study, as it would have become there.

    Args:
        kinds: the distribution of each dimension.
        evaluations: reports of a trial; the last one is never judged.
    """
    now = datetime.now()
    frozen = FrozenTrial(
        number=past.number,
        trial_id=past.number,
        state=past.state,
        value=past.value,
        values=None,
        datetime_start=now,
        datetime_complete=None if past.state is TrialState.RUNNING else now,
        params={name: _own_type(kinds[name], label) for name, label in past.picked.items()},
        distributions={name: kinds[name] for name in past.picked},
        user_attrs={},
        system_attrs={},
        intermediate_values=past.values,
    )
    frozen.system_attrs = dict(rungs(study, frozen, evaluations))
    study.add_trial(frozen)


def rungs(study: optuna.Study, trial: FrozenTrial, evaluations: int) -> Iterator[tuple[str, float]]:
    """What successive halving has noted in a trial: its value at each rung that it came to.

    A trial comes to rung r with its report number min_resource * reduction_factor ** (rate + r);
    one that is not promoted there is stopped, and so has no later report.
    """
    pruner = _halving(study, trial)
    if pruner is None or pruner._min_resource is None:
        return
    rung = 0
    while True:
        exponent = pruner._min_early_stopping_rate + rung
        step = pruner._min_resource * pruner._reduction_factor**exponent
        if step >= evaluations or step not in trial.intermediate_values:
            return
        yield f"completed_rung_{rung}", trial.intermediate_values[step]
        rung += 1


def _halving(study: optuna.Study, trial: FrozenTrial) -> SuccessiveHalvingPruner | None:
    pruner = study.pruner
    if isinstance(pruner, HyperbandPruner):
        if not pruner._pruners:
            pruner._try_initialization(study)
        return pruner._pruners[pruner._get_bracket_id(study, trial)]
    return pruner if isinstance(pruner, SuccessiveHalvingPruner) else None


def _own_type(kind: BaseDistribution, label: Any) -> Any:
    return kind.to_external_repr(kind.to_internal_repr(label))
