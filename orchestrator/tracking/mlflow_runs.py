"""Shows a sweep in MLflow: a parent run for the sweep, and a nested run for each trial."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.allow_list import clean, sweep_config, trial_config
from orchestrator.tracking.chart_metrics import chart_values, progress, without_shared
from orchestrator.tracking.tracker import Job, chart_rows, identity
from sweeps.core.commands import in_a_shell
from sweeps.core.secrets import is_secret_key, scrub
from sweeps.core.trial import State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.results.ranking import best

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

_SWEEP = "sweep"  # among the trial keys: the parent run
_OF_SWEEP, _OF_TRIAL = "sft_sweeps.sweep", "sft_sweeps.trial"  # tags: which sweep and trial it is
_COUNTED = "tokens"  # a metric of every training row
_STATUS = {State.DIVERGED: "FAILED", State.FAILED: "FAILED", State.STOPPED: "KILLED"}
_EVERY_S = 5.0  # between the requests for a trial's rows
_CATCH_UP_S = 0.5  # of a tick
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of a request


@dataclass(kw_only=True)
class _Run:
    """A run that is open.

    Attributes:
        step, evaluated: the last step whose row, and whose evaluation, is in `metrics` or sent.
        metrics: what is to be sent.
        ended: when the trial did, by time.monotonic.
    """

    id: str
    step: int = 0
    evaluated: int = 0
    metrics: list[Metric] = field(default_factory=list)
    ended: float | None = None


class MlflowRuns:
    """Turns ledger events and training rows into MLflow runs; a `Tracker`.

    A run is told what it lacks from the ledger and the metrics file when its trial starts under a
    driver. So it is whole and has no point twice, whatever earlier drivers have tracked; and if a
    server is lost, all of the sweep goes to the store in the run folder.
    """

    name = "MLflow"
    package = "mlflow-skinny"

    def __init__(self, job: Job) -> None:
        self._job = job
        self._local = f"sqlite:///{job.folder.mlflow}"
        self._uri = job.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or self._local
        self._history = History()
        self._began: dict[str, float] = {}  # trial -> its first start
        self._client: MlflowClient | None = None  # once the experiment is there
        self._experiment = ""
        self._found: dict[str, Any] = {}  # trial -> its run of an earlier driver
        self._runs: dict[str, _Run] = {}
        self._behind: list[Record] = []  # ended under earlier drivers; to be looked at
        self._sent = 0.0  # time.monotonic

    def connect(self, past: Iterable[Event]) -> str:
        """Look for the server; see `Tracker.connect`."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # it is on by default
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        timeout_s = max(1, round(self._job.patience.probe_s))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout_s))
        import mlflow.tracking

        if self._is_local and self._job.only_look:
            return f"{self.name}: mlflow.db, in the run folder"
        for event in past:
            self._fold(event)
        if not self._is_local:
            try:
                mlflow.tracking.MlflowClient(self._uri).search_experiments(max_results=1)
            except Exception as error:
                lost = f"{self.name}: {self._server} is of no use ({_first_line(error)})"
                self._uri = self._local
                here = "mlflow.db of the run folder"
                return f"{lost}; runs go to {here}" + self._how_to_look(" instead: ")
        self._behind = [r for r in self._history.trials.values() if r.state.is_finished()]
        return f"{self.name}: {self._how_to_look()}"

    def on_event(self, event: Event) -> None:
        """Follow one ledger event."""
        self._fold(event)
        self._safely(lambda: self._follow(event))

    def on_row(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a training row to be sent, unless its step was, as by an earlier attempt."""
        step = row.get("step")
        if key not in self._runs or step is None or step <= self._runs[key].step:
            return
        self._runs[key].step = step
        shown = chart_values(without_shared(self._history.trials[key], row))
        self._keep(key, step, shown, row.get("seconds"))

    def tick(self) -> None:
        """Send what is due, and end the runs of trials that ended some time ago."""
        self._catch_up(time.monotonic() + _CATCH_UP_S)
        latest = time.monotonic() - self._job.patience.linger_s
        ended = [key for key, run in self._runs.items() if run.ended and run.ended <= latest]
        for key in ended:
            self._safely(lambda key=key: self._end(key))  # type: ignore[misc]
        if time.monotonic() - self._sent >= _EVERY_S:
            self._sent = time.monotonic()
            self._safely(self._send_all)

    def close(self, timeout_s: float) -> None:
        """End all runs, those of trials that have not ended as KILLED; the parent last."""
        until = time.monotonic() + timeout_s
        self._catch_up(until)
        for key in [key for key in self._runs if key != _SWEEP]:
            self._safely(lambda key=key: self._end(key))  # type: ignore[misc]
        self._catch_up(until)  # the server may have been lost just now
        if self._history.trials:
            self._safely(self._sum_up)
        self._catch_up(until)

    def last_lines(self, *, cut_short: bool) -> list[str]:
        """Where the runs are."""
        return [f"{self.name}: {self._how_to_look()}"]

    def leave(self) -> None:
        """Nothing runs beside this process."""

    @property
    def _is_local(self) -> bool:
        return self._uri == self._local

    @property
    def _server(self) -> str:
        return scrub(self._uri)

    def _how_to_look(self, before: str = "") -> str:
        if self._is_local:
            return f"{before}mlflow ui --backend-store-uri {in_a_shell(self._local)}"
        page = f"/#/experiments/{self._experiment}" if self._experiment else ""
        return f"{before}online, {self._server}{page} (run {self._job.sweep_name})"

    def _fold(self, event: Event) -> None:
        self._history.apply(event)
        if isinstance(event, events.Start):
            self._began.setdefault(event.trial, event.time or time.time())

    def _follow(self, event: Event) -> None:
        match event:
            case events.Start(trial=key):
                if key not in self._runs:
                    self._begin(self._history.trials[key])
                self._runs[key].ended = None
            case events.Report(index=0):
                base = {f"base_{name}": value for name, value in event.metrics.items()}
                self._open_store()
                self._keep(_SWEEP, 0, base, None)
            case events.Report(trial=key) if key in self._runs:
                self._report(self._history.trials[key], event.index)
            case events.End(trial=key) if key in self._runs:
                self._runs[key].ended = time.monotonic()
                self._tell_progress()

    def _tell_progress(self) -> None:
        if _SWEEP in self._runs and self._runs[_SWEEP].evaluated < self._history.ended:
            self._runs[_SWEEP].evaluated = self._history.ended
            self._keep(_SWEEP, self._history.ended, progress(self._history), None)

    def _safely(self, act: Callable[[], None]) -> None:
        """Call `act`; if the server fails, again with the store in the run folder."""
        try:
            act()
        except Exception as error:
            if self._is_local:
                raise
            self._leave_server(_first_line(error))
            act()

    def _leave_server(self, reason: str) -> None:
        """Leave the server alone from now on: the store in the run folder gets the whole sweep."""
        where = self._job.folder.mlflow
        log.warning("%s: %s: %s. Going on in %s", self.name, self._server, reason, where)
        self._uri, self._client, self._experiment = self._local, None, ""
        self._found.clear()
        running = [key for key, run in self._runs.items() if key != _SWEEP and run.ended is None]
        self._runs.clear()
        for key in running:
            self._begin(self._history.trials[key])
        self._behind = [r for r in self._history.trials.values() if r.state.is_finished()]

    def _open_store(self) -> MlflowClient:
        """The client, once the experiment and the parent run are there."""
        if self._client is not None:
            return self._client
        from mlflow.tracking import MlflowClient

        if self._is_local and not self._job.folder.mlflow.exists():
            self._make_store()
        client, project = MlflowClient(self._uri), self._job.tracking.project
        found = client.get_experiment_by_name(project)
        self._experiment = found.experiment_id if found else client.create_experiment(project)
        self._found = {run.data.tags.get(_OF_TRIAL, ""): run for run in self._of_this_sweep(client)}
        self._client = client
        config = sweep_config(self._job.public)
        self._runs[_SWEEP] = self._run(_SWEEP, self._job.sweep_name, config)
        return client

    def _make_store(self) -> None:
        """Make the store under another name first: MLflow refuses one that was made by half."""
        from mlflow.tracking import MlflowClient

        final = self._job.folder.mlflow
        draft = final.with_name(f".{final.name}.draft")
        draft.unlink(missing_ok=True)
        MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
        draft.replace(final)

    def _of_this_sweep(self, client: MlflowClient) -> Iterator[Any]:
        sweep = f"tags.`{_OF_SWEEP}` = '{identity(self._job, self._history)}'"
        token: str | None = ""
        while token is not None:
            page = client.search_runs([self._experiment], sweep, page_token=token or None)
            yield from page
            token = page.token or None

    def _run(self, key: str, name: str, config: Mapping[str, Any], **params: str) -> _Run:
        """Go on with a run, or begin it, with its config as parameters."""
        client = self._open_store()
        if key in self._found:
            run = self._found[key].info.run_id
            client.update_run(run, status="RUNNING")
            steps = [each.step for each in client.get_metric_history(run, _COUNTED)]
            evaluated = [each.step for each in client.get_metric_history(run, self._best)]
            return _Run(id=run, step=max(steps, default=0), evaluated=max(evaluated, default=0))
        from mlflow.entities import Param, RunTag

        tags = {_word(tag): "true" for tag in self._job.tracking.tags}
        tags |= {_OF_SWEEP: identity(self._job, self._history), _OF_TRIAL: key}
        if key != _SWEEP:
            tags["mlflow.parentRunId"] = self._runs[_SWEEP].id
        began = self._began.get(key, self._history.began)
        start = None if began is None else int(1000 * began)
        run = client.create_run(self._experiment, start, tags, name).info.run_id
        shown = [Param(_word(name), text) for name, text in {**_flat(config), **params}.items()]
        for at in range(0, len(shown), _MOST_PARAMS):
            client.log_batch(run, params=shown[at : at + _MOST_PARAMS], synchronous=True)
        state = [RunTag("state", "running")]
        client.log_batch(run, tags=state, synchronous=True)
        return _Run(id=run)

    def _begin(self, record: Record) -> None:
        """Open a trial's run, and keep all that it lacks to be sent."""
        self._open_store()
        key = record.key
        config = trial_config(self._job.public, record.values)
        # Below a section's keys, too: what was searched is a parameter of its own.
        searched = {
            name: _text(clean(name, value))
            for name, value in record.values.items()
            if not is_secret_key(name)
        }
        about = {"seed": str(record.seed), "trial.number": str(record.number), "trial.key": key}
        name = self._job.shown_name(record)
        self._runs[key] = self._run(key, name, config, **{**searched, **about})
        for row in chart_rows(self._job.folder, key):
            self.on_row(key, row)
        for index in sorted(record.reports):
            self._report(record, index)

    def _end(self, key: str) -> None:
        """Send the rest of a trial's run and end it."""
        if key not in self._runs:  # a server was lost: `_catch_up` has the trial now
            return
        from mlflow.entities import RunTag

        record, run = self._history.trials[key], self._runs[key]
        self._send(run)
        is_over = record.state.is_finished()
        state = str(record.state) if is_over else "interrupted"
        tags = [RunTag("state", state)]
        if record.kind:
            tags.append(RunTag("failure", record.kind))
        client = self._open_store()
        client.log_batch(run.id, tags=tags, synchronous=True)
        status = _STATUS.get(record.state, "FINISHED") if is_over else "KILLED"
        ended = record.ended if is_over else None
        client.set_terminated(run.id, status, None if ended is None else int(1000 * ended))
        del self._runs[key]

    def _catch_up(self, until: float) -> None:
        """Complete the runs of trials that ended under earlier drivers; not beyond `until`."""
        while self._behind and time.monotonic() < until:
            record = self._behind.pop()
            self._safely(lambda record=record: self._complete(record))  # type: ignore[misc]

    def _complete(self, record: Record) -> None:
        self._open_store()
        found = self._found.get(record.key)
        if not record.attempt or record.key in self._runs:
            return
        if found is None or found.data.tags.get("state") != str(record.state):
            self._begin(record)
            self._end(record.key)

    def _sum_up(self) -> None:
        """End the parent run, and those that a killed driver left open."""
        from mlflow.entities import RunTag

        client = self._open_store()
        for key, run in self._found.items():
            record = self._history.trials.get(key)
            is_open = run.info.status == "RUNNING"
            if is_open and record is not None and not record.state.is_finished():
                client.set_terminated(run.info.run_id, "KILLED")
        self._tell_progress()
        run = self._runs.pop(_SWEEP)
        self._send(run)
        top = best(self._history)
        tags = {"best_trial": f"{top.record.number}" if top else "none"}
        tags["state"] = "interrupted" if self._history.unfinished() else "completed"
        shown = [RunTag(name, text) for name, text in tags.items()]
        client.log_batch(run.id, tags=shown, synchronous=True)
        client.set_terminated(run.id, "KILLED" if self._history.unfinished() else "FINISHED")

    @property
    def _best(self) -> str:
        return f"best_{self._history.metric}"

    def _report(self, record: Record, index: int) -> None:
        """Keep an evaluation, and the best value so far; of several at one step, the first.

        Its counts are those of the training row of the same step.
        """
        report, run = record.reports[index], self._runs[record.key]
        if report.step <= run.evaluated:
            return
        run.evaluated = report.step
        so_far = (each for at, each in record.reports.items() if at <= index)
        values = [each.metrics[self._history.metric] for each in so_far]
        measured = {name: v for name, v in report.metrics.items() if name.startswith("eval_")}
        value = min(values, key=lambda each: self._history.sign * each)
        shown = {**chart_values(measured), self._best: value}
        self._keep(record.key, report.step, shown, report.metrics.get("seconds"))

    def _keep(self, key: str, step: int, values: Mapping[str, float], took: float | None) -> None:
        """Keep metrics to be sent; their time is the trial's first start and `took` s."""
        from mlflow.entities import Metric

        at = time.time() if took is None else self._began[key] + took
        more = [Metric(name, value, int(1000 * at), step) for name, value in values.items()]
        self._runs[key].metrics += more

    def _send_all(self) -> None:
        for run in list(self._runs.values()):
            self._send(run)

    def _send(self, run: _Run) -> None:
        """Send what was kept for a run; what could not be sent stays."""
        while run.metrics:
            part = run.metrics[:_MOST_METRICS]
            self._open_store().log_batch(run.id, metrics=part, synchronous=True)
            del run.metrics[: len(part)]


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """A config's keys as `section.key`, and their values as text."""
    found: dict[str, str] = {}
    for section, value in config.items():
        inner = value.items() if isinstance(value, Mapping) else ()
        found |= {f"{section}.{name}": _text(each) for name, each in inner}
        if not isinstance(value, Mapping):
            found[section] = _text(value)
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _word(name: str) -> str:
    """A name of letters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", name)


def _first_line(error: Exception) -> str:
    text = scrub(str(error)).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
