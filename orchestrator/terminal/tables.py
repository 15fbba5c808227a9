"""The tables of a sweep: what runs, what is best so far, and how all trials rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.progress_bar import ProgressBar
from rich.text import Text

from orchestrator.terminal.format import (
    NONE,
    Column,
    Grid,
    duration_text,
    gain_text,
    loss_text,
    megabytes_text,
    rate_text,
    texts,
)
from orchestrator.terminal.progress import Progress
from sweeps.core.naming import short_value, trial_name
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record
from sweeps.results.importance import Level
from sweeps.results.ranking import Row, searched_keys

BASE = "base model, no tuning"
BAR_CELLS = 10
CONFIG_CELLS = 28  # a config's name is not cut below this; cost columns go first
STYLES = {
    State.COMPLETED: "",
    State.RUNNING: "cyan",
    State.WAITING: "bright_black",
    State.PRUNED: "bright_black",
    State.DIVERGED: "yellow",
    State.FAILED: "red",
}


def gain(history: History, value: float | None) -> float | None:
    """How much better than the base model, in the metric's own unit; negative where worse."""
    base = base_value(history)
    if base is None or value is None:
        return None
    return base - value if history.direction == "minimize" else value - base


def base_value(history: History) -> float | None:
    """The metric before any training; None where it was not measured."""
    return None if history.base is None else history.base.metrics.get(history.metric)


def counts_text(history: History) -> Text:
    """`9 completed  2 running  ...`, the states that occur."""
    counts = Counter(record.state for record in history.trials.values())
    parts = [
        Text(f"{counts[state]} {state}", style=style)
        for state, style in STYLES.items()
        if counts[state]
    ]
    return Text("  ").join(parts)


def running_grid(
    history: History, records: Sequence[Record], progress: Mapping[str, Progress]
) -> Grid:
    """Trials in training: how far, the best evaluation so far, the training loss, the time left."""
    now = [progress.get(record.key, Progress()) for record in records]
    bars: list[Text | ProgressBar] = [
        ProgressBar(total=1.0, completed=one.fraction, width=BAR_CELLS, complete_style="cyan")
        for one in now
    ]
    return Grid(
        columns=[
            Column(head="trial", cells=texts(r.number for r in records), right=True),
            _configs(record.values for record in records),
            Column(head="progress", cells=bars, keep=4),
            Column(head="", cells=texts(f"{one.fraction:.0%}" for one in now), right=True),
            Column(
                head=history.metric,
                cells=texts(loss_text(history.value(record)) for record in records),
                right=True,
            ),
            Column(
                head="train", cells=texts(loss_text(one.loss) for one in now), right=True, keep=5
            ),
            Column(
                head="tok/s",
                cells=texts(rate_text(one.tokens_per_second) for one in now),
                right=True,
                keep=3,
            ),
            Column(
                head="left",
                cells=texts(duration_text(one.seconds_left) for one in now),
                right=True,
                keep=6,
            ),
        ]
    )


def leaders_grid(history: History, rows: Sequence[Row]) -> Grid:
    """The best completed trials so far, in a few columns."""
    return Grid(
        columns=[
            Column(head="rank", cells=texts(row.rank for row in rows), right=True),
            Column(head="trial", cells=texts(row.number for row in rows), right=True),
            _configs(row.values for row in rows),
            *_measures(history, rows, keep_loss=9),
        ],
        styles=["bold green" if row.rank == 1 else "" for row in rows],
    )


