"""Rebuilds an Optuna study from the ledger by adding whole trials instead of redoing each step.

Redoing every ask, report and tell costs what it cost then, and each looks at all trials before it.
A finished study is only its trials, so each is made once, with what the pruner noted in it.
Samplers that keep a state beside the trials are not rebuilt like this: `study` asks them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from sweeps.space.space import Choice, Dimension

_RUNG = "completed_rung_"  # begins what Optuna's successive halving notes in a trial


@dataclass(kw_only=True)
class Past:
    """An Optuna trial as the ledger tells it.

    Attributes:
        values: by report index.
        noted: system attributes that the pruner set when it judged the reports.
    """

    picked: Mapping[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    noted: dict[str, Any] = field(default_factory=dict)
    state: TrialState = TrialState.RUNNING
    value: float | None = None


def past_of(trial: optuna.trial.FrozenTrial) -> Past:
    """A trial of a study, without what samplers noted: they go by the space of then."""
    return Past(
        picked=trial.params,
        values=dict(trial.intermediate_values),
        noted={k: v for k, v in trial.system_attrs.items() if k.startswith(_RUNG)},
        state=trial.state,
        value=trial.value,
    )


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension in Optuna's terms."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.labels)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def rebuild(
    study: optuna.Study,
    past: Iterable[Past],
    kinds: Mapping[str, BaseDistribution],
    suggest: Callable[[optuna.Trial], object],
) -> dict[int, optuna.Trial]:
    """Add trials to an empty study; returns handles of those that still run, by number.

    Args:
        past: in the order in which the trials were asked for.
        kinds: the distribution of each dimension.
        suggest: asks a trial for the value of each of its dimensions.
    """
    running, reported = [], False
    for one in past:
        reported = reported or bool(one.values)
        if one.state is TrialState.RUNNING:
            # `ask` hands a waiting trial out as a running one, with a handle to report to.
            running.append(one)
            study.add_trial(create_trial(state=TrialState.WAITING, system_attrs=one.noted))
        else:
            study.add_trial(_finished(one, kinds))
    if reported:
        prepare_pruner(study)
    return dict(_resume(study, one, suggest) for one in running)


def prepare_pruner(study: optuna.Study) -> None:
    """Let Hyperband make its brackets, as at the first report: samplers then look at one bracket.

    A trial without a report makes it do so, and changes nothing else.
    """
    study.pruner.prune(study, create_trial(state=TrialState.RUNNING))


def _finished(one: Past, kinds: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=one.state,
        value=one.value,
        params={name: _own_type(kinds[name], label) for name, label in one.picked.items()},
        distributions={name: kinds[name] for name in one.picked},
        system_attrs=one.noted,
        intermediate_values=one.values,
    )


def _resume(
    study: optuna.Study, one: Past, suggest: Callable[[optuna.Trial], object]
) -> tuple[int, optuna.Trial]:
    """Take the next waiting trial, with the values that were picked, and report again."""
    random = optuna.samplers.RandomSampler(seed=0)
    study.sampler = optuna.samplers.PartialFixedSampler(dict(one.picked), random)
    trial = study.ask()
    suggest(trial)
    for index, value in one.values.items():
        trial.report(value, index)
    return trial.number, trial


def _own_type(kind: BaseDistribution, label: Any) -> Any:
    return kind.to_external_repr(kind.to_internal_repr(label))
