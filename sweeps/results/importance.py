"""Measures the effect of each searched key on loss, speed and memory, value by value.

Plain means mislead if the other keys were not tried alike: pruning removes the bad partners of
one value and leaves those of another, and TPE tries good values together. So each value also
has an adjusted mean, from a fit in which every key adds its own part (a main-effects model).
"""

from __future__ import annotations

import itertools
import json
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results.ranking import dimension_keys
from sweeps.results.trials_csv import Row, ranked
from sweeps.space.space import is_number

if TYPE_CHECKING:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

_Groups = list[tuple[tuple[Any, ...], list[Row]]]  # a level's values and its rows
Levels = Sequence[Sequence[int]]  # of one key: the trials that had each of its values

MAX_BINS = 4  # of a continuous key
MAX_LEVELS = 8  # more different numbers than this are binned too
FEWEST_FOR_IMPORTANCE = 8  # completed trials; below, shares move more by chance than by the knob


@dataclass(frozen=True, kw_only=True)
class Level:
    """A knob's value (or range of values) and the results of the trials that had it.

    Attributes:
        values: the value, or the lowest and the highest of a range.
        trials: completed ones; every mean is over these, and None if there is none.
        pruned, stopped, diverged, failed: trials that ended early with this value.
        mean: of the value ranked; `best` is the best of them.
        adjusted: the mean if the other knobs had been tried alike with every value of this one.
    """

    values: tuple[Any, ...]
    trials: int
    pruned: int
    stopped: int
    diverged: int
    failed: int
    mean: float | None
    best: float | None
    adjusted: float | None
    tokens_per_second: float | None
    peak_memory_mb: float | None
    optimizer_state_mb: float | None


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One knob; `range` is the adjusted mean of its worst level less that of its best."""

    name: str
    keys: tuple[str, ...]  # set together, if there are several
    levels: tuple[Level, ...]
    range: float


def effects(history: History, rows: Sequence[Row] | None = None) -> list[Effect]:
    """Every knob that took more than one value in trials that ended; the largest effect first.

    A conditional key counts only the trials in which it was active. `rows` are those of
    `ranked(history)`, if the caller has them.
    """
    ended = [
        row
        for row in (rows or ranked(history))
        if row.status.is_finished() and history.trials[row.key].warm is None
    ]
    dimensions = dimension_keys(history)
    grouped: dict[str, _Groups] = {}
    for name, keys in dimensions.items():
        groups = _groups([row for row in ended if all(key in row.values for key in keys)], keys)
        if len(groups) > 1:
            grouped[name] = groups
    adjusted = _adjusted(grouped)
    pick = min if history.direction == "minimize" else max
    found = []
    for name, groups in grouped.items():
        levels = tuple(
            _level(values, rows, mean, pick)
            for (values, rows), mean in zip(groups, adjusted[name], strict=True)
        )
        means = [mean for mean in adjusted[name] if mean is not None]
        reach = max(means) - min(means) if means else 0.0
        found.append(Effect(name=name, keys=dimensions[name], levels=levels, range=reach))
    return sorted(found, key=lambda effect: -effect.range)


def importance(study: optuna.Study) -> dict[str, float] | None:
    """Each dimension's share of what sets the best trials apart (PED-ANOVA), the largest first.

    With 50 trials or more these are the shares of optuna-dashboard; see `compared_share`.
    None if `why_no_importance` has a reason.
    """
    if why_no_importance(study) is not None:
        return None
    from optuna.importance import get_param_importances

    shares = get_param_importances(study, evaluator=importance_evaluator(study))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def importance_evaluator(study: optuna.Study) -> PedAnovaImportanceEvaluator:
    """PED-ANOVA, which compares the best completed trials with all, and wants five best or more."""
    from optuna.importance import PedAnovaImportanceEvaluator

    share = compared_share(len(_completed(study)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is experimental
        return PedAnovaImportanceEvaluator(target_quantile=share)


def compared_share(trials: int) -> float:
    """The share of the trials that importance calls the best, and compares with all.

    optuna-dashboard takes a tenth of any number. PED-ANOVA wants five of them or more, and of 8
    trials a tenth is one.
    """
    return min(0.5, max(0.1, 5 / trials))


def why_no_importance(study: optuna.Study) -> str | None:
    """Why importance cannot be computed; None if it can."""
    trials = _completed(study)
    if len(trials) < FEWEST_FOR_IMPORTANCE:
        return (
            f"importance needs {FEWEST_FOR_IMPORTANCE} completed configs; there are {len(trials)}"
        )
    if len({trial.value for trial in trials}) < 2:
        return "every completed config came to the same value"
    varied: dict[str, set[Any]] = {}
    for trial in trials:
        for name, value in trial.params.items():
            varied.setdefault(name, set()).add(value)
    if sum(len(values) > 1 for values in varied.values()) < 2:
        return "fewer than two knobs varied"
    return None


def _completed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _groups(rows: Sequence[Row], keys: tuple[str, ...]) -> _Groups:
    """Rows by what `keys` were set to: numbers ascending or in bins, others by their text."""
    by_value: dict[str, tuple[tuple[Any, ...], list[Row]]] = {}
    for row in rows:
        chosen = tuple(row.values[key] for key in keys)
        by_value.setdefault(json.dumps(chosen), (chosen, []))[1].append(row)
    groups = list(by_value.values())
    if all(is_number(part) for chosen, _ in groups for part in chosen):
        groups.sort(key=lambda group: group[0])
        all_differ = len(groups) > MAX_BINS and all(len(members) == 1 for _, members in groups)
        many = len(groups) > MAX_LEVELS or all_differ
        return _binned(groups) if len(keys) == 1 and many else groups
    return sorted(groups, key=lambda group: json.dumps(group[0]))


def _binned(groups: _Groups) -> _Groups:
    """Neighbouring values in at most MAX_BINS bins of about as many trials; a value stays whole."""
    total = sum(len(rows) for _, rows in groups)
    before = itertools.accumulate((len(rows) for _, rows in groups), initial=0)
    bins: dict[int, list[tuple[Any, list[Row]]]] = {}
    for (chosen, rows), start in zip(groups, before, strict=False):
        middle = start + len(rows) / 2
        bins.setdefault(int(middle * MAX_BINS / total), []).append((chosen[0], rows))
    return [
        (
            tuple(dict.fromkeys((members[0][0], members[-1][0]))),
            [r for _, rs in members for r in rs],
        )
        for members in bins.values()
    ]


def _adjusted(grouped: Mapping[str, _Groups]) -> dict[str, list[float | None]]:
    losses = {
        row.number: row.value
        for groups in grouped.values()
        for _, rows in groups
        for row in rows
        if row.status is State.COMPLETED and row.value is not None
    }
    members = {
        name: [[row.number for row in rows if row.number in losses] for _, rows in groups]
        for name, groups in grouped.items()
    }
    parameters = 1 + sum(
        sum(bool(numbers) for numbers in levels) - 1 for levels in members.values()
    )
    if len(losses) <= parameters:  # a fit that leaves nothing over would blame any knob it likes
        return {
            name: [_mean(losses[number] for number in numbers) for numbers in levels]
            for name, levels in members.items()
        }
    return adjusted_means(members, losses)


def _level(
    values: tuple[Any, ...],
    rows: Sequence[Row],
    adjusted: float | None,
    pick: Callable[[Iterable[float]], float],
) -> Level:
    completed = [row for row in rows if row.status is State.COMPLETED]
    losses = [row.value for row in completed if row.value is not None]
    return Level(
        values=values,
        trials=len(completed),
        pruned=sum(row.status is State.PRUNED for row in rows),
        stopped=sum(row.status is State.STOPPED for row in rows),
        diverged=sum(row.status is State.DIVERGED for row in rows),
        failed=sum(row.status is State.FAILED for row in rows),
        mean=_mean(losses),
        best=pick(losses) if losses else None,
        adjusted=adjusted,
        tokens_per_second=_mean(row.tokens_per_second for row in completed),
        peak_memory_mb=_mean(row.peak_memory_mb for row in completed),
        optimizer_state_mb=_mean(row.optimizer_state_mb for row in completed),
    )


def _mean(numbers: Iterable[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return statistics.fmean(known) if known else None


def adjusted_means(
    members: Mapping[str, Levels], losses: Mapping[int, float]
) -> dict[str, list[float | None]]:
    """Per key and level, the mean loss had the other keys been tried alike with every level.

    Fits a main-effects model by least squares: each loss is a common mean and a part of each key.
    The parts of a key average zero over its trials; a key has none in a trial in which it was not
    active. Equal to the plain means on a full grid; None for a level without trials.

    Args:
        members: per key and level, the numbers of its trials.
        losses: by the number of the trial.
    """
    rows = {number: row for row, number in enumerate(losses)}
    values = np.array([*losses.values()])
    coded = {
        name: _coded([[rows[number] for number in level] for level in levels], len(rows))
        for name, levels in members.items()
    }
    design = np.hstack([np.ones((len(rows), 1)), *coded.values()])
    parts = np.linalg.lstsq(design, values, rcond=None)[0][1:]
    found = {}
    for name, levels in members.items():
        own, parts = parts[: len(levels)], parts[len(levels) :]
        counts = np.array([len(level) for level in levels])
        active = [rows[number] for level in levels for number in level]
        mean = values[active].mean() - own @ counts / counts.sum() if active else 0.0
        found[name] = [
            float(mean + part) if count else None for part, count in zip(own, counts, strict=True)
        ]
    return found


def _coded(levels: Levels, trials: int) -> np.ndarray:
    """A key's columns of the design, shape (trials, levels): each level against the key's mean.

    Else what a conditional key and the value that it depends on have in common would be shared
    between the two.
    """
    columns = np.zeros((trials, len(levels)))
    for level, rows in enumerate(levels):
        columns[rows, level] = 1.0
    active = columns.any(axis=1)
    columns[active] -= columns[active].mean(axis=0)
    return columns
