"""Shows a sweep in W&B: one run for each trial, and one that sums the sweep up."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.tracking import wandb_metrics
from orchestrator.tracking.allow_list import clean, sweep_config, trial_config
from orchestrator.tracking.tracker import Job
from orchestrator.tracking.wandb_login import Link, UnusableError, find_link
from orchestrator.tracking.wandb_metrics import chart_values
from orchestrator.tracking.wandb_process import finish_runs, restart, run_settings, tear_down
from sweeps.core.commands import in_a_shell
from sweeps.core.naming import trial_name
from sweeps.core.secrets import scrub
from sweeps.core.trial import State, fingerprint
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.results.ranking import best
from sweeps.results.trials_csv import ranked

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

STEP = "optimizer_step"
_SWEEP = "sweep"  # among the trial keys: the run of the sweep itself
_MOST_LETTERS = 128  # of a name
_SUCCESS = (State.COMPLETED, State.PRUNED, State.STOPPED)
_INTERRUPTED = 130  # exit code
_MORE_S = 2.0  # for a run to close, beyond what wandb may take for it
_LOOK_EVERY_S = 20.0
_COSTS_SHARE = 0.3  # of the time to close


class WandbRuns:
    """Turns ledger events and training rows into W&B runs; a `Tracker`."""

    name = "W&B"
    package = "wandb"

    def __init__(self, job: Job) -> None:
        self._job = job
        self._link = Link(why="not asked yet")
        self._is_online = False
        self._all_sent = True
        self._looked = -_LOOK_EVERY_S
        self._history = History()
        self._identity = ""
        self._has_costs = False  # measured under this driver
        self._open: dict[str, Run] = {}
        self._endings: dict[str, tuple[float, int]] = {}  # trial -> time.monotonic, exit code
        self._from_step: dict[str, int] = {}  # of the trials that started under this driver

    def connect(self, past: Iterable[Event]) -> str:
        """Look for the server; see `Tracker.connect`."""
        tracking = self._job.folder.tracking
        # Tables wait here for `wandb sync`; in the home folder they would outlive the sweep.
        os.environ.setdefault("WANDB_DATA_DIR", str(tracking))
        os.environ.setdefault("WANDB_CACHE_DIR", str(tracking / "cache"))
        self._link = find_link(self._job.tracking, self._job.patience.probe_s)
        if self._job.only_look:
            return self._link.line
        self._is_online = self._link.online
        for event in past:
            self._fold(event)
        if self._link.online:
            return f"{self._link.line} (group {self._job.sweep_name})"
        return f"{self._link.line}; {self._how_to_sync()}"

    def on_event(self, event: Event) -> None:
        """Follow one ledger event."""
        self._fold(event)
        match event:
            case events.Start():
                self._on_start(event)
            case events.Report():
                self._on_report(event)
            case events.End():
                self._on_end(event)
            case events.Cost():
                self._has_costs = True

    def on_row(self, key: str, row: Mapping[str, Any]) -> None:
        """Log a training row, unless the run has it from an earlier attempt, or is closed."""
        step = row.get("step")
        if key not in self._from_step or (step is not None and step <= self._from_step[key]):
            return
        if key not in self._open and self._history.trials[key].state.is_finished():
            return
        own = wandb_metrics.without_shared(self._history.trials[key], row)
        values = chart_values({name: value for name, value in own.items() if name != "step"})
        if step is not None:
            values[STEP] = step
        self._with_run(key, lambda run: run.log(values))

    def tick(self) -> None:
        """Close the runs whose trials ended some time ago."""
        latest = time.monotonic() - self._job.patience.linger_s
        due = [key for key, (ended, _) in self._endings.items() if ended <= latest]
        codes = {key: self._endings.pop(key)[1] for key in due}
        self._close(codes, self._job.patience.finish_s + _MORE_S)

    def close(self, timeout_s: float) -> None:
        """Close every trial's run, then the sweep's with its table."""
        until = time.monotonic() + timeout_s
        self._look()
        self._tell_costs(time.monotonic() + _COSTS_SHARE * timeout_s)
        codes = {key: _INTERRUPTED for key in self._open if key != _SWEEP}
        codes |= {key: code for key, (_, code) in self._endings.items()}
        self._endings.clear()
        self._close(codes, max(1.0, until - time.monotonic()))
        if not self._history.trials:
            return
        self._with_run(_SWEEP, self._sum_up)
        self._close({_SWEEP: _INTERRUPTED if self._history.unfinished() else 0}, timeout_s)

    def _tell_costs(self, until: float) -> None:
        """Add to the trials' runs what training alone costs; closed ones are opened again.

        The best first, while there is time: the sweep's table has them all.
        """
        rows = ranked(self._history) if self._has_costs else []
        for record in [self._history.trials[row.key] for row in rows if row.rank is not None]:
            if record.is_alone or time.monotonic() > until:
                continue
            self._endings.setdefault(record.key, (0.0, 0))
            self._note(record.key, wandb_metrics.cost(self._history, record))

    def _note(self, key: str, shown: Mapping[str, Any]) -> None:
        self._with_run(key, lambda run: run.summary.update(dict(shown)))

    def last_lines(self, *, cut_short: bool) -> list[str]:
        """Where the runs are, and how to upload what was not."""
        if self._link.online and (cut_short or not self._all_sent):
            return [
                "W&B: not everything was uploaded, but all of it is on disk; to upload it: "
                f"wandb sync --include-online {self._quoted_folder()}/*run-*"
            ]
        if self._link.online:
            return [f"W&B: {self._link.page} (group {self._job.sweep_name})"]
        return [f"W&B: offline; {self._how_to_sync()}"]

    def leave(self) -> None:
        """End wandb-core."""
        tear_down()

    def _how_to_sync(self) -> str:
        return f"to upload it later: wandb sync {self._quoted_folder()}/offline-run-*"

    def _quoted_folder(self) -> str:
        return in_a_shell(str(self._job.folder.tracking))

    def _fold(self, event: Event) -> None:
        self._history.apply(event)
        match event:
            case events.Attempt():
                self._from_step.clear()
            case events.Start():
                self._from_step[event.trial] = event.step

    def _on_start(self, event: events.Start) -> None:
        self._endings.pop(event.trial, None)
        self._with_run(_SWEEP, lambda run: None)
        self._with_run(event.trial, lambda run: run.summary.update({"status": "running"}))

    def _on_report(self, event: events.Report) -> None:
        if event.index == 0:
            shown = {f"base_{name}": value for name, value in event.metrics.items()}
            self._with_run(_SWEEP, lambda run: run.summary.update(shown))
            return
        record = self._history.trials[event.trial]
        values = chart_values(wandb_metrics.without_shared(record, event.metrics))
        values |= {STEP: event.step, "examples": event.examples, "tokens": event.tokens}
        self._with_run(event.trial, lambda run: run.log(values))

    def _on_end(self, event: events.End) -> None:
        record = self._history.trials[event.trial]
        shown = wandb_metrics.outcome(self._history, record)
        self._with_run(record.key, lambda run: run.summary.update(shown))
        code = 0 if record.state in _SUCCESS else 1
        self._endings[record.key] = time.monotonic(), code
        self._with_run(_SWEEP, lambda run: run.log(wandb_metrics.progress(self._history)))
        if not self._history.unfinished():  # while the best is proven there is time for it
            self._look()

    def _look(self, every_s: float = _LOOK_EVERY_S) -> None:
        """Check that the server is there: opening and closing runs wait long for one that is not.

        Args:
            every_s: what was seen within so many seconds still holds.
        """
        if not self._is_online or time.monotonic() - self._looked < every_s:
            return
        self._looked = time.monotonic()
        try:
            self._link.check()
        except UnusableError as error:
            self._go_offline(str(error))

    def _sum_up(self, run: Run) -> None:
        import wandb

        columns, rows = wandb_metrics.ranking_table(self._history)
        table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        run.log({"ranking": table, **wandb_metrics.progress(self._history)})
        shown: dict[str, Any] = {"trials": wandb_metrics.counts(self._history)}
        top = best(self._history)
        if top is not None:
            shown["best_trial"] = {"name": self._name(top.record), "key": top.record.key}
        run.summary.update(shown)

    def _with_run(self, key: str, act: Callable[[Run], object]) -> None:
        """Call `act` with the run of a trial; if the server fails, again with a run on disk."""
        try:
            act(self._run(key))
        except Exception as error:
            if not self._is_online:
                raise
            self._go_offline(str(error).strip() or type(error).__name__)
            act(self._run(key))

    def _run(self, key: str) -> Run:
        if key not in self._open:
            self._look(every_s=0.0)  # `wandb.init` would wait for a server that is gone
            self._open[key] = self._begin(key)
        return self._open[key]

    def _begin(self, key: str) -> Run:
        """Begin the run of a trial or of the sweep, or go on with it; raises what wandb raises."""
        import wandb

        if key == _SWEEP:
            name, axis = self._job.sweep_name, "trials_ended"
            config = sweep_config(self._job.public)
        else:
            record = self._history.trials[key]
            name, axis = self._name(record), STEP
            config = trial_config(self._job.public, record.values)
            config |= {"seed": record.seed, "trial": {"number": record.number, "key": key}}
        self._job.folder.tracking.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self._job.tracking.project,
            entity=self._job.tracking.entity,
            dir=str(self._job.root.absolute()),
            id=f"{self._sweep_identity()}-{key}",
            name=name[:_MOST_LETTERS],
            group=self._job.sweep_name,
            job_type="sweep" if key == _SWEEP else "trial",
            tags=self._job.tracking.tags,
            config=config,
            mode="online" if self._is_online else "offline",
            resume="allow",
            reinit="create_new",
            settings=run_settings(self._job.patience),
        )
        run.define_metric("*", step_metric=axis)
        return run

    def _name(self, record: Record) -> str:
        repeated = (self._job.public.get("sweep") or {}).get("repeats", 1) > 1
        name = str(clean("", trial_name(record.values)))
        return f"{name} seed={record.seed}" if repeated else name

    def _sweep_identity(self) -> str:
        """The same for every driver of this run folder, another one for every other folder.

        Not the path: `outputs/lr_grid` is on many machines, and is made anew after being removed.
        """
        if not self._identity:
            began = self._history.began
            origin = began if began is not None else str(self._job.folder.root.resolve())
            self._identity = fingerprint([self._history.name or self._job.sweep_name, origin], 8)
        return self._identity

    def _close(self, codes: Mapping[str, int], timeout_s: float) -> None:
        """Close runs with these exit codes. If the server does not keep up, leave it alone."""
        runs = {self._open.pop(key): code for key, code in codes.items() if key in self._open}
        if not runs or not finish_runs(runs, timeout_s):
            return
        if not self._is_online:
            raise RuntimeError("wandb-core ended before the runs were closed")
        self._go_offline("the server does not take the runs in time")

    def _go_offline(self, reason: str) -> None:
        """Leave the server alone from now on; what runs wrote so far stays on disk."""
        first_line = scrub(reason).splitlines()[0]
        log.warning("W&B: %s. Going on offline, in %s", first_line, self._job.folder.tracking)
        self._is_online = self._all_sent = False
        self._open.clear()
        restart()
