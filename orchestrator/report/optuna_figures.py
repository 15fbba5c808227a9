"""The figures that Optuna draws: slices, parallel coordinates, importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
import plotly.graph_objects as go
from optuna.trial import create_trial
from optuna.visualization import (
    plot_parallel_coordinate,
    plot_param_importances,
    plot_slice,
)

from orchestrator.report.knobs import Knob
from orchestrator.report.text import escaped
from orchestrator.report.view import COLOURS, COMPLETED, SYMBOLS, View, shortened
from sweeps.core.naming import short_value
from sweeps.results.importance import importance_evaluator
from sweeps.results.trials_csv import Row

MOST_LINES = 200  # of parallel coordinates: the best trials
_MOST_TICKS = 8
_FAR = 30  # times the smallest number: a log axis then shows powers of ten alone


def slice_figure(view: View, knob: Knob) -> go.Figure:
    """The completed trials' values, repeats too, over one knob; what stopped early at the edge."""
    shown = [row for row in view.completed if knob.of(row) is not None]
    study = _study([knob], shown, spaced=True)
    figure = plot_slice(study, [knob.head], target_name=view.metric)
    texts = {repr(value): value for value in knob.values}
    for trace in figure.data:
        drawn = [shown[number] for number in trace.marker.color]  # Optuna groups them by value
        trace.update(
            x=[texts.get(x, x) for x in trace.x],
            y=[view.within(value) for value in trace.y],
            customdata=[[view.labels[row.number], shortened(row.value or 0.0)] for row in drawn],
            hovertemplate="%{customdata[0]}<br>%{x}: %{customdata[1]}<extra></extra>",
            marker={
                "color": [view.colour(row) for row in drawn],
                "size": [13 if view.is_best(row) else 9 for row in drawn],
                "symbol": ["star" if view.is_best(row) else "circle" for row in drawn],
                "opacity": 1,
                "showscale": False,
            },
        )
    for state, symbol in SYMBOLS.items():
        stopped = [row for row in view.rows if row.status is state and knob.of(row) is not None]
        if stopped and view.scale is not None:
            figure.add_scatter(
                x=[knob.of(row) for row in stopped],
                y=[shortened(view.scale[view.is_minimized])] * len(stopped),
                customdata=[view.labels[row.number] for row in stopped],
                mode="markers",
                name=str(state),
                showlegend=False,
                cliponaxis=False,
                marker={
                    "symbol": symbol,
                    "size": 8,
                    "color": COLOURS[state],
                    "line": {"color": COLOURS[state], "width": 2},
                },
                hovertemplate=f"{state}: %{{customdata}}<extra></extra>",
            )
    figure.update_layout(title=None, showlegend=False)
    figure.update_xaxes(title=None)
    figure.update_yaxes(range=view.scale)
    if not knob.is_number:
        figure.update_xaxes(categoryarray=list(knob.values), type="category")
    elif knob.is_choice and len(knob.values) <= _MOST_TICKS:
        texts_of = [short_value(value) for value in knob.values]
        figure.update_xaxes(tickmode="array", tickvals=list(knob.values), ticktext=texts_of)
    elif knob.is_log:
        numbers = [float(value) for value in knob.values]
        is_far = max(numbers) >= _FAR * min(numbers)
        tickformat = ".0e" if min(numbers) < 0.01 else None
        figure.update_xaxes(tickformat=tickformat, dtick=1 if is_far else None)
    return figure


def parallel_figure(view: View, knobs: Sequence[Knob]) -> go.Figure:
    """A line for each of the best completed trials, through its value and its knobs."""
    shown = view.completed[:MOST_LINES]
    names = [knob.head for knob in knobs if any(knob.of(row) is not None for row in shown)]
    study = _study(knobs, shown, spaced=False)
    figure = plot_parallel_coordinate(study, names, target_name=view.metric)
    lines = [trace for trace in figure.data if trace.mode == "lines"]  # the axes are none
    # Optuna's order is its own; the first point of a line is the trial's value.
    lines.sort(key=lambda line: line.y[0])
    shown.sort(key=lambda row: row.value or 0.0)
    for row, line in zip(shown, lines, strict=True):
        line.opacity = 1
        line.line = {"color": view.colour(row), "width": 3.5 if view.is_best(row) else 1.4}
    top_last = sorted(range(len(lines)), key=lambda i: -view.places[shown[i].number])
    figure.data = [lines[i] for i in top_last]
    figure.update_layout(title=None, plot_bgcolor=None, showlegend=False)
    return figure


def importance_figure(study: optuna.Study, heads: Mapping[str, str]) -> go.Figure:
    """Each knob's share of what sets the best trials apart.

    Args:
        study: of `sweeps.search.optuna_export.study_of`.
        heads: the short name of each dimension.
    """
    figure = plot_param_importances(study, evaluator=importance_evaluator(study))
    for trace in figure.data:
        names = [heads.get(name, escaped(name)) for name in trace.y]
        shares = [f"{share:.0%}" for share in trace.x]
        trace.update(
            y=names,
            x=[shortened(share) for share in trace.x],
            text=shares,
            marker={"color": f"rgb({COMPLETED})"},
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
        figure.update_layout(height=60 + 34 * len(names))
        figure.update_xaxes(range=(0, 1.2 * max(trace.x, default=1)))  # room for the text
    figure.update_layout(title=None, showlegend=False)
    figure.update_xaxes(title=None, tickformat=".0%")
    figure.update_yaxes(title=None)
    return figure


def _study(knobs: Sequence[Knob], rows: Sequence[Row], *, spaced: bool) -> optuna.Study:
    """A study for a picture: the rows as its trials, in their order, repeats one by one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    kinds = {knob.head: knob.kind(spaced=spaced) for knob in knobs}
    for row in rows:
        params = {knob.head: value for knob in knobs if (value := knob.of(row)) is not None}
        study.add_trial(
            create_trial(
                value=row.value,
                params=params,
                distributions={name: kinds[name] for name in params},
            )
        )
    return study
