"""Optuna's samplers by name, and what is wrong with a search's options."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna

from sweeps.config.spec import SearchName, SearchSpec
from sweeps.core.errors import Problem
from sweeps.search.first import first_problems
from sweeps.search.pruning import option_problems, pruner_problems
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
    own = own_seed(seed, number)
    if spec.search == "qmc":
        options.setdefault("warn_independent_sampling", False)
        own = seed
    return SAMPLERS[spec.search].kind(seed=own, **options)


def own_seed(seed: int, number: int) -> int:
    """The seed of one Optuna trial, whatever was asked before it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")


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
    found += pruner_problems(spec)
    found += option_problems(
        "sweep.search_options", spec.search, lambda: make_sampler(spec, space, 0, 0)
    )
    return found + quick_problems(spec, space) + first_problems(spec, space)
