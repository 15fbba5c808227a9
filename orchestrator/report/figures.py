"""The figures that Optuna has none of: learning curves, loss against cost, the timeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from orchestrator.report.curves import Curve
from orchestrator.report.text import escaped
from orchestrator.report.timeline import INTERRUPTED, RETRIED, Span, rows_of, without_pauses
from orchestrator.report.view import (
    BEST,
    COLOURS,
    COMPLETED,
    GREY,
    SYMBOLS,
    Scale,
    View,
    shade,
    shortened,
    within,
)
from orchestrator.terminal.format import duration_text
from sweeps.core.trial import State
from sweeps.results.trials_csv import Row

_BARS = {**COLOURS, "best": BEST, RETRIED: "#c4a7e7", INTERRUPTED: "#a16207"}
_CORNER = 0.35  # of a figure: where trials are cheap and good
_SHADES = 5  # of completed trials' curves
_MOST_ROWS = 48  # of the timeline
_TICKS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 604800)


def curves_figure(view: View, curves: Sequence[Curve], scale: Scale | None) -> go.Figure:
    """Values over examples: the best in green, completed ones paler the worse, others by state.

    Args:
        scale: where a trial ended beyond it, its mark stands at the edge.
    """
    figure = go.Figure()
    for name, colour, group in _groups(view, curves):
        is_best = name == "best"
        dash = "dot" if name in SYMBOLS else "solid"
        x, values, texts = _joined(group, lambda curve: view.labels[curve.row.number])
        figure.add_scatter(
            x=x,
            y=values,
            customdata=texts,
            name=name,
            legendgroup="completed" if name.startswith("completed") else name,
            showlegend=name != "completed",
            mode="lines+markers" if is_best else "lines",
            line={"color": colour, "width": 3 if is_best else 1.5, "dash": dash},
            hovertemplate="%{customdata}<br>%{x:,} examples: %{y:.4f}<extra></extra>",
        )
    _mark_ends(view, figure, curves, scale)
    figure.update_layout(
        xaxis={"title": {"text": "training examples"}, "rangemode": "tozero"},
        yaxis={"title": {"text": view.metric}, "range": scale},
    )
    return figure


def training_figure(view: View, curves: Sequence[Curve]) -> go.Figure:
    """Training loss over examples, smoothed; the scale is that of the curves' better 98%."""
    figure = go.Figure()
    for name, colour, group in _groups(view, curves):
        x, values, numbers = _joined(group, lambda curve: curve.row.number)
        figure.add_scatter(
            x=np.array(x, dtype=np.float32),  # plotly writes arrays in base64, as they are
            y=np.array(values, dtype=np.float32),
            customdata=np.array(numbers, dtype=np.int32),
            name=name,
            legendgroup="completed" if name.startswith("completed") else name,
            showlegend=name != "completed",
            mode="lines",
            line={"color": colour, "width": 2.5 if name == "best" else 1.2},
            hovertemplate="trial %{customdata}<br>%{x:,} examples: %{y:.4f}<extra></extra>",
        )
    bad = (State.DIVERGED, State.FAILED)
    losses = sorted(y for curve in curves if curve.row.status not in bad for _, y in curve.points)
    if losses:
        low, high = losses[0], losses[int(0.98 * (len(losses) - 1))]
        margin = 0.05 * (high - low) or 0.05
        figure.update_yaxes(range=(low - margin, high + margin))
    figure.update_layout(
        xaxis={"title": {"text": "training examples"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "train loss, smoothed"}},
    )
    return figure


def cost_figure(view: View, field: str, title: str, *, more_is_cheap: bool) -> go.Figure | None:
    """The completed trials' values against what they cost; the cheap side is always on the left.

    None if nobody measured that cost.
    """
    known = [row for row in view.completed if None not in (row.value, getattr(row, field))]
    if not known:
        return None
    known.sort(
        key=lambda row: (view.is_best(row), -view.places[row.number])
    )  # the best is drawn last
    figure = go.Figure()
    figure.add_scatter(
        x=[shortened(getattr(row, field)) for row in known],
        y=[view.within(row.value or 0.0) for row in known],
        customdata=[[view.labels[row.number], shortened(row.value or 0.0)] for row in known],
        mode="markers",
        marker={
            "color": [view.colour(row) for row in known],
            "size": [14 if view.is_best(row) else 9 for row in known],
            "symbol": [_symbol(view, row) for row in known],
            "opacity": 1,
            "line": {"width": 0},
        },
        hovertemplate=f"%{{customdata[0]}}<br>{title} %{{x:,}}, %{{customdata[1]}}<extra></extra>",
        showlegend=False,
    )
    figure.update_layout(
        xaxis={"autorange": "reversed" if more_is_cheap else True},
        yaxis={"title": {"text": view.metric}, "range": view.scale},
    )
    figure.add_shape(
        xref="paper",
        yref="paper",
        x0=0,
        x1=_CORNER,
        y0=0 if view.is_minimized else 1,
        y1=_CORNER if view.is_minimized else 1 - _CORNER,
        fillcolor=BEST,
        opacity=0.12,
        layer="below",
        line={"width": 0},
    )
    return figure


