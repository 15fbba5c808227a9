"""Runs a sweep from Python: `orchestrator.sweep([...])`, in a script, a notebook or a thread."""

from __future__ import annotations

import logging
import os
import signal
import site
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.cluster.signals import Signals
from orchestrator.cluster.surroundings import name_user
from orchestrator.config.config_files import take_config_dir, with_config_dir
from orchestrator.driver import Ended, run_under
from orchestrator.terminal.notebook import text_and_html
from orchestrator.terminal.summary import closing, ranking
from sweeps.core.commands import command_line
from sweeps.core.errors import SweepError
from sweeps.ledger.history import History, read_history
from sweeps.results.ranking import best, searched_keys
from sweeps.results.significance import compare
from sweeps.results.trials_csv import Row, columns, ranked

_LOGGERS = ("ray", "ray.tune", "ray.air", "ray._private.worker", "bitsandbytes.backends.cpu.ops")
_running = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The trial that ranks first.

    Attributes:
        values: of the searched keys.
        value: of the metric that trials are ranked by, at `step`.
        folder: best/, with its adapter or model, tokenizer and model card.
    """

    number: int
    key: str
    values: Mapping[str, Any]
    value: float
    step: int
    folder: Path


@dataclass(frozen=True, kw_only=True, repr=False)
class Outcome:
    """What a sweep found. In a notebook it is shown as the ranked table.

    Attributes:
        name: of the sweep.
        folder: the run folder.
        metric: that trials are ranked by.
        base: its value for the base model; None if it was not measured.
        ranking: every trial in its place, with the columns of trials.csv;
            `pandas.DataFrame(outcome.ranking)` makes a table of it.
        stopped: why the sweep stopped before its end; empty if it did not.
    """

    name: str
    folder: Path
    metric: str
    base: float | None
    ranking: Sequence[Mapping[str, Any]]
    best: BestTrial
    stopped: str
    _text: str = field(compare=False)
    _html: str = field(compare=False)

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self._html


def sweep(overrides: Sequence[str], *, config_dir: str | os.PathLike[str] | None = None) -> Outcome:
    """Run a sweep, or go on with it, as `python -m orchestrator` with these words does.

    An interrupt stops it as Ctrl-C does: trials commit a checkpoint, then the interrupt takes its
    course (KeyboardInterrupt), and the same call goes on. In a thread that is not the main one,
    signals are left to the program.

    Args:
        overrides: as on the command line, e.g. `["sweep=lr_grid", "peft.r=4,8"]`.
        config_dir: a folder with config files of your own; `--config-dir`.

    Raises:
        SweepError: it was refused, could not go on, or no trial completed.
    """
    if isinstance(overrides, str):
        raise SweepError(f"overrides are a list of words, as in [{overrides!r}]")
    given = [] if config_dir is None else [f"--config-dir={os.fspath(config_dir)}"]
    argv = with_config_dir(*take_config_dir([*given, *overrides]))
    if not _running.acquire(blocking=False):
        raise SweepError("a sweep runs in this process already; wait for its end")
    try:
        with _unchanged():
            signals = Signals(ends_process=False)
            ended = _until_left(signals, argv)
    finally:
        _running.release()
    if signals.seen:
        signal.raise_signal(signals.seen[-1])  # to the handlers of the program
    if ended is None:
        raise KeyboardInterrupt
    if ended.exit_code == 1:
        raise SweepError(_why(ended))
    return _outcome(ended)


def _until_left(signals: Signals, argv: Sequence[str]) -> Ended | None:
    """Run a sweep; None if a signal made it leave at once."""
    try:
        return run_under(signals, argv)
    except SystemExit:
        if not signals.seen:
            raise
        return None


@contextmanager
def _unchanged() -> Iterator[None]:
    """Give the program's environment and the levels of the libraries' loggers back as they were."""
    environment = dict(os.environ)
    root = str(Path(__file__).parents[1])
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        # Our processes find our packages, even if only a line in the program says where they are.
        there = environment.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, there)))
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    logging.getLogger(_LOGGERS[-1]).setLevel(logging.ERROR)  # see `orchestrator.cli.main`
    try:
        name_user()
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _why(ended: Ended) -> str:
    if ended.stop is not None:
        why = f"the sweep stopped before its end: {ended.stop}"
    elif ended.proof_error:
        why = f"the best checkpoint could not be made ready: {ended.proof_error.rstrip('.')}"
    else:
        why = "no trial completed"
    return f"{why}. See {command_line(['status', str(ended.folder.root)])}"


def _outcome(ended: Ended) -> Outcome:
    folder = ended.folder
    history = read_history(folder.ledger)
    rows = ranked(history, compare(history, folder))
    found = best(history)
    assert found is not None  # the exit code said so
    text, html = text_and_html([*ranking(history, folder, rows), *closing(history, folder, found)])
    return Outcome(
        name=history.name,
        folder=folder.root,
        metric=history.metric,
        base=history.base.metrics.get(history.metric) if history.base else None,
        ranking=tuple(_cells(history, row) for row in rows),
        best=BestTrial(
            number=found.record.number,
            key=found.record.key,
            values=dict(found.record.values),
            value=found.report.metrics[history.metric],
            step=found.report.step,
            folder=folder.best,
        ),
        stopped=str(ended.stop or ""),
        _text=text,
        _html=html,
    )


def _cells(history: History, row: Row) -> dict[str, Any]:
    """A row of trials.csv; None in the column of a key that the trial does not set."""
    cells = {head: getattr(row, name) for head, name in columns(history.metric).items()}
    values = {key: row.values.get(key) for key in searched_keys(history)}
    return {**cells, "status": str(row.status), **values}
