"""Requests to a sweep that runs or waits: a file each under a new name, the answer beside it.

Whoever sees the run folder, or its copy in a store, may ask; the Coordinator reads a request once,
writes what follows from it into the ledger, and answers. The event in the ledger is the truth: a
request that has one is not carried out again.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Literal

import pydantic

from sweeps.core.errors import first_line
from sweeps.storage.durable_writes import write_text
from sweeps.storage.object_store import Store
from sweeps.storage.run_folder import REQUESTS, RunFolder

_REQUEST = ".json"
ANSWER = ".answer.json"
_DIGITS = 20  # of the time in a request's name, ns

Verb = Literal["stop", "finish", "cancel", "pause", "resume", "set", "add", "clone"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a verb asks of a sweep.

    Attributes:
        name: of its file, without the suffix; names sort in the order in which they were written.
        by: who asked, and from where.
        trials: keys of the trials that are meant.
        values: config keys, and what they are to be set to.
        now: running trials are meant, too.
        warm: a clone begins with its parent's best weights.
        start: how many starts the sweep had had when it was asked.
    """

    name: str
    verb: Verb
    by: str
    trials: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    now: bool = False
    warm: bool = False
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a request.

    Attributes:
        is_done: whether it was carried out; else `said` is why not.
        said: what will happen, and when.
    """

    is_done: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A file among the requests that is none."""

    name: str
    why: str


def make_request(verb: Verb, *, trials: Sequence[str] = (), by: str = "", **more: Any) -> Request:
    """A request under a new name.

    Args:
        by: who asks; empty for this user on this machine.
        more: other fields of `Request`.
    """
    name = f"{time.time_ns():0{_DIGITS}d}-{uuid.uuid4().hex[:8]}"
    return Request(name=name, verb=verb, by=by or _this_user(), trials=tuple(trials), **more)


def write_request(place: RunFolder | Store, request: Request) -> Request:
    """Put a request where the sweep's driver looks for it; the request as it lies there.

    It is read after those that lie there already, also if the clock of a machine that wrote one of
    them is ahead.

    Raises:
        OSError: it cannot be written.
    """
    time_ns, _, own = request.name.partition("-")
    latest = max((int(n[:_DIGITS]) for n in _names(place) if n[:_DIGITS].isdecimal()), default=0)
    if latest >= int(time_ns):
        request = replace(request, name=f"{latest + 1:0{_DIGITS}d}-{own}")
    _write(place, f"{request.name}{_REQUEST}", asdict(request))
    return request


def write_answer(folder: RunFolder, name: str, answer: Answer) -> None:
    """Answer the request of this name; raises OSError."""
    _write(folder, f"{name}{ANSWER}", asdict(answer))


def read_answer(place: RunFolder | Store, name: str) -> Answer | None:
    """The answer to the request of this name; None if there is none yet."""
    data = _read(place, f"{name}{ANSWER}")
    try:
        return None if data is None else Answer(**json.loads(data))
    except (ValueError, TypeError):
        return None


def unanswered_requests(folder: RunFolder) -> list[Request | Unreadable]:
    """The requests without an answer, the oldest first. Cheap: the driver asks several times a
    second."""
    there = set(_names(folder))
    names = [
        name.removesuffix(_REQUEST)
        for name in there
        if name.endswith(_REQUEST) and not name.endswith(ANSWER) and not name.startswith(".")
    ]
    return [_parsed(folder, name) for name in sorted(names) if f"{name}{ANSWER}" not in there]


def fetch_requests(store: Store, folder: RunFolder) -> None:
    """Bring the requests that were put into a store into the folder; raises OSError."""
    for name in sorted(_names(store)):  # the driver may look before all are here
        if name.endswith(_REQUEST) and not (folder.requests / name).exists():
            store.get(f"{REQUESTS}/{name}", folder.requests / name)


def _names(place: RunFolder | Store) -> list[str]:
    """The files among the requests; none if the folder cannot be read."""
    if isinstance(place, Store):
        return [name for name in place.tree(REQUESTS) if "/" not in name]
    try:
        return [entry.name for entry in os.scandir(place.requests)]
    except OSError:
        return []


def _parsed(folder: RunFolder, name: str) -> Request | Unreadable:
    try:
        request = _reader().validate_json((folder.requests / f"{name}{_REQUEST}").read_bytes())
    except (OSError, ValueError) as error:
        return Unreadable(name=name, why=f"the request cannot be read: {first_line(error)[:200]}")
    if request.name != name:
        return Unreadable(name=name, why=f"the request bears another name, {request.name}")
    return request


@cache
def _reader() -> pydantic.TypeAdapter[Request]:
    return pydantic.TypeAdapter(Request)


def _write(place: RunFolder | Store, name: str, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, allow_nan=False)
    if isinstance(place, Store):
        place.write(f"{REQUESTS}/{name}", text.encode())
    else:
        write_text(place.requests / name, text)


def _read(place: RunFolder | Store, name: str) -> bytes | None:
    if isinstance(place, Store):
        return place.read(f"{REQUESTS}/{name}")
    try:
        return (place.requests / name).read_bytes()
    except FileNotFoundError:
        return None


def _this_user() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
