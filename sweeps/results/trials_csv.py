"""trials.csv while a sweep runs: written again after a trial has ended, as often as is cheap."""

from __future__ import annotations

import json
import logging
import time

from sweeps.ledger.history import History
from sweeps.results.ranking import _FIELDS, columns, ranked, searched_keys
from sweeps.storage.durable_writes import write_csv
from sweeps.storage.run_folder import RunFolder

_DIGITS = {  # decimals in trials.csv; the other numbers are written in full
    "seconds": 3,
    "tokens_per_second": 1,
    "peak_memory_mb": 1,
    "optimizer_state_mb": 3,
}


def write_table(history: History, folder: RunFolder) -> None:
    """Replace trials.csv. A conditional key's cell is empty where the key is not active."""
    keys = searched_keys(history)
    write_csv(
        folder.table,
        [*columns(history.metric), *keys],
        (
            [
                *(_number(name, getattr(row, name)) for name in _FIELDS),
                *(_cell(row.values[key]) if key in row.values else None for key in keys),
            ]
            for row in ranked(history)
        ),
    )


def _number(name: str, value: object) -> object:
    return round(value, _DIGITS[name]) if isinstance(value, float) and name in _DIGITS else value


def _cell(value: object) -> str:
    """A searched value as text: strings bare, the rest as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


log = logging.getLogger(__name__)

_MOST_SHARE = 0.05  # of the time that may go into it: 10,000 rows take half a second


class Table:
    """The table of one run folder; `write` it at the end, `refresh` it in between."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._next = 0.0  # time.monotonic
        self._told = False

    def refresh(self, history: History) -> None:
        """Write it, unless that would take too much of the sweep's time; never raises OSError."""
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
