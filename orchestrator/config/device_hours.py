"""Says how many device-hours a sweep is expected to take, or took, and what they cost."""

from __future__ import annotations

from orchestrator.config.engine_choice import planned_trials
from sweeps.config.spec import Spec
from sweeps.ledger.history import History
from sweeps.search.pruning import expected_share
from sweeps.space.space import Space
from trainers.trial.task import DryRun


def expected_lines(spec: Spec, space: Space, tokens: float, step: DryRun) -> list[str]:
    """A line on the device-hours of the whole sweep, by the speed of the dry run's step.

    No line if that was not measured, or if only a time budget ends the sweep.

    Args:
        tokens: of a trial, as `Ready.tokens`.
    """
    trials = planned_trials(spec, space)
    if trials is None or not step.train_s or not step.tokens:
        return []
    share = expected_share(spec.sweep)
    whole = 0
    if spec.sweep.finalists is not None:  # their further seeds see the whole budget
        whole = trials - (space.planned(spec.sweep.trials) or trials)
    hours = ((trials - whole) * share + whole) * tokens / step.tokens * step.train_s / 3600
    hours *= spec.engine.devices_per_trial
    most = "at most" if spec.sweep.search == "quick" else "about"
    line = f"expected: {most} {_hours(hours, spec.cluster.price_per_device_hour)}"
    line += f" for {trials:,} trial{'' if trials == 1 else 's'} at the speed of that step"
    if share < 1:
        line += f", of which {spec.sweep.pruner} is to save {1 - share:.0%}"
    if spec.engine.devices_per_trial == 1:
        line += "; trials that share a device take less"
    limit = spec.sweep.device_hours
    if limit is not None and hours > limit:
        line += f". sweep.device_hours={limit:g} ends it before"
    return [line]


def used_lines(history: History) -> list[str]:
    """A line on the device-hours of all starts; none if no trial was trained."""
    hours = history.device_hours()
    price = (history.spec.get("cluster") or {}).get("price_per_device_hour")
    return [f"Used: {_hours(hours, price)}, over all starts."] if hours else []


def _hours(hours: float, price: float | None) -> str:
    cost = "" if price is None else f" (costs {hours * price:,.2f} at {price:g} each)"
    return f"{hours:.2g} device-hours{cost}" if hours < 100 else f"{hours:,.0f} device-hours{cost}"
