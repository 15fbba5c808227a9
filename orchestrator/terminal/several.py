"""The verb `status` with several run folders: their configs in one table, ranked together."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from orchestrator.config.compose import flatten
from orchestrator.storage.run_dir import not_found
from orchestrator.terminal.format import Column, Grid, gain_text, loss_text, make_console, show
from orchestrator.terminal.summary import MOST_ROWS
from sweeps.core.errors import SweepError
from sweeps.core.naming import trial_name
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record, read_history
from sweeps.results.ranking import gain, searched_keys
from sweeps.space.parser import lookup
from sweeps.storage.run_folder import RunFolder, folder_text

_BUDGETS = "Their budgets or evaluations differ: a lower loss may come of more examples alone."
_CELLS = 24  # a text is not cut below this
_SETTINGS = ("model", "peft", "trainer", "seed", "sweep.budget", "sweep.evaluations")


@dataclass(frozen=True, kw_only=True)
class _Config:
    """A config of one folder, with the values of its completed repeats."""

    folder: str
    history: History
    record: Record
    values: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def place(self) -> tuple[float, ...]:
        """More seeds first, as in one folder; then the better mean."""
        return (-len(self.values), self.history.sign * self.mean)


def compare(run_dirs: Sequence[Path], console: Console | None = None) -> int:
    """Print one table of several sweeps on the same data and base model; returns 0.

    Raises:
        SweepError: a folder holds no sweep, or they cannot be compared; in words.
        LedgerDamagedError: a ledger cannot be read.
    """
    folders = [RunFolder(path) for path in dict.fromkeys(run_dirs)]
    for folder in folders:
        if not folder.ledger.is_file():
            raise SweepError(not_found(folder))
    sweeps = {folder_text(each.root): read_history(each.ledger) for each in folders}
    _refuse_unlike(sweeps)
    show(console or make_console(), _parts(sweeps))
    return 0


def _refuse_unlike(sweeps: Mapping[str, History]) -> None:
    """Raise SweepError if losses of one sweep cannot be compared with those of the first."""
    (name, first), *others = sweeps.items()
    found = []
    for other, history in others:
        unlike = {
            "data": history.driver.data != first.driver.data,
            "base model": history.driver.base != first.driver.base,
            f"metric ({history.metric})": history.metric != first.metric,
        }
        if words := [word for word, is_so in unlike.items() if is_so]:
            found.append(f"  {other} has another {' and another '.join(words)} than {name}")
    if found:
        raise SweepError("\n".join(["They cannot stand in one table:", *found]))


def _parts(sweeps: Mapping[str, History]) -> list[RenderableType]:
    configs = [each for name, history in sweeps.items() for each in _configs(name, history)]
    # A trial that one folder took over from another is one.
    configs = list({each.record.key: each for each in reversed(configs)}.values())
    configs.sort(key=lambda each: each.place)
    keys = _told_apart(sweeps)
    parts: list[RenderableType] = [
        Text(f"{name}: {history.ended} of {len(history.trials)} trials ended")
        for name, history in sweeps.items()
    ]
    if not configs:
        return [*parts, Text(), Text("No trial has completed yet.")]
    parts += [Text(), _grid(configs[:MOST_ROWS], keys)]
    if len(configs) > MOST_ROWS:
        parts.append(Text(f"... and {len(configs) - MOST_ROWS:,} more configs", style="dim"))
    if any(key.startswith("sweep.") for key in keys):
        parts += [Text(), Text(_BUDGETS)]
    return parts


def _configs(name: str, history: History) -> list[_Config]:
    found = []
    for config, records in history.by_config().items():
        values = history.config_values(config)
        done = [record for record in records if record.state is State.COMPLETED]
        if values:
            found.append(_Config(folder=name, history=history, record=done[0], values=values))
    return found


def _told_apart(sweeps: Mapping[str, History]) -> list[str]:
    """The keys that some sweep searches, and the settings in which they differ."""
    searched = {key: None for each in sweeps.values() for key in searched_keys(each)}
    settings = []
    for history in sweeps.values():
        parts = {section: lookup(history.spec, section) for section in _SETTINGS}
        settings.append(dict(flatten(parts)))
    names = {name: None for each in settings for name in each}
    first, *others = settings
    return [*searched, *(n for n in names if any(first.get(n) != o.get(n) for o in others))]


def _grid(configs: Sequence[_Config], keys: Sequence[str]) -> Grid:
    seeds = [len(each.values) for each in configs]
    return Grid(
        columns=[
            Column("rank", list(range(1, len(configs) + 1))),
            Column("folder", [each.folder for each in configs], least=_CELLS),
            Column("trial", [each.record.number for each in configs]),
            Column("config", [trial_name(_values(each, keys)) for each in configs], least=_CELLS),
            Column(configs[0].history.metric, [loss_text(each.mean) for each in configs]),
            Column("gain", [gain_text(gain(each.history, each.mean)) for each in configs]),
            *([Column("seeds", seeds)] if max(seeds) > 1 else []),
        ]
    )


def _values(each: _Config, keys: Sequence[str]) -> dict[str, Any]:
    return {key: each.record.values.get(key, lookup(each.history.spec, key)) for key in keys}
