"""Says where a sweep ended too early: the best value at an edge, and losses that still fall."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.config.keys import may_change
from sweeps.core.commands import changed, in_a_shell, override, written
from sweeps.ledger.history import History, Record
from sweeps.results.ranking import config_ranks
from sweeps.space.parser import space_of
from sweeps.space.space import Choice, Dimension, Interval
from sweeps.storage.run_folder import RunFolder, folder_text

_NEAR = 0.1  # of an interval: as near to its end, it is the end that stops the search
_TOP = 3  # trials whose curves are looked at
_STILL_FALLS = 0.02  # of the whole fall, over the last evaluation
_RATIO = 1.5  # of two neighbours: below it they are steps of a range, not of a log scale


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What a wider or longer sweep may find, and the command that runs it.

    Attributes:
        knob: the dimension whose best value is at an edge; empty if it is about losses that fall.
    """

    text: str
    command: str
    knob: str = ""


def outlook(history: History, folder: RunFolder) -> list[Hint]:
    """What the ranking cannot know since the sweep ended too early; empty if nothing completed."""
    ranks = config_ranks(history)
    top = [history.repeats(config)[0] for config in sorted(ranks, key=ranks.__getitem__)[:_TOP]]
    return [*_edges(history, folder, top[0]), *_falling(history, top)] if top else []


def _edges(history: History, folder: RunFolder, best: Record) -> Iterator[Hint]:
    """The numbers whose best value is the lowest or the highest that was tried."""
    for dimension in space_of(history.spec).dimensions:
        name = dimension.name
        value = best.values.get(name)
        if not _are_numbers([value, *(dimension.options if isinstance(dimension, Choice) else ())]):
            continue
        ended = [r.values for r in history.trials.values() if r.state.is_finished()]
        tried = {values[name] for values in ended if name in values}
        ends = ((min(tried), False), (max(tried), True)) if len(tried) > 1 else ()
        for end, is_high in ends:
            words = _beyond(history, dimension, value, is_high) if value == end else None
            if words:
                side = "highest" if is_high else "lowest"
                text = f"{name}: the best value, {written(value)}, is the {side} that was tried. "
                text += "A better one may lie beyond:"
                yield Hint(text=text, command=command_with(history, words, folder), knob=name)


def _beyond(history: History, dimension: Dimension, value: Any, is_high: bool) -> list[str] | None:
    """Overrides that try values beyond the best; None if there can be none."""
    more = f"sweep.trials={history.config_count + max(4, history.config_count // 2)}"
    if not _is_end(dimension, value, is_high):
        return [more]
    wider = (
        _wider_choice(dimension, is_high)
        if isinstance(dimension, Choice)
        else _wider_interval(dimension, is_high)
    )
    if wider is None:
        return None
    return [wider] if history.spec["sweep"].get("trials") is None else [wider, more]


def _wider_choice(dimension: Choice, is_high: bool) -> str | None:
    options = sorted(dimension.options)
    further = _next(options, is_high)
    if not _may_be(dimension.name, further, options):
        return None
    options = [*options, further] if is_high else [further, *options]
    return f"{dimension.name}={','.join(map(written, options))}"


def _wider_interval(dimension: Interval, is_high: bool) -> str | None:
    low, high = dimension.ends
    width = high - low
    if is_high:
        end = high = _tidy(high * 10 if dimension.log else high + width)
    else:
        end = low = _tidy(low / 10 if dimension.log else low - width)
    if not _may_be(dimension.name, end, dimension.ends):
        return None
    kind = int if dimension.integer else float
    tags = [tag for tag, is_set in (("log", dimension.log), ("int", dimension.integer)) if is_set]
    inner = f"interval({written(kind(low))}, {written(kind(high))})"
    return f"{dimension.name}=" + (f"tag({', '.join([*tags, inner])})" if tags else inner)


def _falling(history: History, top: Sequence[Record]) -> Iterator[Hint]:
    """A hint if the losses of all the best trials still fall at their last evaluation."""
    sweep = history.spec["sweep"]
    budget = {kind: size for kind, size in (sweep.get("budget") or {}).items() if size}
    falls = [_last_fall(history, record, int(sweep.get("evaluations") or 0)) for record in top]
    if not budget or None in falls:
        return
    kind, size = next(iter(budget.items()))
    which = "best trial" if len(top) == 1 else f"best {len(top)} trials"
    text = (
        f"The loss of the {which} still falls at the last evaluation, by up to "
        f"{max(filter(None, falls)):.4f} over the last 1/{sweep['evaluations']} of the budget: "
        "more of it would help. The ranking of schedules may change with it, since one that decays "
        "gains most at its end:"
    )
    words = [f"sweep.budget.{kind}={written(2 * size)}"]
    yield Hint(text=text, command=command_with(history, words, None))


def _last_fall(history: History, record: Record, last: int) -> float | None:
    """How far the metric fell over the last evaluation; None if it is a small part of all."""
    reports, metric, sign = record.reports, history.metric, history.sign
    if last < 3 or not reports.keys() >= {1, last - 1, last}:
        return None
    base = history.base.metrics.get(metric) if history.base else None
    before = reports[1].metrics[metric] if base is None else base
    end = reports[last].metrics[metric]
    fall = sign * (reports[last - 1].metrics[metric] - end)
    return fall if fall > max(0.0, _STILL_FALLS * sign * (before - end)) else None


def command_with(history: History, words: Sequence[str], folder: RunFolder | None) -> str:
    """The sweep's own command with other words, on this folder; None: in a folder of its own."""
    command = history.driver.command
    if not command:
        return " ".join(map(in_a_shell, words))
    made = changed(command, words, "-next" if folder is None else "")
    is_named = "run_dir=" in command or all(may_change(word.partition("=")[0]) for word in words)
    if folder is None or is_named:
        return made
    return changed(made, [override("run_dir", folder_text(folder.root))])


def _next(options: Sequence[Any], is_high: bool) -> Any:
    """The next number of a series: at the ratio of its last two, or at their distance if near."""
    inner, end = (options[-2], options[-1]) if is_high else (options[1], options[0])
    kind = int if all(isinstance(option, int) for option in options) else float
    if end <= 0 or inner <= 0 or max(end / inner, inner / end) < _RATIO:
        return kind(_tidy(end + (end - inner)))
    return kind(float(f"{end * (end / inner):.1g}") if kind is float else end * end / inner)


def _may_be(name: str, value: float, known: Sequence[float]) -> bool:
    """Whether a key may have this value, as far as those known tell: a share stays below 1."""
    if name.endswith("learning_rate"):
        return value > 0
    is_share = all(0 <= each < 1 for each in known)
    is_count = all(isinstance(each, int) and each >= 1 for each in known)
    return value not in known and (1 if is_count else 0) <= value < (1 if is_share else math.inf)


def _is_end(dimension: Dimension, value: float, is_high: bool) -> bool:
    """Whether the space, and not the number of trials, stopped the search here."""
    if isinstance(dimension, Choice):
        return bool(value == (max if is_high else min)(dimension.options))
    low, high = dimension.ends
    if dimension.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return abs((high if is_high else low) - value) <= _NEAR * (high - low)


def _tidy(number: float) -> float:
    return float(f"{number:.6g}")


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
