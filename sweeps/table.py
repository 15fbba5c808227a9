"""trials.csv while a sweep runs: written again after a trial has ended, as often as is cheap."""

from __future__ import annotations

import logging
import time

from sweeps.files import RunFolder
from sweeps.history import History
from sweeps.ranking import write_table

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
