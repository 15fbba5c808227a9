"""The verb `report`: writes report.html from a run folder, of a sweep that runs or has ended."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

from orchestrator.storage.run_dir import require_sweep
from orchestrator.terminal.status import lock_holder
from sweeps.core.errors import SweepError
from sweeps.ledger.events import Event
from sweeps.ledger.history import History
from sweeps.ledger.ledger import read_ledger
from sweeps.storage.durable_writes import write_text
from sweeps.storage.run_folder import RunFolder, folder_text


def report(run_dir: Path) -> int:
    """Write RUN_DIR/report.html and say where it lies; returns 0.

    Raises:
        SweepError: `run_dir` holds no sweep, or plotly is not installed.
        LedgerDamagedError: the ledger cannot be read.
    """
    folder = RunFolder(run_dir)
    require_sweep(folder)
    if not has_plotly():
        raise SweepError(
            "The report is drawn by plotly, which is not installed: pip install plotly"
        )
    write_report(folder, holder=lock_holder(folder.lock))
    print(report_line(folder))
    return 0


def has_plotly() -> bool:
    return importlib.util.find_spec("plotly") is not None


def report_line(folder: RunFolder) -> str:
    size = folder.report.stat().st_size / 1e6
    return f"Report, for any browser: {folder_text(folder.report)} ({size:.1f} MB)"


def write_report(folder: RunFolder, *, holder: str | None, again: str | None = None) -> None:
    """Write report.html.

    Args:
        holder: the living driver of the sweep; None if it has ended or stopped.
        again: the command that trains the winner again; None to take that of best/, if it is ready.
    """
    from orchestrator.report.sections import report_html  # imports plotly
    from orchestrator.report.timeline import Timeline

    history, timeline = History(), Timeline()

    def fold(event: Event) -> None:
        history.apply(event)
        timeline.apply(event)

    read_ledger(folder.ledger, fold)
    now = time.time()
    if holder is None:
        history.stop_running()
    spans = timeline.until_now(history, None if holder is None else now)
    write_text(
        folder.report, report_html(folder, history, spans, holder=holder, again=again, now=now)
    )
