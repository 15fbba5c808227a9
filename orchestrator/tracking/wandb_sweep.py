"""Makes and ends W&B's sweep object, whose page shows the trials beside what was searched.

Runs are attached to it by `wandb.Settings(sweep_id=...)`. With the variable WANDB_SWEEP_ID wandb
would drop the run's id, project and entity. Its method is `custom`: no agent of W&B's is handed
trials.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from typing import Any

from orchestrator.tracking.allow_list import trial_config
from sweeps.ledger.history import History
from sweeps.space.parser import lookup, space_of
from sweeps.space.space import Interval

_LEFT = ("WANDB_ENTITY", "WANDB_PROJECT")  # what `wandb.sweep` leaves in the environment


def sweep_object(history: History, name: str) -> dict[str, Any]:
    """The config of W&B's sweep object: the searched keys that may be shown, and the metric.

    The metric is the best value so far, which is logged at each evaluation: W&B's page takes a
    number at the top level, not the `min` that `define_metric` adds.
    """
    space = space_of(history.spec)
    intervals = {each.name: each for each in space.dimensions if isinstance(each, Interval)}
    parameters: dict[str, Any] = {}
    for key, values in space.values_by_key().items():
        shown = [lookup(trial_config({}, {key: value}), key) for value in values]
        found = [value for value in shown if value is not None]
        if found:
            *path, last = key.split(".")
            part = parameters
            for word in path:
                part = part.setdefault(word, {"parameters": {}})["parameters"]
            part[last] = _parameter(intervals.get(key), found)
    return {
        "name": name,
        "method": "custom",
        "metric": {"name": f"best_{history.metric}", "goal": history.direction},
        "parameters": parameters,
    }


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

    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(make).result(timeout_s)
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
