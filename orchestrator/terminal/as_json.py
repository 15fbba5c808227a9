"""A sweep for programs: its state as one JSON object, its events a line each as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from orchestrator.best.model_card import is_ready
from orchestrator.storage.run_dir import not_found
from orchestrator.terminal.format import loss_text
from orchestrator.terminal.progress import (
    is_over,
    planned_configs,
    planned_trials,
    read_progress,
    time_left_s,
)
from orchestrator.terminal.status import lock_holder
from sweeps.core.errors import SweepError
from sweeps.core.naming import trial_name
from sweeps.core.trial import State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, read_history
from sweeps.ledger.ledger import Tail
from sweeps.results.ranking import base_value, best
from sweeps.results.significance import compare
from sweeps.results.trials_csv import columns, ranked
from sweeps.storage.run_folder import RunFolder

_TICK_S = 0.5


def status_object(folder: RunFolder) -> dict[str, Any]:
    """The state of a sweep; docs/steer.md describes the fields, whose order is fixed.

    Raises:
        SweepError: the folder holds no sweep.
    """
    if not folder.ledger.is_file():
        raise SweepError(not_found(folder))
    holder = lock_holder(folder.lock)
    history = read_history(folder.ledger)
    if holder is None:
        history.stop_running()
    progress = read_progress(folder, history)
    total = planned_trials(history, planned_configs(history.spec))
    found = best(history)
    return {
        "name": history.name,
        "run_dir": str(folder.root),
        "state": _state(history, holder),
        "driver": holder,
        "paused_by": history.paused_by or None,
        "metric": history.metric,
        "planned": total,
        "ended": history.ended,
        "counts": {str(state): history.count(state) for state in State},
        "seconds_left": time_left_s(history, progress, total, time.time()) if holder else None,
        "base": base_value(history),
        "best": None
        if found is None
        else {
            "number": found.record.number,
            "key": found.record.key,
            "value": found.report.metrics[history.metric],
            "step": found.report.step,
            "folder": str(folder.best) if is_ready(folder, found) else None,
        },
        "trials": [
            {
                **{name: getattr(row, field) for name, field in columns(history.metric).items()},
                "name": trial_name(row.values),
                "progress": progress[row.key].fraction if row.key in progress else None,
                "values": dict(row.values),
            }
            for row in ranked(history, compare(history, folder))
        ],
    }


def follow(folder: RunFolder, *, as_json: bool) -> Iterator[str]:
    """A line for each event of the ledger, until no driver holds the sweep.

    Args:
        as_json: the events as the ledger has them; else in words.

    Raises:
        SweepError: the folder holds no sweep.
    """
    if not folder.ledger.is_file():
        raise SweepError(not_found(folder))
    tail, history = Tail(folder.ledger), History()
    while True:
        holder = lock_holder(folder.lock)
        for event in tail.events():
            history.apply(event)
            yield json.dumps(event.to_json()) if as_json else _line(event, history)
        if holder is None:
            return
        time.sleep(_TICK_S)


def _state(history: History, holder: str | None) -> str:
    if holder is not None:
        return "paused" if history.paused_by else "running"
    return "finished" if is_over(history) else "stopped"


def _line(event: Event, history: History) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(float(event.time or 0)))
    return f"{clock}  {_words(event, history)}"


def _words(event: Event, history: History) -> str:
    match event:
        case events.Attempt():
            return f"start {history.attempts} of the sweep on {event.host}, pid {event.pid}"
        case events.Ask():
            return f"trial {event.number} asked for: {trial_name(event.params)}"
        case events.Report(index=0):
            return f"base model: {history.metric} {loss_text(base_value(history))}"
        case events.TrialEvent():
            number = history.trials[event.trial].number
            return f"trial {number} {_of_trial(event, history.metric)}"
        case events.Request():
            return f"{event.verb}, asked by {event.by}: {event.said}"
        case events.Interrupt():
            return f"interrupted: {event.reason}"
    return event.event


def _of_trial(event: events.TrialEvent, metric: str) -> str:
    match event:
        case events.Start():
            return f"started on {event.worker}, attempt {event.attempt}, step {event.step}"
        case events.Report():
            value = loss_text(float(event.metrics[metric]))
            return f"report {event.index}: {metric} {value}, {event.decision}"
        case events.Checkpoint():
            return f"committed step {event.step}"
        case events.Retry():
            return f"waits: {event.reason}"
        case events.End():
            return f"{event.state}: {event.reason}" if event.reason else str(event.state)
    return event.event
