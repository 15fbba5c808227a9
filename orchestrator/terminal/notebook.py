"""Shows what the terminal shows in a notebook's cell: as HTML, in one output that is replaced."""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

from orchestrator.terminal.format import PLAIN_WIDTH, show

_BLOCK = '<pre style="white-space:pre;overflow-x:auto;line-height:1.3">{code}</pre>'


def text_and_html(parts: Iterable[RenderableType]) -> tuple[str, str]:
    """What `format.show` prints, as plain text and as HTML, both of `PLAIN_WIDTH` columns."""
    console = Console(
        file=StringIO(),
        force_jupyter=False,
        force_terminal=True,
        color_system="truecolor",
        width=PLAIN_WIDTH,
        record=True,
        highlight=False,
        markup=False,
        emoji=False,
    )
    show(console, parts)
    html = console.export_html(inline_styles=True, code_format=_BLOCK, clear=False)
    lines = console.export_text().splitlines()
    return "\n".join(line.rstrip() for line in lines), html


class NotebookLive:
    """One output of a cell, shown as rich's Live is; rich's own would need ipywidgets."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def is_started(self) -> bool:
        return self._handle is not None

    def start(self) -> None:
        from IPython.display import display

        self._handle = display(_mime("", ""), raw=True, display_id=True)

    def update(self, view: RenderableType, *, refresh: bool) -> None:
        self._show(*text_and_html([view]))

    def stop(self) -> None:
        """Leave the output empty: the summary follows."""
        self._show("", "")
        self._handle = None

    def _show(self, text: str, html: str) -> None:
        if self._handle is not None:
            self._handle.update(_mime(text, html), raw=True)


def _mime(text: str, html: str) -> dict[str, str]:
    return {"text/plain": text, "text/html": html}
