"""Checks which schedulers a sweep chooses, and with which arguments.

If several are searched, each takes the arguments of trainer.lr_scheduler_kwargs that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from sweeps.core.errors import Problem, nearest
from trainers.sft.lr_schedule import STEP_COUNTS, WATCHING, accepted, fault, names

WITHOUT_WARMUP = ("constant", *WATCHING)


def unknown_name(name: str) -> Problem:
    """The problem of a name that is no scheduler's, with all the names there are."""
    message = f"is not a scheduler that transformers knows. There are: {', '.join(names())}."
    near = nearest(str(name), names())
    return Problem(key="trainer.lr_scheduler_type", value=name, message=message, nearest=near)


def problems(
    chosen: Sequence[str],
    *,
    kwargs: Sequence[Sequence[Mapping[str, Any]]],
    learning_rates: Sequence[float],
    warmup_steps: Sequence[float],
) -> list[Problem]:
    """What is wrong with the `chosen` schedulers, before the number of steps is known.

    Args:
        kwargs: what trainer.lr_scheduler_kwargs may be, in groups. A scheduler must run with all of
            some group: whole mappings that are searched are set together with its name.
        learning_rates, warmup_steps: the values, or the bounds, that are searched.
    """
    unknown = [name for name in dict.fromkeys(chosen) if name not in names()]
    known = [name for name in dict.fromkeys(chosen) if name in names()]
    found = [unknown_name(name) for name in unknown]
    if known and not unknown:
        found += _unknown_arguments(known, [each for group in kwargs for each in group])
    return found + [
        Problem(key="trainer.lr_scheduler_type", value=name, message=f"{reason}.")
        for name in known
        for reason in _faults(name, kwargs, learning_rates, warmup_steps)
    ]


def _faults(
    name: str,
    kwargs: Sequence[Sequence[Mapping[str, Any]]],
    learning_rates: Sequence[float],
    warmup_steps: Sequence[float],
) -> list[str]:
    """The first fault with each group of `kwargs`; an empty list if some group has none."""
    found = []
    for group in kwargs:
        faults = (
            fault(name, own, learning_rate=rate, warmup_steps=warm, steps=_enough(own, warm))
            for own, rate, warm in product(group, learning_rates, warmup_steps)
        )
        first = next((each for each in faults if each is not None), None)
        if first is None:
            return []
        found.append(first)
    return list(dict.fromkeys(found))


def _enough(kwargs: Mapping[str, Any], warmup_steps: float) -> int:
    """A number of steps that has room for all arguments that are counted in steps."""
    counts = [warmup_steps, *(kwargs.get(key) for key in STEP_COUNTS)]
    numbers = [each for each in counts if isinstance(each, int | float) and math.isfinite(each)]
    return 1000 + 10 * int(sum(numbers))


def _unknown_arguments(
    chosen: Sequence[str], kwargs: Sequence[Mapping[str, Any]]
) -> Iterator[Problem]:
    """Arguments that no scheduler would look at.

    An argument of a scheduler that is not chosen is left over from a sweep's file: it is dropped,
    and `notes` says so.
    """
    taken_by_any = {key for name in names() for key in accepted(name)}
    taken = {name: accepted(name) for name in chosen}
    everything = list(dict.fromkeys(key for keys in taken.values() for key in keys))
    lists = "; ".join(f"{name} takes {', '.join(keys) or 'none'}" for name, keys in taken.items())
    for key in dict.fromkeys(key for each in kwargs for key in each):
        if key not in taken_by_any:
            value = next(each[key] for each in kwargs if key in each)
            yield Problem(
                key=f"trainer.lr_scheduler_kwargs.{key}",
                value=value,
                message=f"no chosen scheduler takes it: {lists}.",
                nearest=nearest(key, everything),
            )


def notes(
    chosen: Sequence[str],
    *,
    warmup_steps: Sequence[float],
    kwargs: Sequence[Mapping[str, Any]],
    evaluations: int | None,
) -> list[str]:
    """What is allowed but may not be what was meant."""
    taken = {key for name in chosen if name in names() for key in accepted(name)}
    left_over = dict.fromkeys(key for each in kwargs for key in each if key not in taken)
    found = [
        f"trainer.lr_scheduler_kwargs.{key}: no chosen scheduler takes it" for key in left_over
    ]
    if any(warmup_steps):
        found += [
            f"trainer.lr_scheduler_type={name} has no warmup: trainer.warmup_steps is ignored"
            for name in chosen
            if name in WITHOUT_WARMUP
        ]
    for name in [each for each in chosen if each in WATCHING]:
        patience = min(int(each.get("patience", 10)) for each in kwargs)
        # The plateau begins with the first evaluation, which for greedy already counts.
        acts_at = patience + (1 if name == "greedy" else 2)
        if evaluations is not None and evaluations < acts_at:
            found.append(
                f"trainer.lr_scheduler_type={name} acts at evaluation {acts_at} at the soonest, "
                f"and there are {evaluations}, so the rate stays constant: lower "
                f"trainer.lr_scheduler_kwargs.patience = {patience}"
            )
    return found
