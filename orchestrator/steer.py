"""The verbs that steer a sweep, running or waiting: each writes a request and waits for its answer.

The Coordinator reads the request and decides (`sweeps.coordinator.steering`); what can be told from
the run folder alone is refused here, before anything is written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from orchestrator.config.checks import trial_problems
from orchestrator.storage.run_dir import fetched, not_found, unanswered
from orchestrator.terminal.progress import is_over
from orchestrator.terminal.status import lock_holder
from sweeps.config.keys import SETTABLE, may_change, may_grow, search_refusal
from sweeps.config.validation import key_values
from sweeps.coordinator.steering import why_not_resumed
from sweeps.core.errors import ConfigError, SweepError, nearest
from sweeps.core.naming import trial_name
from sweeps.ledger.history import History, Record, read_history
from sweeps.results.outlook import command_with
from sweeps.storage.driver_lease import holder_of
from sweeps.storage.object_store import Store, is_uri
from sweeps.storage.requests import (
    Answer,
    Request,
    make_request,
    read_answer,
    unanswered_requests,
    write_request,
)
from sweeps.storage.run_folder import RunFolder, folder_text

_EPILOG = "TRIAL is a trial's number, key or name, as the tables show it."
_ANSWER_S = 20.0  # a driver looks several times a second, through a store every few seconds
_TICK_S = 0.1


@dataclass(frozen=True)
class Sweep:
    """The sweep that a verb is about.

    Attributes:
        named: the run folder, as the user named it.
        folder: the run folder on this machine.
        store: the run folder, if it lies in a store.
    """

    named: str
    folder: RunFolder
    store: Store | None

    @classmethod
    def at(cls, run_dir: str) -> Sweep:
        """The sweep in this run folder.

        Raises:
            SweepError: it holds none; the message names run folders nearby.
        """
        named = run_dir.removeprefix("run_dir=")
        folder = RunFolder(fetched(named))
        if not folder.has_begun and lock_holder(folder.lock):
            raise SweepError(
                f"the sweep in {folder_text(folder.root)} has not begun yet: its driver is getting "
                "ready. Try again in a moment."
            )
        if not folder.has_begun:
            raise SweepError(not_found(folder))
        return cls(named, folder, Store(named) if is_uri(named) else None)

    @cached_property
    def history(self) -> History:
        history = read_history(self.folder.ledger)
        if self.driver is None:
            history.stop_running()
        return history

    @cached_property
    def driver(self) -> str | None:
        """`host, pid` of the driver; None if the sweep waits."""
        held = lock_holder(self.folder.lock)
        return held if held or self.store is None else holder_of(self.store)

    @property
    def command(self) -> str:
        """The command that goes on with the sweep."""
        return self.history.driver.command or "the one that began it"

    def trial(self, word: str) -> Record:
        """The trial of this number, key or name.

        Raises:
            SweepError: there is none, or more than one.
        """
        records = list(self.history.trials.values())
        found = [r for r in records if word in (str(r.number), r.key)]
        found = found or [r for r in records if trial_name(r.values) == word]
        if len(found) > 1:
            numbers = ", ".join(str(record.number) for record in found)
            raise SweepError(f"{word}: trials {numbers} bear this name; give a number.")
        if not found:
            last = f"0 to {len(records) - 1}" if records else "none yet"
            raise SweepError(f"{word}: no such trial; {folder_text(self.folder.root)} has {last}.")
        return found[0]

    def unfinished_trial(self, word: str) -> Record:
        """The same, of one that has not ended; raises SweepError."""
        record = self.trial(word)
        if record.state.is_finished():
            raise SweepError(f"trial {record.number} has ended already: it is {record.state}.")
        return record

    @property
    def will_pause(self) -> bool:
        """Whether a pause was asked for that no driver has read yet, and not taken back."""
        asked = [
            request.verb
            for request in unanswered_requests(self.folder)
            if isinstance(request, Request)
            and request.verb in ("pause", "resume")
            and not request.trials
        ]
        return asked[-1:] == ["pause"]

    def refuse_if_over(self) -> None:
        """Raise SweepError if the sweep has ended."""
        if is_over(self.history):
            raise SweepError(f"the sweep in {folder_text(self.folder.root)} has ended already.")


def steer(verb: str, options: argparse.Namespace) -> int:
    """Carry out a verb; returns the exit code.

    Args:
        options: as `parser` reads them.

    Raises:
        SweepError: it is refused; nothing changes.
    """
    sweep = Sweep.at(options.run_dir)
    request = _REQUESTS[verb](sweep, options)
    sweep = Sweep.at(options.run_dir)  # the checks may take seconds, in which the sweep may end
    has_ended = is_over(sweep.history) and sweep.driver is None
    place = sweep.store or sweep.folder
    try:
        request = write_request(place, request)
        answer = _wait(sweep, request) if sweep.driver else None
    except OSError as error:
        if sweep.store is None:
            raise
        raise unanswered(sweep.store, error) from None
    if answer is not None and not answer.is_done:
        raise SweepError(f"{verb}: {answer.said}.")
    said = _not_yet(sweep) if answer is None else answer.said
    if has_ended:
        raise SweepError(
            f"the sweep in {folder_text(sweep.folder.root)} has ended: it trains this once the "
            f"command that reopens it is run: {sweep.command}"
        )
    print(json.dumps(_told(sweep, request, answer, said)) if options.json else f"{verb}: {said}.")
    return 0


def _wait(sweep: Sweep, request: Request) -> Answer | None:
    """The answer of the driver, which may be slow; None if there is none in time."""
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline:
        answer = read_answer(sweep.store or sweep.folder, request.name)
        if answer is not None or _has_ended(sweep):
            return answer
        time.sleep(_TICK_S)
    return None


def _has_ended(sweep: Sweep) -> bool:
    """Whether the driver has ended meanwhile, as far as this machine can see."""
    return sweep.store is None and lock_holder(sweep.folder.lock) is None


def _not_yet(sweep: Sweep) -> str:
    if sweep.driver and not _has_ended(sweep):
        return f"asked; the driver ({sweep.driver}) has not answered yet, and will read it"
    return f"no driver runs; the next start of the sweep reads this first: {sweep.command}"


def _told(sweep: Sweep, request: Request, answer: Answer | None, said: str) -> Mapping[str, Any]:
    """What --json prints; docs/steer.md describes the fields."""
    numbers = [sweep.history.trials[key].number for key in request.trials]
    return {
        "verb": request.verb,
        "run_dir": sweep.named,
        "request": request.name,
        "done": answer is not None,
        "said": said,
        "trials": numbers,
    }


def _stop(sweep: Sweep, options: argparse.Namespace) -> Request:
    sweep.refuse_if_over()
    records = [sweep.unfinished_trial(word) for word in options.trial]
    return make_request("stop", trials=[record.key for record in records])


def _finish(sweep: Sweep, options: argparse.Namespace) -> Request:
    sweep.refuse_if_over()
    return make_request("finish")


def _cancel(sweep: Sweep, options: argparse.Namespace) -> Request:
    sweep.refuse_if_over()
    if sweep.driver is None:
        folder = folder_text(sweep.folder.root)
        raise SweepError(f"no driver runs the sweep in {folder}: there is nothing to cancel.")
    return make_request("cancel", start=sweep.history.attempts)


def _pause(sweep: Sweep, options: argparse.Namespace) -> Request:
    sweep.refuse_if_over()
    return make_request("pause", now=options.now)


def _resume(sweep: Sweep, options: argparse.Namespace) -> Request:
    if options.trial:
        records = [sweep.trial(word) for word in options.trial]
        for record in records:
            if not record.state.is_finished():
                raise SweepError(f"trial {record.number} has not ended: it is {record.state}.")
            if why := why_not_resumed(record.state):
                raise SweepError(f"trial {record.number} {why}.")
        return make_request("resume", trials=[record.key for record in records])
    sweep.refuse_if_over()
    if not sweep.history.paused_by and not sweep.will_pause:
        raise SweepError(f"the sweep in {folder_text(sweep.folder.root)} is not paused.")
    return make_request("resume")


def _add(sweep: Sweep, options: argparse.Namespace) -> Request:
    values = _values(options.key)
    _refuse_unfit(sweep, values, values)
    return make_request("add", values=values)


def _clone(sweep: Sweep, options: argparse.Namespace) -> Request:
    parent, values = sweep.trial(options.trial), _values(options.key)
    if not values and not options.warm:
        raise SweepError("give a key=value that the clone is to have, or --warm.")
    _refuse_unfit(sweep, values, {**parent.values, **values})
    return make_request("clone", trials=[parent.key], values=values, warm=options.warm)


def _refuse_unfit(sweep: Sweep, typed: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check a config as the sweep's own are checked.

    Args:
        typed: the keys that the user gives; the others were checked before.

    Raises:
        ConfigError: a key is unknown, or a value does not fit.
    """
    on_gpu = any(r.device.startswith("cuda") for r in sweep.history.trials.values())
    problems = trial_problems(sweep.history.spec, values, "cuda" if on_gpu else "cpu")
    problems = [p for p in problems if p.key in typed or p.key not in values]
    if problems:
        raise ConfigError(problems)


