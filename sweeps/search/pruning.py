"""When a pruner first compares trials, what it saves, and whether a schedule misleads it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.config.spec import PrunerName, SearchSpec
from sweeps.core.commands import override
from sweeps.space.space import Space

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
