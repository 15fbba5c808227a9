"""Carries out what users ask of a sweep: each request once, by the event that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf.errors import OmegaConfBaseException

from sweeps.config.keys import SETTABLE, may_change, search_refusal
from sweeps.config.trial_config import config_of, trial_key
from sweeps.config.validation import key_values, read_train, sweep_problems
from sweeps.coordinator.changes import changed, value_of
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import ConfigError, LedgerWriteError, Problem, first_line
from sweeps.core.trial import OUTSIDE, State
from sweeps.ledger.history import Record
from sweeps.search.first import picked_of
from sweeps.search.samplers import search_problems
from sweeps.space.parser import lookup
from sweeps.storage.requests import Answer, Request, Unreadable, write_answer
from sweeps.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from sweeps.coordinator.coordinator import Coordinator


class Refused(Exception):
    """A request that cannot be carried out; the message is the answer."""


def take(coordinator: Coordinator, request: Request) -> Answer:
    """Carry out a request that is not in the ledger yet, and answer it.

    Raises:
        LedgerWriteError: it cannot be written down, and nothing was done.
    """
    known = coordinator.history.answered.get(request.name)
    if known is not None:
        return Answer(is_done=True, said=known)
    try:
        return Answer(is_done=True, said=_VERBS[request.verb](coordinator, request))
    except Refused as refusal:
        return Answer(is_done=False, said=str(refusal))


def answer(coordinator: Coordinator, folder: RunFolder, request: Request | Unreadable) -> Answer:
    """Carry out a request, and write the answer beside it."""
    if isinstance(request, Unreadable):
        found = Answer(is_done=False, said=request.why)
    else:
        try:
            found = coordinator.take(request)
        except LedgerWriteError as error:
            found = Answer(is_done=False, said=str(error))
    write_answer(folder, request.name, found)
    return found


def _stop(coordinator: Coordinator, request: Request) -> str:
    records = [_unfinished(coordinator, key) for key in request.trials]
    return _stop_all(coordinator, request, records)


def _finish(coordinator: Coordinator, request: Request) -> str:
    _refuse_if_over(coordinator)
    records = coordinator.history.unfinished()
    tail = "then trials are ranked and the best one is proven"
    said = _stop_all(coordinator, request, records, "no more trials begin", tail)
    coordinator.stop_for(Stop(cause=Cause.FINISHED, details=(request.by,)))
    return said


def _cancel(coordinator: Coordinator, request: Request) -> str:
    if not coordinator.has_begun or request.start != coordinator.history.attempts:
        raise Refused("the start that was meant is over, and nothing of it runs")
    said = "running trials commit a checkpoint and stop; the same command goes on"
    coordinator.note(request, said)
    coordinator.interrupt(Stop(cause=Cause.CANCELLED, details=(request.by,)))
    return said


def _pause(coordinator: Coordinator, request: Request) -> str:
    _refuse_if_over(coordinator)
    history = coordinator.history
    if history.paused_by and history.is_idle == request.now:
        raise Refused(f"the sweep is paused already, by {history.paused_by}")
    running = [r for r in history.unfinished() if r.state is State.RUNNING]
    parts = ["no trial begins until `resume`"]
    if running and request.now:
        s = _s(running)
        parts.append(f"{_named(running)} {_commit(running)} and wait{s}")
    if request.now:
        parts.append("workers leave their devices")
    elif running:
        parts.append(f"{_named(running)} go{'es' if len(running) == 1 else ''} on")
    said = "; ".join(parts)
    coordinator.note(request, said, values={"now": request.now})
    return said


def _resume(coordinator: Coordinator, request: Request) -> str:
    if request.trials:
        return _resume_trials(coordinator, request)
    if not coordinator.history.paused_by:
        raise Refused("the sweep is not paused")
    said = "trials begin again, and go on from their checkpoints"
    coordinator.note(request, said)
    return said


def _resume_trials(coordinator: Coordinator, request: Request) -> str:
    records = []
    for key in dict.fromkeys(request.trials):
        record = _known(coordinator, key)
        if not record.state.is_finished():
            raise Refused(f"trial {record.number} has not ended: it is {record.state}")
        if why := why_not_resumed(record.state):
            raise Refused(f"trial {record.number} {why}")
        records.append(record)
    parts = []
    for record in records:
        step = max(record.checkpoints, default=0)
        parts.append(
            f"trial {record.number} goes on from its checkpoint of step {step}"
            if step
            else f"trial {record.number} begins anew"
        )
    told = "Optuna is told of it as of a further trial with the same values"
    if any(record.config >= OUTSIDE for record in records):
        told = "Optuna is not told of what its space does not hold"
    said = f"{', '.join(parts)}, as soon as a worker is free; no pruner ends it again; {told}"
    coordinator.resume(request, records, said)
    return said


def why_not_resumed(state: State) -> str:
    """Why a trial that ended so cannot go on; empty if it can."""
    if state is State.COMPLETED:
        return "has spent its budget: it is completed"
    if state is State.DIVERGED:
        return "diverged, and would again: `clone` it with another value"
    return ""


def _add(coordinator: Coordinator, request: Request) -> str:
    return _new_trial(coordinator, request, dict(request.values), None)


def _clone(coordinator: Coordinator, request: Request) -> str:
    if len(request.trials) != 1:
        raise Refused("one trial is cloned at a time")
    parent = _known(coordinator, request.trials[0])
    return _new_trial(coordinator, request, {**parent.values, **request.values}, parent)


def _new_trial(
    coordinator: Coordinator, request: Request, given: Mapping[str, Any], parent: Record | None
) -> str:
    spec, space = coordinator.spec, coordinator.space
    if bad := [key for key in request.values if search_refusal(key) != ""]:
        raise Refused(f"{', '.join(bad)}: no key that a trial may vary")
    try:
        config = config_of(spec, given)
        read_train(config)
    except (ConfigError, OmegaConfBaseException) as error:
        raise Refused(first_line(error)) from None
    warm = _weights(coordinator, request, parent) if parent and request.warm else None
    picked = picked_of(partial(lookup, config), space) if warm is None else None
    if picked is not None and config_of(spec, space.values(picked)) != config:
        picked = None  # a key that is not searched has another value
    if picked is None:
        searched = {key: lookup(config, key) for key in space.values_by_key()}
        values = {key: value for key, value in searched.items() if value is not None}
        values |= given
    else:
        values = space.values(picked)
    start = None if warm is None or parent is None else {"trial": parent.key, "step": warm}
    known = coordinator.history.trials.get(trial_key(config_of(spec, values, warm=start)))
    if known is not None:
        raise Refused(f"trial {known.number} is of this config already: it is {known.state}")
    record = coordinator.add(request, values, picked, parent, warm)
    told = "Optuna is told of it" if picked is not None else "Optuna is not told of it"
    why = "" if picked is not None else ", since its space does not hold it"
    ranked = "it is ranked with the others"
    if warm is not None and parent is not None:
        why = f", since it begins with the weights of trial {parent.number}, step {warm}"
        ranked = "it is not ranked, as it has learnt from more examples"
    return f"trial {record.number} trains as soon as a worker is free; {ranked}; {told}{why}"


def _weights(coordinator: Coordinator, request: Request, parent: Record) -> int:
    """Step of the parent's checkpoint that a warm clone begins with."""
    if bad := [key for key in request.values if not _keeps_weights(key)]:
        raise Refused(f"{', '.join(bad)}: the parent's weights would not fit; leave out --warm")
    if coordinator.spec.strategy == "fsdp":
        raise Refused("weights that are shared out by fsdp cannot be begun with: leave out --warm")
    best = parent.best(coordinator.history.metric, coordinator.history.direction)
    there = [
        step
        for step in parent.checkpoints
        if coordinator.folder.checkpoint(parent.key, step).is_dir()
    ]
    if not there:
        raise Refused(
            f"trial {parent.number} has no checkpoint left: clone it without --warm; sweep.keep "
            "says how many of the best keep theirs"
        )
    return best.step if best is not None and best.step in there else max(there)