def timeline_figure(view: View, spans: Sequence[Span]) -> go.Figure:
    """A bar for each stay of a trial on a device; long pauses between starts are cut out."""
    numbers = {row.key: row.number for row in view.rows}
    spans = [span for span in spans if span.trial in numbers]
    spans, pauses = without_pauses(spans)
    lanes, places_of_rows = rows_of(spans)
    figure = go.Figure()
    for outcome in dict.fromkeys(_kind(span, numbers[span.trial] == view.best) for span in spans):
        shown = [
            (span, lane)
            for span, lane in zip(spans, lanes, strict=True)
            if _kind(span, numbers[span.trial] == view.best) == outcome and lane < _MOST_ROWS
        ]
        figure.add_bar(
            x=[shortened(span.end - span.start) for span, _ in shown],
            base=[round(span.start, 2) for span, _ in shown],
            y=[lane for _, lane in shown],
            text=[numbers[span.trial] for span, _ in shown],
            customdata=[
                [
                    view.labels[numbers[span.trial]],
                    f"{duration_text(span.start)} to {duration_text(span.end)}",
                ]
                for span, _ in shown
            ],
            name=outcome,
            orientation="h",
            textposition="inside",
            insidetextanchor="middle",
            insidetextfont={"color": "white"},
            textangle=0,
            marker={
                "color": _BARS.get(outcome, f"rgb({COMPLETED})"),
                "line": {"width": 1, "color": "rgba(0,0,0,0)"},
            },
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra>" + outcome + "</extra>",
        )
    for at, length in pauses:
        figure.add_vline(x=at, line={"dash": "dot", "color": GREY, "width": 1})
        figure.add_annotation(
            x=at,
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            text=f"pause {duration_text(length)}",
            font={"size": 11},
        )
    names = [
        place if place not in places_of_rows[:i] else "" for i, place in enumerate(places_of_rows)
    ]
    end = max((span.end for span in spans), default=0.0)
    ticks = _ticks(end)
    count = min(len(names), _MOST_ROWS)
    figure.update_layout(
        barmode="overlay",
        bargap=0.12,
        height=150 + 26 * count,
        uniformtext={"minsize": 9, "mode": "hide"},
        xaxis={
            "title": {"text": "time at work"},
            "range": [0, end or 1],
            "tickvals": ticks,
            "ticktext": [duration_text(tick) for tick in ticks],
        },
        yaxis={
            "tickvals": [i for i, name in enumerate(names[:count]) if name],
            "ticktext": [escaped(name, 32) for name in names[:count] if name],
            "range": [count - 0.5, -0.5],
            "showgrid": False,
        },
    )
    return figure


def _symbol(view: View, row: Row) -> str:
    if view.is_best(row):
        return "star"
    value = row.value or 0.0
    return (
        "circle" if view.scale is None or view.within(value) == shortened(value) else "triangle-up"
    )


def _groups(view: View, curves: Sequence[Curve]) -> Iterable[tuple[str, str, list[Curve]]]:
    """(name, colour, curves) of each trace, what is to lie on top last."""
    by_state: dict[State, list[Curve]] = {}
    shades: dict[int, list[Curve]] = {}
    for curve in curves:
        if view.is_best(curve.row):
            continue
        place = view.places.get(curve.row.number)
        if place is None:
            by_state.setdefault(curve.row.status, []).append(curve)
        else:
            shades.setdefault(round(place * (_SHADES - 1)), []).append(curve)
    for state, group in sorted(by_state.items(), key=lambda item: item[0] is State.RUNNING):
        yield str(state), COLOURS.get(state, GREY), group
    for step in sorted(shades, reverse=True):
        is_first = step == min(shades)
        name = "completed, paler if worse" if is_first else "completed"
        yield name, shade(step / (_SHADES - 1)), shades[step]
    if top := [curve for curve in curves if view.is_best(curve.row)]:
        yield "best", BEST, top


def _joined(
    curves: Sequence[Curve], mark: Callable[[Curve], Any]
) -> tuple[list[int | None], list[float | None], list[Any]]:
    """All curves as one line with gaps between them, and what each point is marked by."""
    x: list[int | None] = []
    y: list[float | None] = []
    marks: list[Any] = []
    for curve in curves:
        x += [*(point[0] for point in curve.points), None]
        y += [*(point[1] for point in curve.points), None]
        marks += [mark(curve)] * (len(curve.points) + 1)
    return x, y, marks


def _mark_ends(view: View, figure: go.Figure, curves: Sequence[Curve], scale: Scale | None) -> None:
    """Where pruned, diverged and failed trials ended."""
    for state, symbol in SYMBOLS.items():
        ended = [curve for curve in curves if curve.row.status is state]
        if not ended:
            continue
        last: list[tuple[int, float]] = [curve.points[-1] for curve in ended]
        colour = COLOURS[state]
        figure.add_scatter(
            x=[x for x, _ in last],
            y=[within(value, scale) for _, value in last],
            customdata=[
                [view.labels[curve.row.number], value]
                for curve, (_, value) in zip(ended, last, strict=True)
            ],
            mode="markers",
            name=f"{state} here",
            legendgroup=str(state),
            showlegend=False,
            cliponaxis=False,
            marker={
                "symbol": symbol,
                "color": colour,
                "size": 9,
                "line": {"color": colour, "width": 2},
            },
            hovertemplate=f"{state}: %{{customdata[0]}}<br>%{{customdata[1]}}<extra></extra>",
        )


def _kind(span: Span, is_best: bool) -> str:
    return "best" if is_best and span.outcome == State.COMPLETED else span.outcome


def _ticks(most: float) -> list[int]:
    step = next((each for each in _TICKS_S if most <= 7 * each), _TICKS_S[-1])
    return [step * i for i in range(int(most / step) + 1)][:20]
