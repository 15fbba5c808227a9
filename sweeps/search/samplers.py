"""Optuna's samplers and pruners by name, and what is wrong with their options."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from sweeps.config.spec import PrunerName, SearchName, SearchSpec
from sweeps.core.errors import Problem
from sweeps.search.first import first_problems
from sweeps.search.pruning import STARTS, first_judged
from sweeps.search.quick import quick_problems
from sweeps.space.space import Choice, Space

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A choice of `sweep.search`: its class in Optuna, and what it can do.

    Attributes:
        learns: asks better the more results it has.
        keeps_state: beside the trials (CMA-ES its distribution, QMC its place in the sequence): its
            asks are replayed by asking again. The others need only what was picked.
    """

    kind: Callable[..., optuna.samplers.BaseSampler] = optuna.samplers.RandomSampler
    learns: bool = False
    keeps_state: bool = False
    takes_intervals: bool = True
    takes_categories: bool = True
    takes_conditions: bool = True


SAMPLERS: Mapping[SearchName, Sampler] = {
    "grid": Sampler(takes_intervals=False),  # which `study` walks itself
    "random": Sampler(),
    "tpe": Sampler(kind=optuna.samplers.TPESampler, learns=True),
    "gp": Sampler(kind=optuna.samplers.GPSampler, learns=True, takes_conditions=False),
    "cmaes": Sampler(
        kind=optuna.samplers.CmaEsSampler,
        learns=True,
        keeps_state=True,
        takes_categories=False,
        takes_conditions=False,
    ),
    "quick": Sampler(learns=True, takes_conditions=False),  # which `quick` steps through itself
    "qmc": Sampler(kind=optuna.samplers.QMCSampler, keeps_state=True, takes_conditions=False),
}


def make_sampler(
    spec: SearchSpec, space: Space, seed: int, number: int
) -> optuna.samplers.BaseSampler:
    """Make the sampler for Optuna trial `number`, seeded by it.

    A sampler restarted with one seed would repeat its start-up points; QMC keeps its place in the
    study itself, and needs the same seed every time.
    """
    options = dict(spec.search_options)
    if spec.search == "tpe" and space.is_conditional:
        options.setdefault("group", True)
        options.setdefault("multivariate", True)
    own = _own_seed(seed, number)
    if spec.search == "qmc":
        options.setdefault("warn_independent_sampling", False)
        own = seed
    return SAMPLERS[spec.search].kind(seed=own, **options)


def _own_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")


NOTING_PRUNERS = frozenset(("asha", "hyperband"))  # keep their rungs in the trials they judge


def make_pruner(spec: SearchSpec) -> optuna.pruners.BasePruner:
    """The pruner of `sweep.pruner`; its resource is the report's index, 1 to `evaluations`."""
    halving: dict[str, Any] = {"min_resource": 1, "reduction_factor": 2}
    hyperband = {**halving, "max_resource": spec.evaluations}
    pruners: dict[str, tuple[Callable[..., optuna.pruners.BasePruner], dict[str, Any]]] = {
        "none": (optuna.pruners.NopPruner, {}),
        "median": (optuna.pruners.MedianPruner, {}),
        "percentile": (optuna.pruners.PercentilePruner, {"percentile": 50.0}),
        "asha": (optuna.pruners.SuccessiveHalvingPruner, halving),
        "hyperband": (optuna.pruners.HyperbandPruner, hyperband),
        "patient": (optuna.pruners.PatientPruner, {"wrapped_pruner": None, "patience": 1}),
    }
    kind, defaults = pruners[spec.pruner]
    return kind(**{**defaults, **spec.pruner_options})


def search_problems(spec: SearchSpec, space: Space) -> list[Problem]:
    """What this sampler and pruner cannot do with this space."""
    found = []
    sampler = SAMPLERS[spec.search]
    continuous = [d.name for d in space.dimensions if not isinstance(d, Choice)]
    categorical = [d.name for d in space.dimensions if isinstance(d, Choice)]
    if continuous and not sampler.takes_intervals:
        found.append(
            Problem(
                key="sweep.search",
                value="grid",
                message=f"a grid cannot walk the interval of {', '.join(continuous)}. Write "
                "choice(...) or range(...), or take sweep.search=random or tpe.",
            )
        )
    if spec.search != "grid" and spec.trials is None:
        found.append(
            Problem(key="sweep.trials", message=f"{spec.search} needs a number of trials.")
        )
    if not sampler.takes_categories and (categorical or space.is_conditional):
        found.append(
            Problem(
                key="sweep.search",
                value="cmaes",
                message="CMA-ES searches intervals only; "
                f"{', '.join(categorical) or 'sweep.when'} is not one. Take sweep.search=tpe.",
            )
        )
    elif not sampler.takes_conditions and space.is_conditional:
        found.append(
            Problem(
                key="sweep.search",
                value=spec.search,
                message="cannot search keys that depend on others (sweep.when). "
                "Take sweep.search=tpe.",
            )
        )
    if spec.pruner != "none" and spec.evaluations < 2:
        found.append(
            Problem(
                key="sweep.pruner",
                value=spec.pruner,
                message="has nothing to judge by before the end: set sweep.evaluations to 2 or "
                "more, or sweep.pruner=none.",
            )
        )
    found += _idle_pruner(spec) or _option_problems(
        "sweep.pruner_options", spec.pruner, lambda: make_pruner(spec)
    )
    found += _option_problems(
        "sweep.search_options", spec.search, lambda: make_sampler(spec, space, 0, 0)
    )
    return found + quick_problems(spec, space) + first_problems(spec, space)


# How other tools name the options of a pruner, and ours for each pruner.
_SPOKEN: Mapping[str, Mapping[PrunerName, str]] = {
    "grace_period": STARTS,
    "min_iter": STARTS,
    "max_t": {"hyperband": "max_resource"},
    "max_iter": {"hyperband": "max_resource"},
    "eta": {"asha": "reduction_factor", "hyperband": "reduction_factor"},
}


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


def _option_problems(key: str, name: str, make: Any) -> list[Problem]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make()
    except (TypeError, ValueError) as error:
        way_out = f"Correct them, or take them out with ~{key}"
        return [Problem(key=key, message=f"Optuna's {name} refuses them: {error}. {way_out}")]
    return []
