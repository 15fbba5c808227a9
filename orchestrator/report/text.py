"""Texts of users on the page: secrets masked, cut to a length, escaped for HTML and for plotly."""

from __future__ import annotations

import html
import json

from sweeps.core.naming import short_value
from sweeps.core.secrets import masked, scrub

MOST_NAME = 60  # characters of a trial's name in a figure
MOST_VALUE = 60  # of a setting
MOST_ERROR = 300
MOST_COMMAND = 4000


def cut(text: str, most: int = MOST_VALUE) -> str:
    """`text` on one line, of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def clean(text: str, most: int = MOST_VALUE) -> str:
    """`text` without secrets, `cut`; not escaped yet."""
    return cut(scrub(text), most)


def plain(text: str) -> str:
    """`text` for HTML; plotly reads the same entities in titles, names and hover texts."""
    return html.escape(text, quote=False)


def escaped(text: str, most: int = MOST_VALUE) -> str:
    """`clean` text for HTML."""
    return plain(clean(text, most))


def attribute(text: str, most: int = MOST_VALUE) -> str:
    """`clean` text for an HTML attribute in double quotes."""
    return html.escape(clean(text, most), quote=True)


def value_text(key: str, value: object, most: int = MOST_VALUE) -> str:
    """A config value in a few characters, a secret one masked; not escaped yet."""
    shown = masked(key, value)
    is_plain = shown is None or isinstance(shown, bool | int | float | str)
    return cut(short_value(shown) if is_plain else json.dumps(shown, separators=(",", ":")), most)
