"""Shows rows of the data on a terminal: what is learnt in colour, or in brackets if it has none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from trainers.preview import Preview

_LEARNT = "bold green"
_BRACKETS = ("[[", "]]")
_MARGIN = "  | "


def legend(console: Console) -> str:
    how = "in green" if _has_colour(console) else "in " + " ".join(_BRACKETS)
    return f"as the model sees them; what it learns is {how}"


def row_view(row: Preview, console: Console, most: int | None = None) -> Text:
    """A row's head and its text, a margin before each line.

    Args:
        most: letters of the text; of a longer one the middle is left out. None: all.
    """
    cut = f" ({row.left_out:,} more are cut off)" if row.left_out else ""
    head = f"{row.where}: " if row.where else ""
    shown = Text()
    shown.append(f"{head}{row.tokens:,} tokens{cut}, {row.learnt:,} of them learnt\n", style="bold")
    body = Text()
    for text, learnt in _shortened(row.parts, most):
        plain = _printable(text)
        if not plain:
            continue
        if _has_colour(console):
            body.append(plain, style=_LEARNT if learnt else "")
        else:
            body.append(plain.join(_BRACKETS) if learnt else plain)
    lines = body.split("\n", allow_blank=True)
    return shown + Text("\n").join(Text.assemble((_MARGIN, "dim"), line) for line in lines)


def _has_colour(console: Console) -> bool:
    return console.is_terminal and console.color_system is not None and not console.no_color


def _shortened(parts: Sequence[tuple[str, bool]], most: int | None) -> list[tuple[str, bool]]:
    """The parts without the middle of their text, if it is longer than `most` letters."""
    size = sum(len(text) for text, _ in parts)
    if most is None or size <= most:
        return list(parts)
    head, tail = (most + 1) // 2, size - most // 2
    gap = (f" ... {tail - head:,} letters ... ", False)
    return [*_between(parts, 0, head), gap, *_between(parts, tail, size)]


def _between(
    parts: Sequence[tuple[str, bool]], start: int, stop: int
) -> Iterator[tuple[str, bool]]:
    at = 0
    for text, learnt in parts:
        yield text[max(0, start - at) : max(0, stop - at)], learnt
        at += len(text)


def _printable(text: str) -> str:
    """The text with what could steer a terminal written as an escape."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1]
        for letter in text
    )
