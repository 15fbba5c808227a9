"""Optuna's pruners by name, and their options: when one first compares trials, what it saves.

Whether a report is judged at all is asked in `study`: the last one of a trial never is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sweeps.config.spec import PrunerName, SearchSpec
from sweeps.core.commands import override
from sweeps.core.errors import Problem
from sweeps.space.space import Space

if TYPE_CHECKING:
    import optuna

_RATE, _SCHEDULE = "trainer.learning_rate", "trainer.lr_scheduler_type"
# Share of a decaying schedule before which a rate that wins in the end may be behind: measured by
# `python -m benchmarks.replay --pruners` over public curves; docs/search.md has the table.
_SETTLED = 0.6
_SAFE_FACTOR = 2
_MILD_PERCENTILE = 75  # only the worst quarter is stopped
# Pruner -> the option that says from which evaluation on it compares trials.
STARTS: Mapping[PrunerName, str] = {
    "asha": "min_resource",
    "hyperband": "min_resource",
    "median": "n_warmup_steps",
    "percentile": "n_warmup_steps",
}
NOTING_PRUNERS = frozenset(("asha", "hyperband"))  # keep their rungs in the trials they judge
# How other tools name the options of a pruner, and ours for each pruner.
_SPOKEN: Mapping[str, Mapping[PrunerName, str]] = {
    "grace_period": STARTS,
    "min_iter": STARTS,
    "max_t": {"hyperband": "max_resource"},
    "max_iter": {"hyperband": "max_resource"},
    "eta": dict.fromkeys(("asha", "hyperband"), "reduction_factor"),
}


def make_pruner(spec: SearchSpec) -> optuna.pruners.BasePruner:
    """The pruner of `sweep.pruner`; its resource is the report's index, 1 to `evaluations`."""
    from optuna import pruners

    halving: dict[str, Any] = {"min_resource": 1, "reduction_factor": 2}
    hyperband = {**halving, "max_resource": spec.evaluations}
    kinds: dict[str, tuple[Callable[..., optuna.pruners.BasePruner], dict[str, Any]]] = {
        "none": (pruners.NopPruner, {}),
        "median": (pruners.MedianPruner, {}),
        "percentile": (pruners.PercentilePruner, {"percentile": 50.0}),
        "asha": (pruners.SuccessiveHalvingPruner, halving),
        "hyperband": (pruners.HyperbandPruner, hyperband),
        "patient": (pruners.PatientPruner, {"wrapped_pruner": None, "patience": 1}),
    }
    kind, defaults = kinds[spec.pruner]
    return kind(**{**defaults, **spec.pruner_options})


def first_judged(spec: SearchSpec) -> int | None:
    """The first evaluation at which trials are compared with each other; None if none are."""
    name = STARTS.get(spec.pruner)
    if name is None:
        return None
    start = spec.pruner_options.get(name, 1)
    if not isinstance(start, int):
        return 1  # "auto": found as it goes
    rate = spec.pruner_options.get("min_early_stopping_rate") if spec.pruner == "asha" else None
    return max(1, start * _factor(spec) ** rate if isinstance(rate, int) else start)


def expected_share(spec: SearchSpec) -> float:
    """The share of all examples that trials are expected to see, if half or more are stopped."""
    start, last = first_judged(spec), spec.evaluations
    if start is None or start >= last:
        return 1.0
    if spec.pruner in ("median", "percentile"):
        keeps = float(spec.pruner_options.get("percentile", 50)) / 100
        return (start + (last - start) * keeps) / last
    share, kept, rung = start / last, 1.0, start
    while rung < last:
        kept /= _factor(spec)
        share += kept * (min(rung * _factor(spec), last) - rung) / last
        rung *= _factor(spec)
    return share


def misled(spec: SearchSpec, space: Space, trainer: Mapping[str, Any]) -> list[str]:
    """A line if the pruner compares learning rates so early that a decaying schedule misleads."""
    first, searched = first_judged(spec), space.values_by_key()
    schedules = searched.get(_SCHEDULE, [trainer.get(_SCHEDULE)])
    decays = any(not str(each).startswith("constant") for each in schedules)
    is_mild = spec.pruner_options.get("percentile", 0) >= _MILD_PERCENTILE
    if first is None or is_mild or not decays or len(searched.get(_RATE, ())) < 2:
        return []
    later = next(n for n in range(1, spec.evaluations + 1) if n >= _SETTLED * spec.evaluations)
    if first < later < spec.evaluations:
        option = override(f"sweep.pruner_options.{STARTS[spec.pruner]}", later)
        return [
            f"{spec.pruner} compares trials from evaluation {first} of {spec.evaluations} on. "
            "If the learning rate decays, one that wins in the end is often behind before about "
            f"{_SETTLED:.0%} of the schedule: {option} waits for that"
        ]
    if spec.pruner == "asha" and _factor(spec) > _SAFE_FACTOR:
        option = override("sweep.pruner_options.reduction_factor", _SAFE_FACTOR)
        return [
            f"asha stops all but one in {_factor(spec)} trials at evaluation {first}. If "
            f"the learning rate decays, that has stopped winners; {option} has not"
        ]
    return []


def _factor(spec: SearchSpec) -> int:
    found = spec.pruner_options.get("reduction_factor", 2)
    return found if isinstance(found, int) and found > 1 else 2


def pruner_problems(spec: SearchSpec) -> list[Problem]:
    """What is wrong with the pruner: it could stop no trial, or Optuna refuses its options."""
    found = []
    if spec.pruner != "none" and spec.evaluations < 2:
        found.append(
            Problem(
                key="sweep.pruner",
                value=spec.pruner,
                message="has nothing to judge by before the end: set sweep.evaluations to 2 or "
                "more, or sweep.pruner=none.",
            )
        )
    return found + (
        _idle_pruner(spec)
        or option_problems("sweep.pruner_options", spec.pruner, lambda: make_pruner(spec))
    )


def _idle_pruner(spec: SearchSpec) -> list[Problem]:
    """Options by which a pruner would stop no trial before its end, and names of other tools."""
    found = []
    last = spec.evaluations - 1  # at the end there is nothing left to save
    resource = f"its resource is the number of the evaluation, 1 to {spec.evaluations}"
    for name, value in spec.pruner_options.items():
        key = f"sweep.pruner_options.{name}"
        if name in _SPOKEN:
            ours = _SPOKEN[name].get(spec.pruner)
            message = f"is no option of {spec.pruner}; {resource}."
            near = f"sweep.pruner_options.{ours}" if ours else None
            found.append(Problem(key=key, value=value, message=message, nearest=near))
    if found or spec.evaluations < 2:
        return found
    first = first_judged(spec)
    if first is not None and first > last:
        key = f"sweep.pruner_options.{STARTS[spec.pruner]}"
        start = spec.pruner_options.get(STARTS[spec.pruner])
        message = (
            f"no trial would ever be stopped: {resource}, and this begins at {first}. Take {last} "
            "or less."
        )
        found.append(Problem(key=key, value=start, message=message))
    return found


def option_problems(key: str, name: str, make: Callable[[], object]) -> list[Problem]:
    """What Optuna says to options as it makes a sampler or pruner of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make()
    except (TypeError, ValueError) as error:
        way_out = f"Correct them, or take them out with ~{key}"
        return [Problem(key=key, message=f"Optuna's {name} refuses them: {error}. {way_out}")]
    return []
