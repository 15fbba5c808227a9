"""Carries out what users ask of a sweep: each request once, by the event that it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import LedgerWriteError
from sweeps.core.trial import State
from sweeps.ledger.history import Record
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


def _stop_all(
    coordinator: Coordinator, request: Request, records: list[Record], head: str = "", *tail: str
) -> str:
    running = [record for record in records if record.state is State.RUNNING]
    waiting = [record for record in records if record.state is State.WAITING]
    parts = [head] if head else []
    if running:
        s = _s(running)
        parts.append(
            f"{_named(running)} commit{s} a checkpoint after the next step and end{s} as stopped"
        )
    if waiting:
        parts.append(f"{_named(waiting)} end{_s(waiting)} as stopped now")
    said = "; ".join([*parts, *tail])
    coordinator.note(request, said, [record.key for record in records])
    for record in waiting if coordinator.has_begun else ():
        coordinator.end_if_decided(record)
    return said


def _unfinished(coordinator: Coordinator, key: str) -> Record:
    record = coordinator.history.trials.get(key)
    if record is None:
        raise Refused(f"the sweep has no trial {key}")
    if record.state.is_finished():
        raise Refused(f"trial {record.number} has ended already: it is {record.state}")
    return record


def _refuse_if_over(coordinator: Coordinator) -> None:
    if coordinator.is_finished and not coordinator.history.unfinished():
        raise Refused("the sweep has ended already")


def _named(records: list[Record]) -> str:
    numbers = ", ".join(str(record.number) for record in records)
    return f"trial {numbers}" if len(records) == 1 else f"trials {numbers}"


def _s(records: list[Record]) -> str:
    return "s" if len(records) == 1 else ""


_VERBS = {"stop": _stop, "finish": _finish, "cancel": _cancel}
