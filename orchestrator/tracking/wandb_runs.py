"""Shows a sweep in W&B: one run for each trial, and one that sums the sweep up.

A run that is opened is first given what it lacks, from the ledger and the trial's metrics file: all
of it in a file of its own, or what the server does not have yet. So a trial has one history,
whichever start of the sweep, or `sync`, wrote it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from orchestrator.tracking import chart_metrics
from orchestrator.tracking.allow_list import sweep_config, trial_config
from orchestrator.tracking.chart_metrics import chart_values
from orchestrator.tracking.tracker import Job, chart_rows, identity
from orchestrator.tracking.wandb_kept import Kept
from orchestrator.tracking.wandb_login import Link, UnusableError, find_link, named
from orchestrator.tracking.wandb_process import (
    finish_runs,
    restart,
    run_settings,
    tear_down,
    unused_variables,
)
from orchestrator.tracking.wandb_sweep import end_sweep, make_sweep, save_view, sweep_object
from sweeps.core.commands import command_line
from sweeps.core.secrets import scrub
from sweeps.core.trial import Report, State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.results.ranking import best
from sweeps.results.significance import compare
from sweeps.results.trials_csv import ranked
from sweeps.storage.requests import Verb, make_request, write_request

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

STEP = "optimizer_step"
EVALUATION = "evaluation"  # 1, 2, ... of a trial
ENDED = "trials_ended"
_SWEEP = "sweep"  # among the trial keys: the run of the sweep itself
_MOST_LETTERS = 128  # of a name
_MOST_OF_A_TITLE = 63  # of an alert
_SUCCESS = (State.COMPLETED, State.PRUNED, State.STOPPED)
_INTERRUPTED = 130  # exit code
_MORE_S = 2.0  # for a run to close, beyond what wandb may take for it
_LOOK_EVERY_S = 20.0
_COSTS_SHARE = 0.3  # of the time to close
_VIEW_SHARE = 0.5  # of what is left of it then
_AT_ONCE = 8  # runs that `upload` closes together


@dataclass(kw_only=True)
class _Shown:
    """An open run, and what it shows already.

    Attributes:
        step: of its last training row; of the sweep's run, trials that had ended.
        opened_at: `step` when it was opened here.
        evaluation: its last report.
    """

    run: Run
    step: int
    opened_at: int
    evaluation: int


class WandbRuns:
    """Turns ledger events and training rows into W&B runs; a `Tracker`.

    Args:
        files: the folder for W&B's own files, if what it holds may be thrown away: then a server
            that fails raises UnusableError, where else the runs go on on disk.
    """

    name = "W&B"
    package = "wandb"

    def __init__(self, job: Job, files: Path | None = None) -> None:
        self._job = replace(job, tracking=named(job.tracking))
        self._files = files
        self._link = Link(why="not asked yet")
        self._is_online = False
        self._all_sent = True
        self._looked = -_LOOK_EVERY_S
        self._history = History()
        self._progress: list[dict[str, Any]] = []  # of the sweep, at each trial's end
        self._has_costs = False  # measured under this driver
        self._open: dict[str, _Shown] = {}
        self._endings: dict[str, tuple[float, int]] = {}  # trial -> time.monotonic, exit code
        self._followed: set[str] = set()  # started under this driver, and not closed
        self._kept = Kept(job.folder)
        self._earlier: list[str] = []  # trials that had started before
        self._can_make_sweep = True
        self._stops: SimpleQueue[str] = SimpleQueue()  # runs that were stopped on W&B's page

    def connect(self, past: Iterable[Event]) -> str:
        """Look for the server; see `Tracker.connect`."""
        tracking = self._files or self._job.folder.tracking
        # Tables wait here to be sent; in the home folder they would outlive the sweep.
        os.environ.setdefault("WANDB_DATA_DIR", str(tracking))
        os.environ.setdefault("WANDB_CACHE_DIR", str(tracking / "cache"))
        unused = unused_variables()
        self._link = find_link(self._job.tracking, self._job.patience.probe_s)
        if self._job.only_look:
            return self._link.line
        self._is_online = self._link.online
        if self._files is not None and not self._is_online:
            raise UnusableError(self._link.why)
        for event in past:
            self._fold(event)
        self._earlier = [each.key for each in self._history.trials.values() if each.attempt]
        line = f"{self._link.line} (group {self._job.sweep_name})"
        if not self._link.online:
            line = f"{self._link.line}; to upload it later: {self._sync_command()}"
        if unused:
            line += f"\nW&B: not used, since each trial has a run of its own: {', '.join(unused)}"
        return line

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
        if key in self._followed:
            self._with_run(key, partial(self._log_row, record=self._history.trials[key], row=row))

    def tick(self) -> None:
        """Close the runs whose trials ended some time ago; hand on who was stopped."""
        while not self._stops.empty():
            self._hand_on(self._stops.get())
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
        for key, code in codes.items():
            if code == _INTERRUPTED:
                self._show_outcome(self._open[key], self._history.trials[key])
        self._close(codes, max(1.0, until - time.monotonic()))
        for record in self._unclosed():
            if time.monotonic() < until:
                self._show_whole([record], max(1.0, until - time.monotonic()))
        if not self._history.trials:
            return
        self._with_run(_SWEEP, self._sum_up)
        is_over = not self._history.unfinished()
        self._close({_SWEEP: 0 if is_over else _INTERRUPTED}, timeout_s)
        if self._is_online and self._is_alert_due():
            self._kept.alerted[self._link.page] = self._history.ended
            self._kept.save()
        if not self._is_online or self._sweep_id is None:
            return
        self._save_view(_VIEW_SHARE * (until - time.monotonic()))
        if is_over:
            self._end_sweep(max(3.0, until - time.monotonic()))

    def upload(self, timeout_s: float) -> None:
        """Send what the server lacks of every trial that has started; `connect` came before.

        Args:
            timeout_s: for the rest of several runs to be sent.

        Raises:
            UnusableError: the server fails.
        """
        started = [record for record in self._history.trials.values() if record.attempt]
        for first in range(0, len(started), _AT_ONCE):
            self._show_whole(started[first : first + _AT_ONCE], timeout_s)
        self.close(timeout_s)

    def _tell_costs(self, until: float) -> None:
        """Add to the trials' runs what training alone costs; closed ones are opened again.

        The best first, while there is time: the sweep's table has them all.
        """
        rows = ranked(self._history) if self._has_costs else []
        for record in [self._history.trials[row.key] for row in rows if row.rank is not None]:
            if record.is_alone or time.monotonic() > until:
                continue
            self._endings.setdefault(record.key, (0.0, 0))
            self._with_run(record.key, partial(self._show_outcome, record=record))

    def last_lines(self, *, cut_short: bool) -> list[str]:
        """Where the runs are, and how to upload what was not."""
        command = self._sync_command()
        if self._link.online and (cut_short or not self._all_sent):
            return [
                "W&B: not everything was uploaded, but all of it is on disk; to upload it: "
                f"{command}"
            ]
        if self._link.online:
            view = self._kept.views.get(self._link.page)
            lines = [f"W&B: {self._page} (group {self._job.sweep_name})"]
            return [*lines, f"W&B: {view} (curves, importance, costs)"] if view else lines
        return [f"W&B: offline; to upload it later: {command}"]

    def leave(self) -> None:
        """End wandb-core."""
        tear_down()

    def _sync_command(self) -> str:
        return command_line(["sync", str(self._job.root)])

    def _fold(self, event: Event) -> None:
        self._history.apply(event)
        if isinstance(event, events.End):
            self._progress.append(chart_metrics.progress(self._history))

    def _on_start(self, event: events.Start) -> None:
        self._endings.pop(event.trial, None)
        self._followed.add(event.trial)
        self._with_run(_SWEEP, lambda shown: None)
        self._with_run(event.trial, lambda shown: shown.run.summary.update({"status": "running"}))

    def _on_report(self, event: events.Report) -> None:
        if event.index == 0:
            self._with_run(_SWEEP, self._show_base)
            return
        record = self._history.trials[event.trial]
        self._with_run(record.key, partial(self._log_report, record=record, report=event.report))

    def _on_end(self, event: events.End) -> None:
        record = self._history.trials[event.trial]
        self._with_run(record.key, partial(self._show_outcome, record=record))
        self._endings[record.key] = time.monotonic(), _exit_code(record)
        self._with_run(_SWEEP, self._log_progress)
        if not self._history.unfinished():  # while the best is proven there is time for it
            self._look()

    def _log_row(self, shown: _Shown, record: Record, row: Mapping[str, Any]) -> None:
        step = row.get("step")
        if isinstance(step, int) and step > shown.step:
            shown.run.log({STEP: step, **self._values(record, row)})
            shown.step = step

    def _log_report(self, shown: _Shown, record: Record, report: Report) -> None:
        if report.index > shown.evaluation:
            counts = {"examples": report.examples, "tokens": report.tokens}
            values = self._values(record, {**report.metrics, **counts})
            best_so_far = self._best_so_far(record, report.index)
            shown.run.log({STEP: report.step, EVALUATION: report.index, **values, **best_so_far})
            shown.evaluation = report.index

    def _best_so_far(self, record: Record, index: int) -> dict[str, float]:
        metric, sign = self._history.metric, self._history.sign
        found = [each.metrics[metric] for at, each in record.reports.items() if at <= index]
        return {chart_metrics.best_name(metric): min(found, key=lambda value: sign * value)}

    def _values(self, record: Record, metrics: Mapping[str, Any]) -> dict[str, float]:
        own = chart_metrics.without_shared(record, metrics)
        return chart_values(own) | chart_metrics.epoch(metrics, self._train_rows)

    @cached_property
    def _train_rows(self) -> int:
        return chart_metrics.train_rows(self._job.folder)

    def _log_progress(self, shown: _Shown) -> None:
        for values in self._progress:
            if values[ENDED] > shown.step:
                shown.run.log(values)
                shown.step = values[ENDED]

    def _show_base(self, shown: _Shown) -> None:
        base = self._history.base
        if base is not None:
            shown.run.summary.update({f"base_{name}": v for name, v in base.metrics.items()})

    def _show_outcome(self, shown: _Shown, record: Record) -> None:
        shown.run.summary.update(chart_metrics.outcome(self._history, record))

    def _unclosed(self) -> list[Record]:
        """The trials whose runs were not closed as they are now: their tracker was killed."""
        if self._files is not None:
            return []
        started = [record for record in self._history.trials.values() if record.attempt]
        return [each for each in started if self._kept.closed.get(each.key) != _ending(each)]

    def _show_whole(self, records: Iterable[Record], timeout_s: float) -> None:
        """Open the runs of trials, which gives them what they lack, and close them."""
        codes = {}
        for record in records:
            self._with_run(record.key, partial(self._show_outcome, record=record))
            codes[record.key] = _exit_code(record)
        self._close(codes, timeout_s)

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

    def _sum_up(self, shown: _Shown) -> None:
        import wandb

        self._log_progress(shown)
        if shown.run.summary.get("ranking") is None or shown.step > shown.opened_at:
            comparison = compare(self._history, self._job.folder)
            columns, rows = chart_metrics.ranking_table(self._history, comparison)
            table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            shown.run.log({"ranking": table, ENDED: shown.step})
        values: dict[str, Any] = {"trials": chart_metrics.counts(self._history)}
        top = best(self._history)
        if top is not None:
            values["best_trial"] = {"name": self._job.shown_name(top.record), "key": top.record.key}
        shown.run.summary.update(values)
        if self._is_alert_due():
            how = chart_metrics.standstill(self._history)
            title = f"The sweep {self._job.sweep_name} has {how}"
            text = chart_metrics.ending(self._history, self._job.shown_name)
            shown.run.alert(title=title[:_MOST_OF_A_TITLE], text=text)

    def _is_alert_due(self) -> bool:
        """Whether nothing goes on by itself, and the server has not been told how it stands now."""
        told = self._kept.alerted.get(self._link.page)
        is_news = not self._is_online or told != self._history.ended
        stands = bool(chart_metrics.standstill(self._history))
        return self._job.tracking.alert and is_news and stands

    def _with_run(self, key: str, act: Callable[[_Shown], object]) -> None:
        """Call `act` with the run of a trial; if the server fails, again with a run on disk."""
        try:
            act(self._run(key))
        except UnusableError:
            raise
        except Exception as error:
            if not self._is_online:
                raise
            self._go_offline(_first_line(error))
            act(self._run(key))

    def _run(self, key: str) -> _Shown:
        if key not in self._open:
            self._look(every_s=0.0)  # `wandb.init` would wait for a server that is gone
            shown = self._begin(key)
            self._open[key] = shown
            self._catch_up(key, shown)
        return self._open[key]

    def _begin(self, key: str) -> _Shown:
        """Begin the run of a trial or of the sweep, or go on with it; raises what wandb raises."""
        import wandb

        if key == _SWEEP:
            name, axis = self._job.sweep_name, ENDED
            config = sweep_config(self._job.public)
        else:
            record = self._history.trials[key]
            name, axis = self._job.shown_name(record), STEP
            config = trial_config(self._job.public, record.values)
            trial = {"number": record.number, "config": record.config, "key": key}
            config |= {"seed": record.seed, "trial": trial}
        run_id = self._run_id(key)
        tracking = self._job.folder.tracking
        if self._files is None:
            tracking.mkdir(parents=True, exist_ok=True)
            for older in tracking.glob(f"*run-*-{run_id}"):  # the new one will hold all of it
                shutil.rmtree(older, ignore_errors=True)
        run = wandb.init(
            project=self._job.tracking.project,
            entity=self._job.tracking.entity,
            dir=str((self._files or self._job.root).absolute()),
            id=run_id,
            name=name[:_MOST_LETTERS],
            group=self._job.sweep_name,
            job_type="sweep" if key == _SWEEP else "trial",
            tags=self._job.tracking.tags,
            config=config,
            mode="online" if self._is_online else "offline",
            resume="allow",
            reinit="create_new",
            settings=run_settings(
                self._job.patience,
                sweep_id=None if key == _SWEEP else self._attach(),
                stop=partial(self._stops.put, key),
            ),
        )
        run.define_metric("*", step_metric=axis)
        if key != _SWEEP:
            best_of = self._history.direction.removesuffix("imize")  # min, max
            name = chart_metrics.chart_name(self._history.metric)
            run.define_metric(name, step_metric=axis, summary=best_of)
            run.define_metric(EVALUATION, step_metric=axis, hidden=True)
        step, evaluation = (int(run.summary.get(name) or 0) for name in (axis, EVALUATION))
        return _Shown(run=run, step=step, opened_at=step, evaluation=evaluation)

    def _catch_up(self, key: str, shown: _Shown) -> None:
        """Give a run what it lacks, in the order of its steps."""
        if key == _SWEEP:
            self._show_base(shown)
            self._log_progress(shown)
            return
        record = self._history.trials[key]
        waiting = [record.reports[index] for index in sorted(record.reports)]
        for row in chart_rows(self._job.folder, key):
            while waiting and waiting[0].step < row["step"]:
                self._log_report(shown, record, waiting.pop(0))
            self._log_row(shown, record, row)
        for report in waiting:
            self._log_report(shown, record, report)

    @property
    def _sweep_id(self) -> str | None:
        """The id of W&B's sweep object, if there is one."""
        return self._kept.sweeps.get(self._link.page)

    @property
    def _page(self) -> str:
        """The sweep's page, or the project's."""
        found = self._sweep_id
        return f"{self._link.page}/sweeps/{found}" if found else self._link.page

    def _attach(self) -> str | None:
        """The id of W&B's sweep object, which is made if there is none yet; None if offline."""
        if not self._is_online or self._sweep_id is not None:
            return self._sweep_id if self._is_online else None
        if not self._can_make_sweep or not self._link.entity:
            return None
        self._can_make_sweep = False  # tried once
        try:
            self._kept.sweeps[self._link.page] = make_sweep(
                sweep_object(self._history, self._job.sweep_name[:_MOST_LETTERS]),
                entity=self._link.entity,
                project=self._job.tracking.project,
                runs=[self._run_id(key) for key in self._earlier],
                timeout_s=self._job.patience.init_s,
            )
        except Exception as error:
            log.warning(
                "W&B: the runs go on without a sweep page of their own: %s", _first_line(error)
            )
            return None
        self._kept.save()
        return self._sweep_id

    def _save_view(self, seconds_left: float) -> None:
        """Save a view of the sweep, unless there is one, or its package is not installed."""
        page = self._link.page
        if page in self._kept.views or self._sweep_id is None or seconds_left <= 0:
            return
        try:
            view = save_view(
                self._history,
                name=self._job.sweep_name[:_MOST_LETTERS],
                entity=self._link.entity,
                project=self._job.tracking.project,
                sweep_id=self._sweep_id,
                timeout_s=min(seconds_left, self._job.patience.init_s),
            )
        except ImportError:
            return
        except Exception as error:
            log.warning("W&B: there is no saved view of the sweep: %s", _first_line(error))
            return
        self._kept.views[page] = scrub(view)
        self._kept.save()

    def _end_sweep(self, timeout_s: float) -> None:
        path = f"{self._link.entity}/{self._job.tracking.project}/{self._sweep_id}"
        if trouble := end_sweep(path, timeout_s):
            log.warning("W&B: the sweep page still says that it runs: %s", scrub(trouble))

    def _hand_on(self, key: str) -> None:
        """Ask for what W&B's stop button means: a trial's stop; on the sweep's run, its finish."""
        if self._files is not None:
            return
        run_id = self._run_id(key)
        if run_id in self._kept.stopped:
            return
        self._kept.stopped.append(run_id)
        self._kept.save()
        if key == _SWEEP:
            verb: Verb = "finish"
            what = "the sweep's run: all trials are stopped, and the best is proven"
        else:
            verb, record = "stop", self._history.trials[key]
            name = self._job.shown_name(record)
            what = f"the run of trial {record.number} ({name}): it is stopped"
        by = f"W&B's stop button, {self._link.page}/runs/{run_id}"
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        log.warning("%s: W&B's stop button was pressed on %s (%s)", at, what, by)
        trials = () if key == _SWEEP else (key,)
        request = make_request(verb, trials=trials, by=by, start=self._history.attempts)
        write_request(self._job.folder, request)

    def _run_id(self, key: str) -> str:
        return f"{identity(self._job, self._history)}-{key}"

    def _close(self, codes: Mapping[str, int], timeout_s: float) -> None:
        """Close runs with these exit codes. If the server does not keep up, leave it alone."""
        runs = {key: self._open.pop(key).run for key in codes if key in self._open}
        late = (
            finish_runs({run: codes[key] for key, run in runs.items()}, timeout_s) if runs else []
        )
        self._followed -= codes.keys()
        for key, run in runs.items():
            if key != _SWEEP and run not in late and self._files is None:
                self._kept.closed[key] = _ending(self._history.trials[key])
        if runs and self._files is None:
            self._kept.save()
        if not late:
            return
        if not self._is_online:
            raise RuntimeError("wandb-core ended before the runs were closed")
        self._go_offline("the server does not take the runs in time")

    def _go_offline(self, reason: str) -> None:
        """Leave the server alone from now on; what runs wrote so far stays on disk."""
        first_line = scrub(reason).splitlines()[0]
        if self._files is not None:
            raise UnusableError(first_line)
        log.warning("W&B: %s. Going on offline, in %s", first_line, self._job.folder.tracking)
        self._is_online = self._all_sent = False
        self._open.clear()
        restart()


def _first_line(error: Exception) -> str:
    return scrub(str(error).strip() or type(error).__name__).splitlines()[0]


def _exit_code(record: Record) -> int:
    if not record.state.is_finished():
        return _INTERRUPTED
    return 0 if record.state in _SUCCESS else 1


def _ending(record: Record) -> str:
    """How its run is closed; another word for each attempt at the trial."""
    return f"{chart_metrics.status(record)}, attempt {record.attempt}"
