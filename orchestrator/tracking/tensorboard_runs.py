"""Writes a sweep as TensorBoard's event files: one folder for each trial, and its hparams."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.allow_list import clean
from orchestrator.tracking.chart_metrics import chart_values, without_shared
from orchestrator.tracking.tracker import Job, chart_rows
from sweeps.core.commands import in_a_shell
from sweeps.core.naming import short_value
from sweeps.core.secrets import is_secret_key
from sweeps.core.trial import State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.space.parser import space_of

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_FLUSH_S = 5  # a row is seen so much later at most
_CATCH_UP_S = 0.5  # of a tick
_MOST_LETTERS = 100  # of a folder's name
_SUCCESS = (State.COMPLETED, State.PRUNED, State.STOPPED)


@dataclass(kw_only=True)
class _File:
    """A trial's open event file.

    Attributes:
        step, evaluated: the last step whose row, and whose evaluation, was written.
        ended: when the trial did, by time.monotonic.
    """

    writer: EventFileWriter
    step: int = 0
    evaluated: int = 0
    ended: float | None = None


class TensorboardRuns:
    """Turns ledger events and training rows into event files; a `Tracker`.

    The first start of a trial under a driver begins a file that has all of the trial up to there,
    from the ledger and the metrics file, and lets TensorBoard forget what earlier files said. So
    the curves are whole and have no point twice, whatever earlier drivers have tracked.
    """

    name = "TensorBoard"
    package = "tensorboard"

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = job.folder.tensorboard
        self._history = History()
        self._began: dict[str, float] = {}  # trial -> its first start
        self._files: dict[str, _File] = {}  # trial -> its open file
        self._behind: list[Record] = []  # ended under earlier drivers; to be looked at
        self._kinds: dict[str, str] = {}  # searched key -> HParams' type of it

    def connect(self, past: Iterable[Event]) -> str:
        """Say how to look at the files; see `Tracker.connect`."""
        import tensorboard.summary  # noqa: F401  # without it there is nothing to connect to

        if self._job.only_look:
            return f"{self.name}: event files, in tensorboard/ of the run folder"
        for event in past:
            self._fold(event)
        self._behind = [r for r in self._history.trials.values() if r.state.is_finished()]
        return self._how_to_look()

    def on_event(self, event: Event) -> None:
        """Follow one ledger event."""
        self._fold(event)
        match event:
            case events.Start(trial=key) if key in self._files:
                self._files[key].ended = None
            case events.Start(trial=key):
                self._begin(self._history.trials[key])
            case events.Report(trial=key) if key in self._files:
                self._report(self._history.trials[key], event.index)
            case events.End(trial=key) if key in self._files:
                self._files[key].ended = time.monotonic()

    def on_row(self, key: str, row: Mapping[str, Any]) -> None:
        """Write a training row, unless its step was written before, as by an earlier attempt."""
        step = row.get("step")
        if key not in self._files or step is None or step <= self._files[key].step:
            return
        self._files[key].step = step
        shown = chart_values(without_shared(self._history.trials[key], row))
        self._write(key, step, shown, row.get("seconds"))

    def tick(self) -> None:
        """Close the files of trials that ended some time ago."""
        self._catch_up(time.monotonic() + _CATCH_UP_S)
        latest = time.monotonic() - self._job.patience.linger_s
        for key, file in list(self._files.items()):
            if file.ended is not None and file.ended <= latest:
                self._end(self._history.trials[key])

    def close(self, timeout_s: float) -> None:
        """Close all files; a trial that has not ended has no end there."""
        self._catch_up(time.monotonic() + timeout_s)
        for key in list(self._files):
            self._end(self._history.trials[key])

    def last_lines(self, *, cut_short: bool) -> list[str]:
        """How to look at the files."""
        return [self._how_to_look()]

    def leave(self) -> None:
        """Nothing runs beside this process."""

    def _how_to_look(self) -> str:
        return f"{self.name}: tensorboard --logdir {in_a_shell(str(self._folder))}"

    def _fold(self, event: Event) -> None:
        self._history.apply(event)
        if isinstance(event, events.Start):
            self._began.setdefault(event.trial, event.time or time.time())

    def _begin(self, record: Record) -> None:
        """Begin a file with all that is known of a trial."""
        if not self._kinds:
            self._describe()
        has_files = any(self._earlier(record))
        self._files[record.key] = file = _File(writer=self._open(self._run(record)))
        if has_files:
            _forget(file.writer)
        self._add(record.key, 0, self._start_of(record))
        for row in chart_rows(self._job.folder, record.key):
            self.on_row(record.key, row)
        for index in sorted(record.reports):
            self._report(record, index)

    def _catch_up(self, until: float) -> None:
        """Write the trials that ended under earlier drivers, as far as those have not."""
        while self._behind and time.monotonic() < until:
            record = self._behind.pop()
            if record.key not in self._files and not self._is_whole(record):
                self._begin(record)
                self._end(record)

    def _end(self, record: Record) -> None:
        """Close a trial's file; if the trial has ended, with how it ended."""
        from tensorboard.plugins.hparams import api_pb2, metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

        if record.state.is_finished():
            success = record.state in _SUCCESS
            status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
            ended = SessionEndInfo(status=status, end_time_secs=record.ended)
            data = HParamsPluginData(session_end_info=ended)
            self._add(record.key, 0, _summary(metadata.SESSION_END_INFO_TAG, data))
        self._files.pop(record.key).writer.close()

    def _is_whole(self, record: Record) -> bool:
        """Whether an earlier driver has written how the trial ended, which comes last."""
        from tensorboard.plugins.hparams import metadata

        end = metadata.SESSION_END_INFO_TAG.encode()
        return not record.attempt or any(end in f.read_bytes() for f in self._earlier(record))

    def _earlier(self, record: Record) -> Iterator[Path]:
        return (self._folder / self._run(record)).glob("events.out.tfevents.*")

    def _report(self, record: Record, index: int) -> None:
        """Write an evaluation, and the best value so far; of several at one step, the first.

        Its counts are those of the training row of the same step.
        """
        report, file = record.reports[index], self._files[record.key]
        if report.step <= file.evaluated:
            return
        file.evaluated = report.step
        so_far = (each for at, each in record.reports.items() if at <= index)
        values = [each.metrics[self._history.metric] for each in so_far]
        best = min(values, key=lambda value: self._history.sign * value)
        measured = {name: v for name, v in report.metrics.items() if name.startswith("eval_")}
        shown = {**chart_values(measured), self._best: best}
        self._write(record.key, report.step, shown, report.metrics.get("seconds"))

    @property
    def _best(self) -> str:
        return f"best_{self._history.metric}"

    def _write(self, key: str, step: int, values: Mapping[str, float], took: float | None) -> None:
        """Write scalars; their time is that of the trial's first start and `took` s of training."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(
            key, step, Summary(value=scalars), None if took is None else self._began[key] + took
        )

    def _add(self, key: str, step: int, summary: Any, at: float | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Entry

        entry = Entry(wall_time=at or time.time(), step=step, summary=summary)
        self._files[key].writer.add_event(entry)

    def _open(self, run: str) -> EventFileWriter:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        return EventFileWriter(str(self._folder / run), flush_secs=_FLUSH_S)

    def _run(self, record: Record) -> str:
        """The trial's folder, which TensorBoard shows as the run's name."""
        safe = re.sub(r"[^\w=.+-]+", "-", self._job.shown_name(record))
        return f"{record.number:03d}-{safe}"[:_MOST_LETTERS]

    def _describe(self) -> None:
        """Say which hyperparameters and metrics HParams shows."""
        from tensorboard.compat.proto.event_pb2 import Event as Entry
        from tensorboard.plugins.hparams import api_pb2, metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        values = space_of(self._history.spec).values_by_key()
        for record in self._history.trials.values():
            for key, value in record.values.items():
                values.setdefault(key, []).append(value)
        shown = {key: _kind(options) for key, options in values.items() if not is_secret_key(key)}
        self._kinds = {**shown, "seed": "FLOAT64"}
        infos = [
            api_pb2.HParamInfo(name=key, type=getattr(api_pb2, f"DATA_TYPE_{kind}"))
            for key, kind in self._kinds.items()
        ]
        tags = [self._best, *chart_values({self._history.metric: 0.0})]
        metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in tags]
        experiment = api_pb2.Experiment(
            name=self._job.sweep_name, hparam_infos=infos, metric_infos=metrics
        )
        data = HParamsPluginData(experiment=experiment)
        writer = self._open("")
        summary = _summary(metadata.EXPERIMENT_TAG, data)
        writer.add_event(Entry(wall_time=time.time(), summary=summary))
        writer.close()

    def _start_of(self, record: Record) -> Any:
        """A trial's hyperparameters; the seeds of one config are one row of HParams' table."""
        from tensorboard.plugins.hparams import metadata
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

        group = str(record.number) if self._job.repeats == 1 else f"config {record.config}"
        began = self._began.get(record.key)
        start = SessionStartInfo(group_name=group, start_time_secs=began)
        for key, value in {**record.values, "seed": record.seed}.items():
            kind = self._kinds.get(key)
            if kind == "FLOAT64" and _is_number(value):
                start.hparams[key].number_value = value
            elif kind == "BOOL" and isinstance(value, bool):
                start.hparams[key].bool_value = value
            elif kind == "STRING":
                start.hparams[key].string_value = short_value(clean(key, value))
        data = HParamsPluginData(session_start_info=start)
        return _summary(metadata.SESSION_START_INFO_TAG, data)


def _forget(writer: EventFileWriter) -> None:
    """Let TensorBoard forget what it has read of the folder's earlier files."""
    from tensorboard.compat.proto.event_pb2 import Event as Entry
    from tensorboard.compat.proto.event_pb2 import SessionLog

    log = SessionLog(status=SessionLog.START)
    writer.add_event(Entry(wall_time=time.time(), step=0, session_log=log))


def _kind(values: Sequence[Any]) -> str:
    """HParams' type for these values of a key; what is of no other kind is text."""
    if values and all(isinstance(value, bool) for value in values):
        return "BOOL"
    is_number = values and all(_is_number(value) for value in values)
    return "FLOAT64" if is_number else "STRING"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _summary(tag: str, data: Any) -> Any:
    """A summary for the HParams plugin, as its own functions make it, which need TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    about = metadata.create_summary_metadata(data)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
