"""Makes W&B's pages of a sweep: the sweep object, which is ended with it, and a saved view.

Runs are attached to the object by `wandb.Settings(sweep_id=...)`. With the variable WANDB_SWEEP_ID
wandb would drop the run's id, project and entity. Its method is `custom`: no agent of W&B's is
handed trials. The view needs the package wandb-workspaces.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.tracking.allow_list import trial_config
from orchestrator.tracking.chart_metrics import best_name, chart_name
from sweeps.ledger.history import History
from sweeps.space.parser import lookup, space_of
from sweeps.space.space import Interval

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

T = TypeVar("T")
_LEFT = ("WANDB_ENTITY", "WANDB_PROJECT")  # what `wandb.sweep` leaves in the environment
_MOST_CURVES = 100  # of a figure; W&B would show 10
_SMOOTHING = 0.6  # of training losses: W&B's scale from 0 to 1
_EXAMPLES = "examples"  # the x-axis: all trials see equally many


def sweep_object(history: History, name: str) -> dict[str, Any]:
    """The config of W&B's sweep object: the searched keys that may be shown, and the metric.

    The metric is the best value so far, which is logged at each evaluation: W&B's page takes a
    number at the top level, not the `min` that `define_metric` adds.
    """
    intervals = _intervals(history)
    parameters: dict[str, Any] = {}
    for key, values in _shown_values(history).items():
        *path, last = key.split(".")
        part = parameters
        for word in path:
            part = part.setdefault(word, {"parameters": {}})["parameters"]
        part[last] = _parameter(intervals.get(key), values)
    return {
        "name": name,
        "method": "custom",
        "metric": {"name": best_name(history.metric), "goal": history.direction},
        "parameters": parameters,
    }


def _shown_values(history: History) -> dict[str, list[Any]]:
    """The searched keys that may be shown, and their values; the bounds of an interval."""
    found = {}
    for key, values in space_of(history.spec).values_by_key().items():
        shown = [lookup(trial_config({}, {key: value}), key) for value in values]
        if left := [value for value in shown if value is not None]:
            found[key] = left
    return found


def _intervals(history: History) -> dict[str, Interval]:
    dimensions = space_of(history.spec).dimensions
    return {each.name: each for each in dimensions if isinstance(each, Interval)}


def _parameter(interval: Interval | None, values: list[Any]) -> Mapping[str, Any]:
    if interval is None:
        return {"values": [value for n, value in enumerate(values) if value not in values[:n]]}
    kind = "int_uniform" if interval.integer else "uniform"
    if interval.log:
        kind = "q_log_uniform_values" if interval.integer else "log_uniform_values"
    return {"distribution": kind, "min": interval.low, "max": interval.high}


def make_sweep(
    config: Mapping[str, Any], *, entity: str, project: str, runs: Iterable[str], timeout_s: float
) -> str:
    """Make a sweep object on the server; returns its id.

    Args:
        runs: ids of runs that may be there already, to be added to it.

    Raises:
        TimeoutError: the server did not answer in time.
        Exception: whatever wandb raises.
    """

    def make() -> str:
        import wandb

        before = {name: os.environ.get(name) for name in _LEFT}
        try:
            with redirect_stdout(io.StringIO()):  # it prints the page, which is told elsewhere
                return wandb.sweep(dict(config), entity, project, prior_runs=list(runs))
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    return _within(timeout_s, make)


def save_view(
    history: History, *, name: str, entity: str, project: str, sweep_id: str, timeout_s: float
) -> str:
    """Save a view of the sweep's runs in the project; returns its address.

    It shows the learning curves, parallel coordinates over the searched keys that may be shown,
    their importance, and the loss against what training costs.

    Raises:
        ImportError: wandb-workspaces is not installed.
        TimeoutError: the server did not answer in time.
        Exception: whatever that package or wandb raises.
    """
    view = sweep_view(history, name=name, entity=entity, project=project, sweep_id=sweep_id)
    return _within(timeout_s, lambda: str(view.save().url))


def sweep_view(
    history: History, *, name: str, entity: str, project: str, sweep_id: str
) -> Workspace:
    """The view that `save_view` saves."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    best = panels.SummaryMetric(best_name(history.metric))
    intervals = _intervals(history)
    axes = [
        panels.ParallelCoordinatesPlotColumn(
            metric=panels.Config(key), log=True if key in intervals and intervals[key].log else None
        )
        for key in _shown_values(history)
    ]
    curve: dict[str, Any] = {"x": _EXAMPLES, "ignore_outliers": True}
    curve["max_runs_to_show"] = _MOST_CURVES
    if int(history.spec["sweep"].get("repeats") or 1) > 1:  # the seeds of a config are one curve
        curve["groupby"] = panels.Config("trial.config")
        curve |= {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    smooth = {"smoothing_type": "exponentialTimeWeighted", "smoothing_factor": _SMOOTHING}
    sections = {
        "Learning curves": [
            panels.LinePlot(title="Evaluation loss", y=[chart_name("eval_loss")], **curve),
            panels.LinePlot(title="Training loss", y=[chart_name("train_loss")], **curve, **smooth),
        ],
        "What was searched": [
            panels.ParallelCoordinatesPlot(
                columns=[*axes, panels.ParallelCoordinatesPlotColumn(metric=best)]
            ),
            panels.ParameterImportancePlot(with_respect_to=best.name),
        ],
        "Loss against what training alone costs": [
            panels.ScatterPlot(title=title, x=panels.SummaryMetric(cost), y=best)
            for cost, title in (
                ("tokens_per_second", "Tokens per second"),
                ("peak_memory_mb", "Peak memory, MiB"),
            )
        ],
    }
    layout = ws.SectionLayoutSettings(columns=2, rows=1)
    return ws.Workspace(
        entity=entity,
        project=project,
        name="".join(map(_of_a_view, name)),
        sections=[
            ws.Section(name=title, panels=shown, is_open=True, layout_settings=layout)
            for title, shown in sections.items()
        ],
        settings=ws.WorkspaceSettings(max_runs=_MOST_CURVES),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Sweep") == sweep_id],
            order=[ws.Ordering(ws.Summary(best.name), ascending=history.direction == "minimize")],
        ),
    )


def _of_a_view(letter: str) -> str:
    """A letter of a view's name, which W&B's package wants without symbols."""
    return "-" if unicodedata.category(letter)[0] == "S" else letter


def _within(timeout_s: float, act: Callable[[], T]) -> T:
    """What `act` returns, which another thread calls; raises TimeoutError if it takes longer."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(act).result(timeout_s)
    except TimeoutError:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    finally:
        pool.shutdown(wait=False)


def end_sweep(sweep_path: str, timeout_s: float) -> str:
    """End a sweep object, by wandb's command line; returns what went wrong, or nothing.

    Args:
        sweep_path: entity/project/id.
    """
    command = [sys.executable, "-m", "wandb", "sweep", "--stop", sweep_path]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}"
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0 or "Sweep already finished" in done.stderr:
        return ""
    return lines[-1] if lines else f"exit code {done.returncode}"