def _keeps_weights(key: str) -> bool:
    """Whether a model's weights fit a config in which this key has another value."""
    return key.startswith("trainer.") or key in ("peft.lora_alpha", "peft.lora_dropout")


def _set(coordinator: Coordinator, request: Request) -> str:
    history, spec = coordinator.history, coordinator.spec
    values = dict(request.values)
    if not values or not set(values) <= set(SETTABLE):
        raise Refused(f"{', '.join(values) or 'nothing'} cannot be set while a sweep runs")
    try:
        new = changed(spec, key_values(values))
        problems = search_problems(new.sweep, coordinator.space)
        problems += [each for each in sweep_problems(new.sweep) if each.key in values]
        problems += [
            Problem(key=key, value=value_of(new, key), message="may become more, and not less.")
            for key in values
            if not may_change(key) and value_of(new, key) < value_of(spec, key)
        ]
    except ConfigError as error:
        problems = list(error.problems)
    if problems:
        raise Refused("; ".join(map(str, problems)))
    said = ", ".join(f"{key} is {value_of(new, key)} from now on" for key in values)
    typed = {key: history.typed.get(key, value_of(spec, key)) for key in values}
    held = {key: value_of(new, key) for key in values}
    coordinator.note(request, f"{said}, and at later starts", values=held, typed=typed)
    coordinator.change(new)
    return f"{said}, and at later starts"


def _stop_all(
    coordinator: Coordinator, request: Request, records: list[Record], head: str = "", *tail: str
) -> str:
    running = [record for record in records if record.state is State.RUNNING]
    waiting = [record for record in records if record.state is State.WAITING]
    parts = [head] if head else []
    if running:
        parts.append(f"{_named(running)} {_commit(running)} and end{_s(running)} as stopped")
    if waiting:
        parts.append(f"{_named(waiting)} end{_s(waiting)} as stopped now")
    said = "; ".join([*parts, *tail])
    coordinator.note(request, said, trials=tuple(record.key for record in records))
    for record in waiting if coordinator.has_begun else ():
        coordinator.end_if_decided(record)
    return said


def _known(coordinator: Coordinator, key: str) -> Record:
    record = coordinator.history.trials.get(key)
    if record is None:
        raise Refused(f"the sweep has no trial {key}")
    return record


def _unfinished(coordinator: Coordinator, key: str) -> Record:
    record = _known(coordinator, key)
    if record.state.is_finished():
        raise Refused(f"trial {record.number} has ended already: it is {record.state}")
    return record


def _refuse_if_over(coordinator: Coordinator) -> None:
    if coordinator.is_finished and not coordinator.history.unfinished():
        raise Refused("the sweep has ended already")


def _named(records: list[Record]) -> str:
    numbers = ", ".join(str(record.number) for record in records)
    return f"trial {numbers}" if len(records) == 1 else f"trials {numbers}"


def _commit(records: list[Record]) -> str:
    of = "its" if len(records) == 1 else "their"
    return f"commit{_s(records)} a checkpoint of {of} last optimizer step"


def _s(records: list[Record]) -> str:
    return "s" if len(records) == 1 else ""


_VERBS = {
    "stop": _stop,
    "finish": _finish,
    "cancel": _cancel,
    "pause": _pause,
    "resume": _resume,
    "set": _set,
    "add": _add,
    "clone": _clone,
}
