"""trials.csv: its rows and columns, and writing the file while a sweep runs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sweeps.core.trial import State
from sweeps.ledger.history import History, Record
from sweeps.results.cost import Costs, measure
from sweeps.results.intervals import Interval
from sweeps.results.ranking import config_ranks, searched_keys
from sweeps.results.significance import Comparison, compare
from sweeps.storage.durable_writes import write_csv
from sweeps.storage.run_folder import RunFolder

log = logging.getLogger(__name__)

_SECTIONS = (
    State.COMPLETED,
    State.RUNNING,
    State.WAITING,
    State.PRUNED,
    State.STOPPED,
    State.DIVERGED,
    State.FAILED,
)
_DIGITS = {  # decimals in trials.csv; the other numbers are written in full
    "behind": 6,
    "behind_low": 6,
    "behind_high": 6,
    "seconds": 3,
    "tokens_per_second": 1,
    "peak_memory_mb": 1,
    "optimizer_state_mb": 3,
}
_MOST_SHARE = 0.05  # of the time that may go into writing: 10,000 rows take half a second


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial as a line of trials.csv; the fields are its columns, in order (see `columns`).

    Attributes:
        rank: of its config, 1 is best; None unless completed.
        value: of the metric ranked by, the best over the trial's reports; of an unfinished or
            pruned trial the best so far; None if it diverged or failed.
        best_step: optimizer steps done when `value` was measured.
        behind: eval_loss of its config less that of the config ranked first; `behind_low` and
            `behind_high` are the ends of its 95% interval. None if not compared.
        origin: added or clone, if a user asked for it.
        error: one line; empty if nothing went wrong. A trial that ran out of memory and went on
            with half the micro-batch says so here, whatever became of it.
        tokens_per_second, peak_memory_mb, optimizer_state_mb: of training the config alone, see
            `sweeps.results.cost`; None while that is not known.
        values: the searched config keys and what they were set to.
    """

    rank: int | None
    number: int
    key: str
    status: State
    value: float | None
    best_step: int | None
    behind: float | None
    behind_low: float | None
    behind_high: float | None
    steps: int | None
    examples: int | None
    tokens: int | None
    seconds: float | None
    tokens_per_second: float | None
    peak_memory_mb: float | None
    optimizer_state_mb: float | None
    seed: int
    origin: str
    error: str
    values: Mapping[str, Any]


_FIELDS = tuple(column.name for column in fields(Row) if column.name != "values")


def columns(metric: str) -> dict[str, str]:
    """Column of trials.csv -> field of `Row`; the value ranked has the name of its metric."""
    return {metric if name == "value" else name: name for name in _FIELDS}


def ranked(history: History, comparison: Comparison | None = None) -> list[Row]:
    """Every trial: completed ones by rank, then running, waiting, pruned, diverged and failed.

    The repeats of a config stand side by side and share its rank. Pruned trials: further first,
    then better. Ties go to the lower trial number.

    Args:
        comparison: of `significance.compare`; without it rows are not `behind` anything.
    """
    behind = {} if comparison is None else comparison.behind
    ranks = config_ranks(history)
    values = {key: history.value(record) for key, record in history.trials.items()}
    sign = history.sign

    def place(record: Record) -> tuple[float, ...]:
        section = _SECTIONS.index(record.state)
        if record.state is State.COMPLETED:
            return (section, ranks.get(record.config, len(ranks) + 1), record.number)
        value = values[record.key]
        if record.state.is_cut_short and value is not None:
            return (section, -max(record.reports), sign * value, record.number)
        return (section, 0, 0, record.number)

    costs = Costs(history)
    records = sorted(history.trials.values(), key=place)
    return [_row(history, record, ranks, behind, costs) for record in records]


def write_table(history: History, folder: RunFolder) -> None:
    """Replace trials.csv. A conditional key's cell is empty if the key is not active."""
    keys = searched_keys(history)
    write_csv(
        folder.table,
        [*columns(history.metric), *keys],
        (
            [
                *(_number(name, getattr(row, name)) for name in _FIELDS),
                *(_cell(row.values[key]) if key in row.values else None for key in keys),
            ]
            for row in ranked(history, compare(history, folder))
        ),
    )


class Table:
    """Keeps trials.csv up to date: `refresh` it in between, `write` it at the end."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._next = 0.0  # time.monotonic
        self._told = False

    def refresh(self, history: History) -> None:
        """Write the file, unless that takes too much of the sweep's time; never raises OSError."""
        if time.monotonic() < self._next:
            return
        try:
            self.write(history)
        except OSError as error:
            if not self._told:  # once: the ledger, which is the truth, is full of rows as well
                log.warning("%s cannot be written: %s", self._folder.table, error)
            self._told = True

    def write(self, history: History) -> None:
        began = time.monotonic()
        write_table(history, self._folder)
        ended = time.monotonic()
        self._next = ended + (ended - began) * (1 / _MOST_SHARE - 1)


def _row(
    history: History,
    record: Record,
    ranks: Mapping[int, int],
    behind: Mapping[int, Interval],
    costs: Costs,
) -> Row:
    is_ranked = record.state is State.COMPLETED
    distance = behind.get(record.config) if is_ranked else None
    unusable = record.state in (State.DIVERGED, State.FAILED)
    peak = None if unusable else record.best(history.metric, history.direction)
    alone = costs.of(record)
    return Row(
        rank=ranks.get(record.config) if is_ranked else None,
        number=record.number,
        key=record.key,
        status=record.state,
        value=None if peak is None else peak.metrics[history.metric],
        best_step=None if peak is None else peak.step,
        behind=None if distance is None else distance.estimate,
        behind_low=None if distance is None else distance.low,
        behind_high=None if distance is None else distance.high,
        steps=_count(record, "step", "steps"),
        examples=_count(record, "examples", "examples"),
        tokens=_count(record, "tokens", "tokens"),
        seconds=measure(record, "seconds"),
        tokens_per_second=alone.tokens_per_second,
        peak_memory_mb=alone.peak_memory_mb,
        optimizer_state_mb=alone.optimizer_state_mb,
        seed=record.seed,
        origin=origin_of(history, record),
        error=_error(record),
        values=record.values,
    )


def origin_of(history: History, record: Record) -> str:
    """What a user asked for, as `clone of 3, warm`; empty if the search suggested the trial."""
    if not record.parent:
        return record.origin
    warm = "" if record.warm is None else ", warm"
    return f"{record.origin} of {history.trials[record.parent].number}{warm}"


def _count(record: Record, field: str, total: str) -> int | None:
    if total in record.totals:
        return int(record.totals[total])
    return None if record.latest is None else int(getattr(record.latest, field))


def _error(record: Record) -> str:
    """Why the trial failed, on one line, with the kind of failure unless the status names it.

    For a trial that went well: whether its micro-batch was halved for want of memory.
    """
    if record.state is State.COMPLETED or record.state.is_cut_short:
        return record.memory_note
    reason = " ".join(record.reason.split())
    if record.kind in ("", record.state) or not record.state.is_finished():
        return reason or record.kind
    return f"{record.kind}: {reason}" if reason else record.kind


def _number(name: str, value: object) -> object:
    return round(value, _DIGITS[name]) if isinstance(value, float) and name in _DIGITS else value


def _cell(value: object) -> str:
    """A searched value as text: strings bare, the rest as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
