"""The sweep that Slurm and object storage get in the way of; it has to come to the same losses."""

from __future__ import annotations

from collections.abc import Callable

from support.real_sweeps import GRID, SMALL, Events, losses

WORDS = (*SMALL, GRID, "tracking=off", "engine=solo", "sweep.budget.examples=512")
Undisturbed = Callable[[], dict[str, float]]


def last_losses(events: Events) -> dict[str, float]:
    """Trial key -> its last eval_loss."""
    return {trial: values[-1] for trial, values in losses(events).items()}
