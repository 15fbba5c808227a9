"""Puts the page together: one HTML file with its style, its scripts and plotly.js in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from orchestrator.report.facts import Facts, Words
from orchestrator.report.text import MOST_COMMAND, escaped

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure and what stands around it.

    Attributes:
        name: of the element that it is drawn in.
        note: HTML below the title.
        width: pixels below which it is not squeezed but scrolled.
    """

    name: str
    figure: go.Figure
    title: str = ""
    note: str = ""
    width: int = 0


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page under a heading; `body` is HTML that stands above the figures."""

    name: str
    title: str
    body: str = ""
    figures: Sequence[Figure] = ()


def page(name: str, words: Words, sections: Sequence[Section], made: str) -> str:
    """The whole page.

    Args:
        name: of the sweep.
        made: when it was written.
    """
    figures = [figure for section in sections for figure in section.figures]
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escaped(name),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        answer=escaped(words.answer, 1000),
        standing=escaped(words.standing, 1000),
        sureness="".join(f"<li>{escaped(line, 1000)}</li>" for line in words.sureness),
        contents="".join(f'<a href="#{each.name}">{each.title}</a>' for each in sections),
        sections="\n".join(map(_section, sections)),
        made=escaped(made, 200),
        figures=_in_script(_drawn(figures)),
        plotly=get_plotlyjs(),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
    )


def facts_html(facts: Facts) -> str:
    return '<div class="facts">' + "".join(map(_fact, facts.items())) + "</div>"


def commands_html(commands: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f"<p>{escaped(what)}:</p><pre>{escaped(command, MOST_COMMAND)}</pre>"
        for what, command in commands
    )


def hint_html(text: str, command: str) -> str:
    """What a wider or longer sweep may find, with its command."""
    return f'<p class="hint">{escaped(text, 1000)}</p><pre>{escaped(command, MOST_COMMAND)}</pre>'


def _fact(fact: tuple[str, Mapping[str, str]]) -> str:
    heading, values = fact
    if not values:
        return ""
    lines = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(value, 300)}</dd>" for name, value in values.items()
    )
    return f"<div><h3>{escaped(heading)}</h3><dl>{lines}</dl></div>"


def _section(section: Section) -> str:
    figures = "".join(map(_figure, section.figures))
    is_grid = sum(not figure.width for figure in section.figures) > 1
    kind = f"grid of-{min(3, len(section.figures))}" if is_grid else "single"
    grid = f'<div class="{kind}">{figures}</div>' if figures else ""
    return f'<section id="{section.name}"><h2>{section.title}</h2>{section.body}{grid}</section>'


def _figure(figure: Figure) -> str:
    title = f"<h3>{figure.title}</h3>" if figure.title else ""
    least = f' style="min-width:{figure.width}px"' if figure.width else ""
    return (
        f'<figure>{title}<div class="scroll">'
        f'<div class="plot" id="{figure.name}"{least}></div></div>'
        f"{figure.note}</figure>"
    )


def _drawn(figures: Iterable[Figure]) -> Iterator[str]:
    """Each figure as JSON: the element's name, its traces and its layout."""
    for each in figures:
        each.figure.layout.template = None
        found: dict[str, Any] = json.loads(plotly.io.to_json(each.figure, validate=False))
        found["layout"].pop("template", None)
        yield json.dumps({"id": each.name, **found}, separators=(",", ":"))


def _in_script(parts: Iterable[str]) -> str:
    """JSON for a script element, which no text in it can end."""
    return "[" + ",".join(parts).replace("<", "\\u003c").replace("\u2028", "\\u2028") + "]"
