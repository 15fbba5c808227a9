"""The verb `status`: any run folder's table, running or not; writes nothing but study.db."""

from __future__ import annotations

import fcntl
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from orchestrator.layout import duration_text, folder_text, make_console, show
from orchestrator.progress import (
    Progress,
    planned_configs,
    planned_trials,
    read_progress,
    time_left_s,
)
from orchestrator.summary import closing, failures, knob_part, ranking, title, verdicts
from orchestrator.tables import running_grid
from sweeps.errors import LedgerDamagedError, SweepError, nearest
from sweeps.files import RunFolder
from sweeps.history import History
from sweeps.knobs import effects, importance
from sweeps.ledger import Event, check, parse
from sweeps.ranking import best, ranked
from sweeps.study import export_study, study_of
from sweeps.trial import State

MOST_RUNNING = 20
MOST_NEIGHBOURS = 8
MOST_EXPORTED = (
    200  # trials; Optuna's SQLite storage takes 30 ms for each, so more wait for the end
)


def status(run_dir: Path, console: Console | None = None) -> int:
    """Print where a sweep stands, and write study.db for optuna-dashboard; 0.

    Raises:
        SweepError: where `run_dir` holds no sweep; names what lies nearby.
        LedgerDamagedError: where the ledger cannot be read.
    """
    folder = RunFolder(run_dir)
    if not folder.ledger.is_file():
        raise SweepError(not_found(folder))
    with _uncollected():
        _show(folder, console or make_console())
    return 0


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage within: of a long ledger's objects none is, and it would take seconds."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _show(folder: RunFolder, console: Console) -> None:
    holder = lock_holder(folder.lock)
    history = read_history(folder.ledger)
    if holder is None:
        history.stop_running()
    progress = read_progress(folder, history)
    rows = ranked(history)
    show(console, [title(history), *_driver(history, progress, holder), Text()])
    show(console, _running(history, progress))
    show(console, ranking(history, folder, rows, console.width))
    show(console, [Text(verdict) for verdict in verdicts(history)])
    if len(history.trials) <= MOST_EXPORTED:
        export_study(history, folder.study)
    show(console, knob_part(history, effects(history, rows), importance(study_of(history))))
    show(console, [*failures(rows, folder), Text(), *closing(history, folder, best(history))])


def read_history(ledger: Path) -> History:
    """The ledger's events added up; a torn last line, which may be in the making, is left out."""
    history = History()
    number = 0
    try:
        with _uncollected():
            for event in _events(ledger):
                number += 1
                check(event)
                history.apply(event)
        return history
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise LedgerDamagedError(
            f"{ledger}, line {number} does not follow from the lines before it ({error!r}). "
            "Restore the file from a copy."
        ) from error


def lock_holder(lock: Path) -> str | None:
    """`host, pid` of the living driver that holds the lock; None where there is none.

    A shared lock is tried and let go at once. A driver that starts in that very moment would be
    refused; it says so, and the next try succeeds.
    """
    try:
        with open(lock, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "an unknown process"
    except FileNotFoundError:
        pass
    return None


def _events(ledger: Path) -> Iterator[Event]:
    damaged: tuple[int, bytes] | None = None
    with open(ledger, "rb") as file:
        for number, line in enumerate(file, start=1):
            if damaged is not None:
                raise LedgerDamagedError(
                    f"{ledger}, line {damaged[0]} is damaged: {damaged[1][:60]!r}. Restore the "
                    "file from a copy."
                )
            event = parse(line)
            if event is None:
                damaged = number, line
            else:
                yield event


def _driver(
    history: History, progress: dict[str, Progress], holder: str | None
) -> list[RenderableType]:
    """Whether the sweep is running, and how long it will be."""
    total = planned_trials(history, planned_configs(history.spec))
    ended = sum(record.state.is_finished() for record in history.trials.values())
    if holder is not None:
        left = time_left_s(history, progress, total, time.time())
        more = "" if left is None else f", about {duration_text(left)} left"
        return [Text(f"Running: {holder}; {ended} of {total or '?'} trials ended{more}")]
    if history.trials and ended == len(history.trials) and (total is None or ended >= total):
        return [Text("Finished: no driver is running, every trial has ended")]
    how = "was interrupted" if history.interrupted else "is gone"
    return [
        Text(
            f"Stopped: the driver {how} with {ended} of {total or '?'} trials ended. "
            "The same command goes on from here.",
            style="yellow",
        )
    ]


def _running(history: History, progress: dict[str, Progress]) -> list[RenderableType]:
    records = [r for r in history.trials.values() if r.state is State.RUNNING]
    if not records:
        return []
    parts: list[RenderableType] = [running_grid(history, records[:MOST_RUNNING], progress)]
    if len(records) > MOST_RUNNING:
        parts.append(Text(f"... and {len(records) - MOST_RUNNING} more running", style="dim"))
    return [*parts, Text()]


def not_found(folder: RunFolder) -> str:
    looked = f"{folder_text(folder.root)} holds no sweep: there is no {folder.ledger.name} in it."
    if not folder.root.is_dir():
        looked = (
            f"{folder_text(folder.root)} is no folder; looked for {folder_text(folder.ledger)}."
        )
    around = [
        parent for parent in folder.root.absolute().parents if RunFolder(parent).ledger.is_file()
    ]
    if around:
        return f"{looked} Did you mean {folder_text(around[0])}?"
    found = _neighbours(folder.root)
    if not found:
        return f"{looked} No run folder lies beside it or in outputs/."
    close = nearest(folder.root.name, [path.name for path in found])
    found.sort(key=lambda path: path.name != close)
    names = ", ".join(folder_text(path) for path in found[:MOST_NEIGHBOURS])
    more = f" and {len(found) - MOST_NEIGHBOURS} more" if len(found) > MOST_NEIGHBOURS else ""
    return f"{looked} Run folders nearby, the likeliest first: {names}{more}."


def _neighbours(root: Path) -> list[Path]:
    """Run folders in, beside, and in outputs/; the latest first."""
    places = dict.fromkeys(p.resolve() for p in (root, root.parent, Path("outputs")))
    ledgers = {ledger for place in places for ledger in place.glob("*/ledger.jsonl")}
    newest_first = sorted(ledgers, key=lambda ledger: -ledger.stat().st_mtime)
    return [ledger.parent for ledger in newest_first]
