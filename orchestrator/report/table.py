"""The ranked table in HTML: every column of trials.csv, each sortable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.text import MOST_ERROR, attribute, escaped, plain, value_text
from orchestrator.terminal.format import loss_text
from orchestrator.terminal.tables import heads
from sweeps.ledger.history import History
from sweeps.results.ranking import searched_keys
from sweeps.results.trials_csv import Row, columns
from sweeps.space.space import is_number

MOST_ROWS = 1000
# Fields and columns at both ends; between them the searched keys, then the other columns.
_FIRST = ("rank", "number", "value", "behind")
_LAST = ("key", "seed", "error")


def ranked_table(history: History, rows: Sequence[Row]) -> str:
    """A `<table>` of at most `MOST_ROWS` trials, best first; `data-column` names each column.

    A cell that shows a rounded number has it whole in `data-v`, by which the column is sorted.
    """
    fields = columns(history.metric)
    keys = searched_keys(history)
    knobs = dict(zip(keys, heads(keys), strict=True))
    first = [column for column, field in fields.items() if field in _FIRST]
    rest = [column for column in fields if column not in (*first, *_LAST)]
    order = [*sorted(first, key=lambda column: _FIRST.index(fields[column])), *knobs, *rest, *_LAST]
    titles = "".join(
        f'<th data-column="{attribute(name, 200)}" title="{attribute(name, 200)}" scope="col">'
        f'<button type="button">{escaped(knobs.get(name, name))}</button></th>'
        for name in order
    )
    lines = []
    for row in rows[:MOST_ROWS]:
        cells = [
            _setting(name, row.values) if name in knobs else _cell(fields[name], row)
            for name in order
        ]
        kind = "best" if row.rank == 1 else str(row.status)
        lines.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    body = "\n".join(lines)
    return f'<table id="trials"><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table>'


def _setting(key: str, values: Mapping[str, Any]) -> str:
    if key not in values:
        return "<td></td>"
    value = values[key]
    text = plain(value_text(key, value))
    return _number(text, value) if is_number(value) else f"<td>{text}</td>"


def _cell(field: str, row: Row) -> str:
    value = getattr(row, field)
    if value is None or value == "":
        return "<td></td>"
    if field == "value":
        return _number(loss_text(value), value)
    if field in ("rank", "number", "seed"):
        return f'<td class="n">{value}</td>'
    if is_number(value):
        return _number(_short(value), value)
    if field == "error":
        return f"<td>{escaped(value, MOST_ERROR)}</td>"
    return f"<td>{plain(str(value))}</td>"


def _number(text: str, value: float) -> str:
    plain = text.replace(",", "")
    whole = "" if plain == repr(value) else f' data-v="{value!r}"'
    return f'<td class="n"{whole}>{text}</td>'


def _short(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
