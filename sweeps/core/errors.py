"""Errors for the user; their messages say what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeps.core.secrets import masked, scrub

_MOST_SHOWN = 200  # letters of a value


class SweepError(Exception):
    """An error that the user can mend: shown without a traceback, then the process exits."""

    exit_code = 1


class FolderHeldError(SweepError):
    """Another living driver holds the run folder."""

    exit_code = 3


class LedgerDamagedError(SweepError):
    """A line in the middle of the ledger cannot be read."""


class LedgerWriteError(SweepError):
    """The ledger cannot be written, so the sweep cannot go on: nothing may happen unrecorded."""


class StaleAttemptError(Exception):
    """A worker of an older attempt called: another worker has its trial now, so it must stop."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding about the config: the key, the value that was given, and what to do instead."""

    key: str
    message: str
    value: object = None
    nearest: str | None = None

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {_short(masked(self.key, self.value))}"
        hint = f" Did you mean {self.nearest}?" if self.nearest else ""
        return f"{self.key}{shown}: {scrub(self.message)}{hint}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


class ConfigError(SweepError):
    """Every problem of a config, found together and shown together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem in the config:" if count == 1 else f"{count} problems in the config:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[Sequence[Problem]]]:
        return type(self), (self.problems,)  # from one process to another


def first_line(error: object) -> str:
    """What a library's error says first; a line that does not end there takes the next with it."""
    lines = [line.strip() for line in scrub(str(error)).splitlines() if line.strip()]
    said = ""
    for line in lines:
        said = f"{said} {line}".strip()
        if not line.endswith((":", ",")):
            break
    return said or "no message"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was most likely meant to be, or None."""
    every = list(names)
    alike = [each for each in every if each.lower() == name.lower()]
    matches = alike or difflib.get_close_matches(name, every, n=1, cutoff=0.6)
    return matches[0] if matches else None