def _set(sweep: Sweep, options: argparse.Namespace) -> Request:
    sweep.refuse_if_over()
    values = _values(options.key)
    for key, word in zip(values, options.key, strict=True):
        if key not in SETTABLE:
            raise SweepError(f"{key} cannot be set while a sweep runs{_instead(sweep, key, word)}")
    key_values(values)
    return make_request("set", values=values)


def _instead(sweep: Sweep, key: str, word: str) -> str:
    """What to do about a key that cannot be set."""
    if may_change(key) or may_grow(key):
        what = "its next start takes it" if may_change(key) else "its next start takes more of it"
        return f"; {what}: {command_with(sweep.history, [word], sweep.folder)}"
    near = nearest(key, SETTABLE)
    if near is None and search_refusal(key) == "":
        return "; `add` and `clone` train a config with another value."
    hint = f" Did you mean {near}?" if near else ""
    return f", and may not change. These can: {', '.join(SETTABLE)}.{hint}"


def _values(words: Sequence[str]) -> dict[str, Any]:
    """Config keys and their values, of words key=value in Hydra's grammar.

    Raises:
        SweepError: a word is none.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found = {}
    for word in words:
        key, _, text = word.partition("=")
        try:
            parsed = OverridesParser.create().parse_override(f"{key.lstrip('+')}={text}")
            if "=" not in word or parsed.is_sweep_override():
                raise ValueError
        except (HydraException, ValueError):
            raise SweepError(f"{word}: one value for a key is written key=value.") from None
        found[parsed.key_or_group] = parsed.value()
    return found


_REQUESTS: Mapping[str, Callable[[Sweep, argparse.Namespace], Request]] = {
    "stop": _stop,
    "finish": _finish,
    "cancel": _cancel,
    "pause": _pause,
    "resume": _resume,
    "set": _set,
    "add": _add,
    "clone": _clone,
}


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with the words as any other error is told."""

    def error(self, message: str) -> NoReturn:
        raise SweepError(f"{message}. {self.format_usage().strip()}")


def parser(verb: str, about: str) -> argparse.ArgumentParser:
    """The parser of a verb's words; raises SweepError if they do not fit.

    Args:
        about: what the verb does, and after a colon how it is typed.
    """
    does = about.partition(":")[0]
    words = _Parser(
        prog=f"python -m orchestrator {verb}",
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=_EPILOG if "TRIAL" in about else None,
    )
    words.add_argument("run_dir", help="the run folder, also s3://...")
    if verb == "stop":
        words.add_argument("trial", nargs="+")
    if verb == "resume":
        words.add_argument("trial", nargs="*")
    if verb == "clone":
        words.add_argument("trial")
        words.add_argument("--warm", action="store_true", help="begin with its best weights")
    if verb in ("add", "clone"):
        words.add_argument("key", nargs="+" if verb == "add" else "*", metavar="key=value")
    if verb == "pause":
        words.add_argument("--now", action="store_true", help="running trials leave, too")
    if verb == "set":
        words.add_argument("key", nargs="+", metavar="key=value")
    words.add_argument("--json", action="store_true", help="print one JSON object")
    return words
