"""Builds the tables of a sweep: what runs, what is best so far, and how all trials rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.progress_bar import ProgressBar
from rich.text import Text

from orchestrator.terminal.format import (
    Column,
    Grid,
    duration_text,
    gain_text,
    loss_text,
    megabytes_text,
    rate_text,
)
from orchestrator.terminal.progress import Progress
from sweeps.core.naming import short_value, trial_name
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record
from sweeps.results.importance import Level
from sweeps.results.ranking import base_value, gain, searched_keys
from sweeps.results.trials_csv import Row

BASE = "base model, no tuning"
BAR_CELLS = 10
CONFIG_CELLS = 28  # a config's name is not cut below this; cost columns go first
STYLES = {
    State.COMPLETED: "",
    State.RUNNING: "cyan",
    State.WAITING: "bright_black",
    State.PRUNED: "bright_black",
    State.STOPPED: "bright_black",
    State.DIVERGED: "yellow",
    State.FAILED: "red",
}


def counts_text(history: History) -> Text:
    """`9 completed  2 running  ...`, the states that occur."""
    parts = [
        Text(f"{history.count(state)} {state}", style=style)
        for state, style in STYLES.items()
        if history.count(state)
    ]
    return Text("  ").join(parts)


def seeded_name(history: History, record: Record) -> str:
    """What varies in a trial; with its seed, if a config has several."""
    name = trial_name(record.values)
    return f"{name} seed={record.seed}" if _has_seeds(history) else name


def _has_seeds(history: History) -> bool:
    """Whether a config is trained with several seeds."""
    return int(history.spec.get("sweep", {}).get("repeats") or 1) > 1


def _seeds(history: History, seeds: Sequence[object]) -> list[Column]:
    return [Column("seed", seeds, keep=7)] if _has_seeds(history) else []


def _steps_text(progress: Progress) -> str:
    return f"{progress.step}/{progress.steps}" if progress.steps else str(progress.step)


def running_grid(
    history: History, records: Sequence[Record], progress: Mapping[str, Progress]
) -> Grid:
    """Trials in training: how far, the best evaluation so far, the training loss, the time left.

    The speed is shown of those that have their device to themselves: `pace_text` has the others'.
    """
    now = [progress.get(record.key, Progress()) for record in records]
    bars = [
        ProgressBar(total=1.0, completed=one.fraction, width=BAR_CELLS, complete_style="cyan")
        for one in now
    ]
    return Grid(
        columns=[
            Column("trial", [record.number for record in records]),
            _configs(record.values for record in records),
            *_seeds(history, [record.seed for record in records]),
            Column("progress", bars, keep=4, least=BAR_CELLS),
            Column("", [f"{one.fraction:.0%}" for one in now]),
            Column("step", [_steps_text(one) for one in now], keep=2),
            Column(history.metric, [loss_text(history.value(record)) for record in records]),
            Column("train", [loss_text(one.loss) for one in now], keep=5),
            *_speeds(records, now),
            Column("left", [duration_text(one.seconds_left) for one in now], keep=6),
        ],
    )


def _speeds(records: Sequence[Record], now: Sequence[Progress]) -> list[Column]:
    if not any(record.is_alone for record in records):
        return []
    cells = [
        rate_text(one.tokens_per_second) if record.is_alone else ""
        for record, one in zip(records, now, strict=True)
    ]
    return [Column("tok/s", cells, keep=3)]


def pace_text(progress: Iterable[Progress]) -> str:
    """The tokens a second of all trials that train at once; empty for fewer than two."""
    speeds = [one.tokens_per_second for one in progress if one.tokens_per_second]
    return f"  {rate_text(sum(speeds))} tok/s in all" if len(speeds) > 1 else ""


def leaders_grid(history: History, rows: Sequence[Row]) -> Grid:
    """The best completed trials so far, in a few columns."""
    return Grid(
        columns=[
            Column("rank", [row.rank for row in rows]),
            Column("trial", [row.number for row in rows]),
            _configs(row.values for row in rows),
            *_seeds(history, [row.seed for row in rows]),
            *_measures(history, rows),
        ],
        styles=[_style(row) for row in rows],
    )


def ranking_grid(history: History, rows: Sequence[Row], elsewhere: str) -> Grid:
    """All of `rows` in their order, the base model at its place, a column for each key that varies.

    If the keys do not fit, one column names the config instead.
    """
    lines = _with_base(history, rows)
    front = [
        Column("rank", ["" if row is None else row.rank for row in lines]),
        Column("trial", ["base" if row is None else row.number for row in lines]),
    ]
    seeds = _seeds(history, ["" if row is None else row.seed for row in lines])
    back = [*seeds, *_measures(history, lines), _status(lines)]
    styles = [_style(row) for row in lines]
    names = [BASE if row is None else trial_name(row.values) for row in lines]
    config = Column("config", names, least=CONFIG_CELLS)
    named = Grid(columns=[*front, config, *back], styles=styles, elsewhere=elsewhere)
    varied = [key for key in searched_keys(history) if _varies(key, rows)]
    if not varied:
        return named
    knobs = [_knob(key, head, lines) for key, head in zip(varied, heads(varied), strict=True)]
    return Grid(columns=[*front, *knobs, *back], styles=styles, elsewhere=elsewhere, instead=named)


def heads(keys: Sequence[str]) -> list[str]:
    """Short names of config keys, as in trials' names; the whole key if two would look alike."""
    short = [trial_name({key: 0}).partition("=")[0] for key in keys]
    return [key if short.count(head) > 1 else head for key, head in zip(keys, short, strict=True)]


