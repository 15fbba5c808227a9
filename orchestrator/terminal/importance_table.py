"""Builds the table of each searched key's effect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from orchestrator.terminal.format import NONE, Column, Grid, loss_text
from orchestrator.terminal.tables import cost_columns, heads
from sweeps.core.naming import short_value, trial_name
from sweeps.ledger.history import History
from sweeps.results.importance import FEWEST_FOR_IMPORTANCE, Effect, Level, compared_share
from sweeps.results.ranking import completed_values

_Line = tuple[Effect, Level | None]  # a knob's own line, then one for each of its levels


def knobs_grid(
    history: History, found: Sequence[Effect], importance: Mapping[str, float] | None
) -> Grid:
    """Every knob's levels: how many trials, their loss, and what they cost in speed and memory."""
    lines: list[_Line] = []
    for effect in found:
        lines += [(effect, None), *((effect, level) for level in effect.levels)]
    levels = [level for _, level in lines]
    full = [effect.name for effect in found]
    names = dict(zip(full, heads(full), strict=True))
    first = [names[knob.name] if level is None else _label(knob, level) for knob, level in lines]
    columns = [
        Column("knob", first, least=20),
        _own("effect", [_reach(effect) for effect, _ in lines], levels),
        _each("trials", levels, lambda level: str(level.trials)),
        _each("mean", levels, lambda level: loss_text(level.mean), keep=5),
        _each("adjusted", levels, lambda level: loss_text(level.adjusted)),
        _each("best", levels, lambda level: loss_text(level.best), keep=3),
        *cost_columns(levels),
    ]
    if importance:
        shares = [f"{importance.get(effect.name, 0):.0%}" for effect, _ in lines]
        columns.insert(1, _own("weight", shares, levels))
    stopped = ["" if level is None else _stopped(level) for level in levels]
    if any(stopped):
        columns.append(Column("stopped", stopped, keep=7, least=10))
    return Grid(columns=columns, styles=[_style(history, *line) for line in lines])


def knob_legend(
    history: History, found: Sequence[Effect], importance: Mapping[str, float] | None
) -> list[str]:
    """What the columns mean, and why there is no weight, or another than optuna-dashboard's."""
    lines = [
        "adjusted: the mean had the other knobs been tried alike with every value; effect: that of "
        "the worst value less that of the best"
    ]
    completed = len(completed_values(history))
    if importance:
        share = compared_share(completed)
        weight = "weight: the knob's share of what sets the best "
        weight += f"{share:.0%} of configs apart from all (Optuna's PED-ANOVA)"
        if share > compared_share(sys.maxsize):
            weight += ". optuna-dashboard takes the best 10%, too few here, so its shares differ"
        lines.append(weight)
    elif len(found) > 1 and completed < FEWEST_FOR_IMPORTANCE:
        lines.append(
            f"weight, a knob's share of what sets the best apart, is shown from "
            f"{FEWEST_FOR_IMPORTANCE} completed configs on; there are {completed}"
        )
    return lines


def _own(head: str, cells: Sequence[str], levels: Sequence[Level | None]) -> Column:
    """A column about the knob as a whole, on the knob's own line."""
    shown = [cell if level is None else "" for cell, level in zip(cells, levels, strict=True)]
    return Column(head, shown, keep=8)


def _each(
    head: str, levels: Sequence[Level | None], show: Callable[[Level], str], keep: int = 9
) -> Column:
    """A column about each level."""
    return Column(head, ["" if level is None else show(level) for level in levels], keep=keep)


def _label(effect: Effect, level: Level) -> str:
    """A level: a value, `low to high`, or keys that are set together, as `batch=8 accum=1`."""
    if len(effect.keys) > 1:
        return f"  {trial_name(dict(zip(effect.keys, level.values, strict=True)))}"
    return f"  {' to '.join(short_value(value) for value in level.values)}"


def _reach(effect: Effect) -> str:
    measured = sum(level.adjusted is not None for level in effect.levels)
    return f"{effect.range:.4f}" if measured > 1 else NONE


def _stopped(level: Level) -> str:
    counts = (
        (level.pruned, "pruned"),
        (level.stopped, "stopped"),
        (level.diverged, "diverged"),
        (level.failed, "failed"),
    )
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _style(history: History, effect: Effect, level: Level | None) -> str:
    if level is None:
        return "bold"
    means = [one.adjusted for one in effect.levels if one.adjusted is not None]
    pick = min if history.direction == "minimize" else max
    return "green" if len(means) > 1 and level.adjusted == pick(means) else ""
