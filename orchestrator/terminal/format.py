"""Text for the terminal: numbers in few characters, and tables that fit without breaking one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120  # columns, where the output is no terminal
NONE = "-"
_GAP = 2
_HEAD_CELLS = 13  # a longer head takes several lines
_HEAD_LINE = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


class SweepConsole(Console):
    """A console that falls silent, rather than end the sweep, when nobody reads it any more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What Python still holds for stdout would raise once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_console() -> Console:
    """The terminal, or `PLAIN_WIDTH` columns of plain text where there is none."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal gets ? for what it lacks
    console = SweepConsole(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


@dataclass(kw_only=True)
class Column:
    """A column of a Grid.

    Attributes:
        cells: as many as the grid has rows; one line each.
        keep: a column with a lower figure is dropped first when the width runs out; those at 9
            stay.
        least: characters that the column may be cut down to; None for numbers, never cut.
    """

    head: str
    cells: list[Text | ProgressBar]
    keep: int = 9
    right: bool = False
    least: int | None = None

    @property
    def title(self) -> str:
        """The head, a long one broken at its underscores."""
        lines = [""]
        for part in re.findall(r"[^_.]*[_.]?", self.head):
            if len(lines[-1]) + len(part) > _HEAD_CELLS and lines[-1]:
                lines.append("")
            lines[-1] += part
        return "\n".join(lines)

    @property
    def natural(self) -> int:
        return max([*map(len, self.title.split("\n")), *(_width(cell) for cell in self.cells)])

    @property
    def narrowest(self) -> int:
        return self.natural if self.least is None else min(self.least, self.natural)


@dataclass(kw_only=True)
class Grid:
    """A table that fits: text columns shrink first, then whole columns go, and it says which."""

    columns: Sequence[Column]
    styles: Sequence[str] = ()
    elsewhere: str = ""  # where the dropped columns can be read; empty: they are not mentioned
    indent: int = 0

    def fitted(self, width: int) -> tuple[list[tuple[Column, int]], list[str]]:
        """The columns that fit with their widths, and the heads of those that do not."""
        kept = list(self.columns)
        dropped = []
        while self._need(kept) > width:
            weakest = min(kept, key=lambda column: column.keep)
            if weakest.keep == 9:
                break
            kept.remove(weakest)
            dropped.append(weakest.head)
        spare = width - self._need(kept)
        sizes = []
        for column in kept:
            more = min(max(0, spare), column.natural - column.narrowest)
            spare -= more
            sizes.append((column, column.narrowest + more))
        return sizes, dropped

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        sizes, dropped = self.fitted(options.max_width)
        table = Table(
            box=_HEAD_LINE,
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),
            header_style="bold",
            border_style="bright_black",
        )
        for column, size in sizes:
            table.add_column(
                Text(column.title),
                justify="right" if column.right else "left",
                vertical="bottom",
                width=size,
                no_wrap=True,
                overflow="ellipsis",
            )
        for index, cells in enumerate(zip(*(column.cells for column, _ in sizes), strict=True)):
            table.add_row(*cells, style=self.styles[index] if self.styles else None)
        yield table
        if dropped and self.elsewhere:
            yield Text(f"No room for {', '.join(dropped)}: see {self.elsewhere}", style="dim")

    def _need(self, columns: Sequence[Column]) -> int:
        return sum(column.narrowest + _GAP for column in columns) - _GAP


def effect_text(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def texts(cells: Iterable[object]) -> list[Text | ProgressBar]:
    """Cells of plain text; None is shown as a dash."""
    return [Text(NONE if cell is None else str(cell)) for cell in cells]


def show(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print each part. Paths and commands (`unbroken`) stay whole lines, to be copied; so does all
    text where there is no terminal, to be searched."""
    for part in parts:
        whole = isinstance(part, Text) and (bool(part.no_wrap) or not console.is_terminal)
        console.print(part, soft_wrap=whole)


def unbroken(text: str, style: str = "") -> Text:
    """Text for `show` that no line break may part."""
    return Text(text, style=style, no_wrap=True)


def loss_text(value: float | None) -> str:
    """A loss or another metric, to four decimals where that says something."""
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


def _width(cell: Text | ProgressBar) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell.width or 10