def cost_columns(rows: Sequence[Row | Level | None]) -> list[Column]:
    """Speed and memory; a column that nobody measured is left out."""
    columns = []
    for head, name, text, keep in (
        ("tok/s", "tokens_per_second", rate_text, 6),
        ("mem MB", "peak_memory_mb", megabytes_text, 4),
        ("optim MB", "optimizer_state_mb", megabytes_text, 2),
    ):
        if any(row is not None and getattr(row, name) is not None for row in rows):
            cells = ["" if row is None else text(getattr(row, name)) for row in rows]
            columns.append(Column(head, cells, keep=keep))
    return columns


def _configs(values: Iterable[Mapping[str, Any]]) -> Column:
    return Column("config", [trial_name(one) for one in values], least=CONFIG_CELLS)


def _measures(history: History, rows: Sequence[Row | None]) -> list[Column]:
    """The value ranked, how much better than the base model it is, and what the trial cost."""
    base = base_value(history)
    values = [loss_text(base if row is None else row.value) for row in rows]
    gains = ["" if row is None else gain_text(gain(history, row.value)) for row in rows]
    times = ["" if row is None else duration_text(row.seconds) for row in rows]
    return [
        Column(history.metric, values),
        *([] if base is None else [Column("gain", gains, keep=8)]),
        *_behind(rows),
        *cost_columns(rows),
        Column("time", times, keep=3),
    ]


def _behind(rows: Sequence[Row | None]) -> list[Column]:
    """How far each is behind the best, with its 95% interval; nothing if that is not known."""
    cells = ["" if row is None or row.behind is None else behind_text(row) for row in rows]
    return [Column("behind", cells, keep=8)] if any(cells) else []


def behind_text(row: Row) -> str:
    """`0.0520 +-0.0105`, after a ~ if the interval holds zero."""
    if row.behind is None or row.behind_low is None or row.behind_high is None:
        return ""
    half = (row.behind_high - row.behind_low) / 2
    mark = "~" if row.behind_low <= 0 <= row.behind_high else ""
    return f"{mark}{loss_text(row.behind)} +-{loss_text(half)}"


def _status(rows: Sequence[Row | None]) -> Column:
    cells = [
        "" if row is None else ", ".join(filter(None, (row.status, row.origin))) for row in rows
    ]
    is_mixed = len({cell for cell in cells if cell}) > 1
    return Column("status", cells, keep=7 if is_mixed else 1, least=10)


def _knob(key: str, head: str, rows: Sequence[Row | None]) -> Column:
    values = [row.values[key] for row in rows if row and key in row.values]
    cells = [
        "" if row is None else short_value(row.values[key]) if key in row.values else None
        for row in rows
    ]
    is_text = not all(isinstance(value, int | float) for value in values)
    return Column(head, cells, least=10 if is_text else None)


def _with_base(history: History, rows: Sequence[Row]) -> list[Row | None]:
    """`rows` with a None at the base model's place among the ranked ones."""
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
