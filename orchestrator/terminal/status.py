"""The verb `status`: prints a sweep from its run folder; writes nothing but study.db."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from orchestrator.best.model_card import is_ready, proof_of
from orchestrator.storage.run_dir import not_found
from orchestrator.terminal.cost_lines import cost_lines
from orchestrator.terminal.format import (
    Column,
    Grid,
    duration_text,
    loss_text,
    make_console,
    show,
)
from orchestrator.terminal.live_table import paused_line
from orchestrator.terminal.progress import (
    Progress,
    is_over,
    planned_configs,
    planned_trials,
    read_progress,
    time_left_s,
)
from orchestrator.terminal.summary import (
    closing,
    failures,
    hints,
    knob_part,
    ranking,
    tested,
    title,
    verdicts,
)
from orchestrator.terminal.tables import running_grid
from sweeps.core.errors import SweepError
from sweeps.core.naming import trial_name
from sweeps.core.trial import State
from sweeps.ledger.history import History, read_history
from sweeps.results.importance import effects, importance
from sweeps.results.ranking import best
from sweeps.results.significance import compare
from sweeps.results.trials_csv import ranked
from sweeps.search.optuna_export import completed_study, export_study
from sweeps.storage.run_folder import RunFolder, folder_text

MOST_RUNNING = 20
MOST_EXPORTED = 200  # trials: Optuna's SQLite storage takes 30 ms each; more wait for the end


def status(run_dir: Path, console: Console | None = None) -> int:
    """Print the state of a sweep, and write study.db for optuna-dashboard; returns 0.

    Of a folder that holds run folders: a line for each.

    Raises:
        SweepError: `run_dir` holds no sweep, nor do its folders; the message names some nearby.
        LedgerDamagedError: the ledger cannot be read.
    """
    folder = RunFolder(run_dir)
    if not folder.ledger.is_file():
        within = [RunFolder(ledger.parent) for ledger in run_dir.glob("*/ledger.jsonl")]
        if not within:
            raise SweepError(not_found(folder))
        _show_all(run_dir, within, console or make_console())
        return 0
    _show(folder, console or make_console())
    return 0


def _show_all(root: Path, folders: Sequence[RunFolder], console: Console) -> None:
    """A table of run folders, the one with the latest event first."""
    lines = [_line(folder) for folder in folders]
    lines.sort(key=lambda line: -line.latest)
    grid = Grid(
        columns=[
            Column("folder", [line.name for line in lines], least=24),
            Column("state", [line.state for line in lines], least=8),
            Column("trials", [line.trials for line in lines]),
            Column("metric", [line.metric for line in lines], keep=3, least=9),
            Column("best", [line.best for line in lines]),
            Column("config", [line.config for line in lines], keep=5, least=16),
            Column("left", [line.left for line in lines], keep=6),
            Column("last event", [_ago(line.latest) for line in lines], keep=4),
        ],
    )
    count = f"{len(lines)} run folder{'s' if len(lines) > 1 else ''}"
    show(console, [Text(f"{folder_text(root)}: {count}, the latest first"), Text(), grid])


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A run folder in a table of several; `latest` is its last event's time."""

    name: str
    state: str
    trials: str = ""
    metric: str = ""
    best: str = ""
    config: str = ""
    left: str = ""
    latest: float = 0.0


def _line(folder: RunFolder) -> _Line:
    name = folder.root.name
    holder = lock_holder(folder.lock)
    try:
        history = read_history(folder.ledger)
    except SweepError:
        return _Line(name=name, state="damaged", latest=folder.ledger.stat().st_mtime)
    total = planned_trials(history, planned_configs(history.spec))
    left = None
    if holder is not None:
        left = time_left_s(history, read_progress(folder, history), total, time.time())
    over = "finished" if is_over(history) else "stopped"
    found = best(history)
    return _Line(
        name=name,
        state=over if holder is None else "running",
        trials=f"{history.ended} of {total or '?'}",
        metric=history.metric,
        best="" if found is None else loss_text(found.mean),
        config="" if found is None else trial_name(found.record.values),
        left="" if left is None else duration_text(left),
        latest=history.latest or folder.ledger.stat().st_mtime,
    )


def _ago(moment: float) -> str:
    return f"{duration_text(max(0.0, time.time() - moment))} ago"


def _show(folder: RunFolder, console: Console) -> None:
    holder = lock_holder(folder.lock)
    history = read_history(folder.ledger)
    if holder is None:
        history.stop_running()
    progress = read_progress(folder, history)
    comparison = compare(history, folder)
    rows = ranked(history, comparison)
    show(console, [title(history), *_driver(history, progress, holder, folder), Text()])
    show(console, _running(history, progress))
    show(console, ranking(history, folder, rows))
    said = (*verdicts(history, folder, comparison), *cost_lines(history))
    show(console, [*map(Text, said), *hints(history, folder)])
    if len(history.trials) <= MOST_EXPORTED:
        export_study(history, folder.study)
    weights = importance(completed_study(history))
    show(console, knob_part(history, effects(history, rows), weights))
    found = best(history)
    proof = proof_of(folder) if is_ready(folder, found) else None
    show(console, tested(history, found, (proof or {}).get("proof")))
    show(console, [*failures(rows, folder), Text(), *closing(history, folder, found)])


def lock_holder(lock: Path) -> str | None:
    """`host, pid` of the living driver that holds the lock; None if there is none.

    A shared lock is tried and released at once. A driver that starts at that moment is refused
    with a message, and the next try succeeds.
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


def _driver(
    history: History, progress: dict[str, Progress], holder: str | None, folder: RunFolder
) -> list[RenderableType]:
    """Whether the sweep is running, and how long it will be."""
    total = planned_trials(history, planned_configs(history.spec))
    ended = history.ended
    if holder is not None:
        left = time_left_s(history, progress, total, time.time())
        more = "" if left is None else f", about {duration_text(left)} left"
        line = Text(f"Running: {holder}; {ended} of {total or '?'} trials ended{more}")
        if not history.paused_by:
            return [line]
        return [line, Text(paused_line(history, folder), style="yellow")]
    if is_over(history):
        return [Text("Finished: no driver is running, every trial has ended")]
    how = "was interrupted" if history.interrupt else "is gone"
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
