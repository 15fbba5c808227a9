"""Shows a running sweep: a live table on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.terminal.format import duration_text, in_notebook, loss_text, make_console
from orchestrator.terminal.log_lines import PlainLines
from orchestrator.terminal.notebook import NotebookLive
from orchestrator.terminal.progress import Progress, planned_configs, planned_trials, time_left_s
from orchestrator.terminal.tables import counts_text, leaders_grid, pace_text, running_grid
from sweeps.core.commands import command_line
from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results.ranking import base_value
from sweeps.results.trials_csv import Row, ranked
from sweeps.storage.run_folder import RunFolder, folder_text

REFRESH_S = 0.2  # the live table is drawn no more often
NOTEBOOK_REFRESH_S = 1.0  # each is a message to the browser
NOTEBOOK_HEIGHT = 40
LEADERS = 5
RANKING_SHARE = 0.1  # of the driver's time at most goes into ranking for the table
FIXED_LINES = 10  # of the live view: its head, blank lines, the heads of two tables, one to spare


class Display:
    """Shows a sweep while the driver's loop feeds it; losing the terminal never stops the sweep.

    Args:
        spec_public: the public config, for what is planned before the ledger says so.
        console: None for stdout.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        folder: RunFolder,
        spec_public: Mapping[str, Any],
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.console = console or make_console()
        self._folder = folder
        self._configs = planned_configs(spec_public)
        self._clock = clock
        self._drawn = float("-inf")
        self._leaders = _Leaders(clock)
        self._live: Live | NotebookLive | None = None
        self._plain: PlainLines | None = None
        self._refresh_s = REFRESH_S
        if console is None and in_notebook():
            self._live, self._refresh_s = NotebookLive(), NOTEBOOK_REFRESH_S
            self.console.height = NOTEBOOK_HEIGHT
        elif self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
        else:
            self._plain = PlainLines(self.say, clock)

    def update(self, history: History, progress: Mapping[str, Progress]) -> None:
        """Show the state of the sweep. Cheap: call it in every turn of the loop."""
        now = self._clock()
        if self._live is not None and now - self._drawn < self._refresh_s:
            return  # a log misses nothing: its last lines may be the last call
        self._drawn = now
        total = planned_trials(history, self._configs)
        if self._plain is not None:
            self._plain.update(history, total, lambda: time_left_s(history, progress, total, now))
        else:
            left = time_left_s(history, progress, total, now)
            self._quietly(lambda live: self._draw(live, self.view(history, progress, left)))

    def close(self) -> None:
        """Remove the live table, before the summary is printed."""
        self._quietly(lambda live: live.stop())
        self._live = None

    def say(self, *lines: str) -> None:
        """Print lines that stay: above the live table, or among the plain lines."""
        self.show(*map(Text, lines))

    def show(self, *texts: Text) -> None:
        """The same for styled lines."""
        try:
            for text in texts:
                self.console.print(text, soft_wrap=True)
        except OSError:  # the terminal is gone (EIO after a hang-up)
            self.console.quiet = True

    def view(
        self, history: History, progress: Mapping[str, Progress], left: float | None
    ) -> RenderableType:
        """The live view, cut to the height of the terminal."""
        leaders = self._leaders.rows(history)
        running = [r for r in history.trials.values() if r.state is State.RUNNING]
        room = max(1, self.console.height - FIXED_LINES - len(leaders))
        hidden = max(0, len(running) - room)
        parts: list[RenderableType] = [self._head(history, left), self._counts(history, progress)]
        parts.append(Text())
        if history.paused_by:
            parts.append(Text(paused_line(history, self._folder), style="yellow"))
        if running:
            parts.append(running_grid(history, running[: len(running) - hidden], progress))
            if hidden:
                parts.append(Text(f"... and {hidden} more running", style="dim"))
        elif not history.paused_by:
            parts.append(Text(_quiet_text(history), style="dim"))
        if leaders:
            parts += [Text(), leaders_grid(history, leaders)]
        return Group(*parts)

    def _head(self, history: History, left: float | None) -> RenderableType:
        """Name, a bar over all trials, how many ended, elapsed, left."""
        total = planned_trials(history, self._configs)
        head = Table.grid(padding=(0, 2, 0, 0), expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis", max_width=24)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True, justify="right")
        began = history.driver.time or history.began
        elapsed = None if began is None else max(0.0, self._clock() - began)
        times = duration_text(elapsed) + ("" if left is None else f", {duration_text(left)} left")
        head.add_row(
            Text(history.name or "sweep", style="bold"),
            ProgressBar(
                total=max(1, total or len(history.trials)),
                completed=history.ended,
                complete_style="cyan",
            ),
            Text(f"{history.ended} of {total or '?'}"),
            Text(times),
        )
        return head

    def _counts(self, history: History, progress: Mapping[str, Progress]) -> RenderableType:
        base = base_value(history)
        line = Table.grid(padding=(0, 2, 0, 0), expand=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_column(no_wrap=True, overflow="ellipsis", justify="right")
        measured = Text(f"base model {loss_text(base)}", style="italic blue")
        line.add_row(
            (counts_text(history) or Text("starting")) + Text(pace_text(progress.values())),
            Text(folder_text(self._folder.root), style="dim") if base is None else measured,
        )
        return line

    def _draw(self, live: Live | NotebookLive, view: RenderableType) -> None:
        if not live.is_started:
            live.start()
        live.update(view, refresh=True)

    def _quietly(self, action: Callable[[Live | NotebookLive], None]) -> None:
        if self._live is None:
            return
        try:
            action(self._live)
        except OSError:
            self.console.quiet = True
            with suppress(OSError, IndexError):  # it may have failed half started
                self._live.stop()
            self._live = None


def _quiet_text(history: History) -> str:
    """What happens while no trial trains."""
    if not history.attempts:
        return "Waiting for a worker to train one step before the first trial"
    if history.trials and not history.unfinished():
        return "Loading the best checkpoint again, and measuring what training alone costs"
    return "Waiting for the first trial to start"


def paused_line(history: History, folder: RunFolder) -> str:
    """That a user has paused the sweep, and the command that goes on."""
    what = "no trial runs" if history.is_idle else "no trial begins"
    command = command_line(["resume", folder_text(folder.root)])
    return f"Paused by {history.paused_by}, {what}; {command} goes on"


class _Leaders:
    """The best completed trials, ranked again when one has completed and there is time for it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: list[Row] = []
        self._completed = 0
        self._next = float("-inf")

    def rows(self, history: History) -> list[Row]:
        completed = history.count(State.COMPLETED)
        now = self._clock()
        if completed != self._completed and now >= self._next:
            self._rows = [row for row in ranked(history) if row.rank is not None][:LEADERS]
            self._completed = completed
            self._next = now + (self._clock() - now) / RANKING_SHARE
        return self._rows
