"""Formats numbers in few characters, and tables that fit the terminal without breaking a number."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import measure_renderables
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.core.commands import holds_command

PLAIN_WIDTH = 120  # columns, if the output is no terminal
NONE = "-"
_KERNELS = "JPY_PARENT_PID"  # Jupyter sets it for a kernel, which hands it on to its processes
_GAP = 2
_HEAD_CELLS = 13  # a longer head takes several lines
_HEAD_LINE = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


class SweepConsole(Console):
    """A console that stops printing, rather than end the sweep, if its output is closed."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What Python still holds for stdout would raise once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    return Console().is_jupyter


def make_console() -> Console:
    """The terminal, or `PLAIN_WIDTH` columns of plain text if there is none.

    Plain text in a notebook too, where rich would make an output of each line, and a command after
    `!` has a terminal that can only print.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal gets ? for what it lacks
    console = SweepConsole(
        highlight=False,
        markup=False,
        emoji=False,
        force_jupyter=False,
        force_terminal=False if in_notebook() or _KERNELS in os.environ else None,
    )
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a Grid: text stands to the left and may be cut, numbers to the right and whole.

    Attributes:
        cells: as many as the grid has rows, a line each; None is shown as a dash.
        keep: the column with the lowest figure is left out first if the table is too wide; those
            at 9 stay.
        least: characters that a text may be cut down to; None for numbers.
    """

    head: str
    cells: Sequence[object]
    keep: int = 9
    least: int | None = None

    @property
    def title(self) -> Text:
        """The head, a long one broken after its underscores and dots."""
        lines = [""]
        for part in re.findall(r"[^_.]*[_.]?", self.head):
            if len(lines[-1]) + len(part) > _HEAD_CELLS and lines[-1]:
                lines.append("")
            lines[-1] += part
        return Text("\n".join(lines))

    @property
    def rendered(self) -> list[Text | ProgressBar]:
        return [
            cell if isinstance(cell, ProgressBar) else Text(NONE if cell is None else str(cell))
            for cell in self.cells
        ]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table for any width: text is cut first, then whole columns are left out, and it says which.

    Attributes:
        styles: of each row.
        elsewhere: where to read the columns left out; empty: they are not mentioned.
        instead: shown if more than two columns would have to be left out.
    """

    columns: Sequence[Column]
    styles: Sequence[str] = ()
    elsewhere: str = ""
    instead: Grid | None = None

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        kept, dropped = self._fitted(console, options)
        if self.instead is not None and len(dropped) > 2:
            yield self.instead
            return
        table = Table(
            box=_HEAD_LINE,
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
            header_style="bold",
            border_style="bright_black",
        )
        for column, width in kept.items():
            table.add_column(
                column.title,
                justify="right" if column.least is None else "left",
                vertical="bottom",
                width=width,
                no_wrap=True,
                overflow="ellipsis",
            )
        for row in zip(*(column.rendered for column in kept), strict=True):
            table.add_row(*row, style=self.styles[len(table.rows)] if self.styles else None)
        yield table
        if dropped and self.elsewhere:
            heads = ", ".join(column.head for column in dropped)
            yield Text(f"No room for {heads}: see {self.elsewhere}", style="dim")

    def _fitted(
        self, console: Console, options: ConsoleOptions
    ) -> tuple[dict[Column, int], list[Column]]:
        """The columns that fit, with their widths; and those that do not."""
        whole = {
            column: measure_renderables(console, options, [column.title, *column.rendered]).maximum
            for column in self.columns
        }
        kept = {
            column: width if column.least is None else min(column.least, width)
            for column, width in whole.items()
        }
        dropped: list[Column] = []
        while (spare := options.max_width - sum(kept.values()) - _GAP * (len(kept) - 1)) < 0:
            weakest = min(kept, key=lambda column: column.keep)
            if weakest.keep == 9:
                break
            del kept[weakest]
            dropped.append(weakest)
        for column, width in kept.items():
            kept[column] += min(max(0, spare), whole[column] - width)
            spare -= kept[column] - width
        return kept, dropped


def show(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print each part. Paths (`unbroken`) and commands stay whole lines, to be copied; so does all
    text if there is no terminal, to be searched."""
    for part in parts:
        is_whole = isinstance(part, Text) and (
            bool(part.no_wrap) or not console.is_terminal or holds_command(part.plain)
        )
        console.print(part, soft_wrap=is_whole)


def unbroken(text: str, style: str = "") -> Text:
    """Text for `show` that no line break may part."""
    return Text(text, style=style, no_wrap=True)


def loss_text(value: float | None) -> str:
    """A loss or another metric, to four decimals if its size allows."""
    if value is None:
        return NONE
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"


def gain_text(value: float | None) -> str:
    return NONE if value is None else f"{value:+.4f}"


def rate_text(value: float | None) -> str:
    """A rate in four characters or so: 831, 12.3k, 4.56M."""
    if value is None:
        return NONE
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.{2 if value < 10 * size else 1}f}{unit}"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def megabytes_text(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def duration_text(seconds: float | None) -> str:
    """0:42, 12:03, 1:02:03, 2d 03:04."""
    if seconds is None:
        return NONE
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