def ranking_grid(history: History, rows: Sequence[Row], width: int, elsewhere: str = "") -> Grid:
    """All of `rows` in their order, the base model at its place, a column for each key that varies.

    Where the keys would not fit `width`, one column names the config instead.
    """
    varied = [key for key in searched_keys(history) if _varies(key, rows)]
    lines = _with_base(history, rows)
    knobs = [_knob(key, head, lines) for key, head in zip(varied, heads(varied), strict=True)]
    names = [BASE if row is None else trial_name(row.values) for row in lines]
    config = Column(head="config", cells=texts(names), least=CONFIG_CELLS)
    front = [
        Column(head="rank", cells=texts("" if r is None else r.rank for r in lines), right=True),
        Column(
            head="trial", cells=texts("base" if r is None else r.number for r in lines), right=True
        ),
    ]
    back = [*_measures(history, lines, keep_loss=9), _status(lines)]
    styles = [_style(row) for row in lines]
    if knobs:
        grid = Grid(columns=[*front, *knobs, *back], styles=styles, elsewhere=elsewhere)
        if len(grid.fitted(width)[1]) <= 2:  # a cost or two less is a fair price for the columns
            return grid
    return Grid(columns=[*front, config, *back], styles=styles, elsewhere=elsewhere)


def heads(keys: Sequence[str]) -> list[str]:
    """Short names of config keys, as in trials' names; the whole key where two would look alike."""
    short = [trial_name({key: 0}).partition("=")[0] for key in keys]
    return [key if short.count(head) > 1 else head for key, head in zip(keys, short, strict=True)]


def _configs(values: Iterable[Mapping[str, Any]]) -> Column:
    return Column(head="config", cells=texts(trial_name(one) for one in values), least=CONFIG_CELLS)


def _measures(history: History, rows: Sequence[Row | None], *, keep_loss: int) -> list[Column]:
    base = base_value(history)
    losses = [base if row is None else row.value for row in rows]
    columns = [
        Column(
            head=history.metric, cells=texts(map(loss_text, losses)), right=True, keep=keep_loss
        ),
        *cost_columns(rows),
        Column(
            head="time",
            cells=texts("" if row is None else duration_text(row.seconds) for row in rows),
            right=True,
            keep=3,
        ),
    ]
    if base is not None:
        gains = ["" if row is None else gain_text(gain(history, row.value)) for row in rows]
        columns.insert(1, Column(head="gain", cells=texts(gains), right=True, keep=8))
    return columns


def cost_columns(rows: Sequence[Row | Level | None]) -> list[Column]:
    """Speed and memory; a column that nobody measured is left out."""
    columns = []
    for head, name, text, keep in (
        ("tok/s", "tokens_per_second", rate_text, 6),
        ("mem MB", "peak_memory_mb", megabytes_text, 4),
        ("optim MB", "optimizer_state_mb", megabytes_text, 2),
    ):
        values = [None if row is None else getattr(row, name) for row in rows]
        if any(value is not None for value in values):
            cells = texts(
                "" if row is None else text(value) for row, value in zip(rows, values, strict=True)
            )
            columns.append(Column(head=head, cells=cells, right=True, keep=keep))
    return columns


def _status(rows: Sequence[Row | None]) -> Column:
    states = {row.status for row in rows if row is not None}
    cells = texts("" if row is None else row.status for row in rows)
    return Column(head="status", cells=cells, keep=7 if len(states) > 1 else 1)


def _knob(key: str, head: str, rows: Sequence[Row | None]) -> Column:
    cells = [
        "" if row is None else short_value(row.values[key]) if key in row.values else NONE
        for row in rows
    ]
    numbers = all(
        isinstance(row.values[key], int | float) for row in rows if row and key in row.values
    )
    return Column(head=head, cells=texts(cells), right=numbers, least=None if numbers else 10)


def _with_base(history: History, rows: Sequence[Row]) -> list[Row | None]:
    """`rows` with a None where the base model stands among the ranked ones."""
    base = base_value(history)
    if base is None:
        return list(rows)
    place = next(
        (
            i
            for i, row in enumerate(rows)
            if row.rank is None or not (gain(history, row.value) or 0) > 0
        ),
        len(rows),
    )
    return [*rows[:place], None, *rows[place:]]


def _varies(key: str, rows: Sequence[Row]) -> bool:
    return len({repr(row.values.get(key)) for row in rows}) > 1


def _style(row: Row | None) -> str:
    if row is None:
        return "italic blue"
    return "bold green" if row.rank == 1 else STYLES[row.status]
