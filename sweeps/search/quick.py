"""`sweep.search=quick`: finds the best value of one number by steps on a log scale.

It begins with the values of `sweep.first`. While the best of all has no worse neighbour on one
side, that neighbour is tried next. A trial that diverged, failed or was pruned counts as worse than
any other. All of it follows from the study's trials, whatever the number of devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweeps.config.spec import SearchSpec
from sweeps.core.errors import Problem
from sweeps.space.space import Choice, Dimension, Space

_CLOSE = 1e-9  # relative: two numbers that differ by no more are one


def following(study: optuna.Study, dimension: Dimension) -> float | None:
    """The value to try next; None if the best is found, or while a trial runs."""
    trials = study.get_trials(deepcopy=False)
    if not trials or is_waiting(study):
        return None
    tried = [float(trial.params[dimension.name]) for trial in trials]
    best = _best(trials, study.direction, dimension.name)
    start = min(tried) if best is None else best  # if all diverged, a lower one may not
    below, above = _neighbours(start, dimension)
    if below is not None and not any(below <= each < start for each in tried):
        return below
    is_bracketed = best is None or above is None or any(best < each <= above for each in tried)
    return None if is_bracketed else above


def is_waiting(study: optuna.Study) -> bool:
    """Whether what to try next depends on trials that have not ended."""
    return any(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def abreast(spec: SearchSpec) -> int | None:
    """The most trials that the search can have at once; None if it has no limit of its own."""
    if spec.search != "quick":
        return None
    most = max(1, len(spec.first))
    if spec.finalists is None:
        return most * spec.repeats
    return max(most, spec.finalists * (spec.repeats - 1))


def quick_problems(spec: SearchSpec, space: Space) -> list[Problem]:
    """What `sweep.search=quick` cannot do with a space."""
    if spec.search != "quick":
        return []
    names = ", ".join(dimension.name for dimension in space.dimensions) or "nothing"
    found = []
    if len(space.dimensions) != 1 or not _is_ordered(space.dimensions[0]):
        message = (
            f"finds the best value of one number, and sweep.space searches {names}. Search one "
            "key, by tag(log, interval(low, high)) or a choice of numbers, or take "
            "sweep.search=tpe."
        )
        found.append(Problem(key="sweep.search", value="quick", message=message))
    elif not spec.first:
        message = (
            f"quick begins with values of its own: 'sweep.first=[{{{names}: 3e-4}}, "
            f"{{{names}: 1e-3}}]'"
        )
        found.append(Problem(key="sweep.first", message=message))
    return found


def _is_ordered(dimension: Dimension) -> bool:
    if not isinstance(dimension, Choice):
        return dimension.log and not dimension.integer
    return all(type(option) in (int, float) and option > 0 for option in dimension.options)


def _best(
    trials: Sequence[FrozenTrial], direction: optuna.study.StudyDirection, name: str
) -> float | None:
    """The value of the best trial, the earlier of two that are equal; None if none completed."""
    sign = -1 if direction == optuna.study.StudyDirection.MAXIMIZE else 1
    ended = [(sign * t.values[0], t) for t in trials if t.state is TrialState.COMPLETE]
    best = min(ended, key=lambda each: each[0], default=None)
    return None if best is None else float(best[1].params[name])


def _neighbours(value: float, dimension: Dimension) -> tuple[float | None, float | None]:
    """The next value below and above; None at an end."""
    if isinstance(dimension, Choice):
        steps, apart = sorted(dimension.options), 1 + _CLOSE
    else:
        low, high = dimension.ends
        steps = [low, *(step for step in _steps(value) if low < step < high), high]
        apart = 2 - _CLOSE  # what is nearer is hardly a step
    below = max((step for step in steps if step <= value / apart), default=None)
    above = min((step for step in steps if step >= value * apart), default=None)
    return below, above


def _steps(value: float) -> Iterator[float]:
    """1, 3, 10, 30, ... around a value, as they are written."""
    power = math.floor(math.log10(value))
    for exponent in range(power - 2, power + 3):
        yield from (float(f"1e{exponent}"), float(f"3e{exponent}"))
