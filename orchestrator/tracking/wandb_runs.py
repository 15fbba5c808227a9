"""A sweep's runs in W&B: one a trial, and one that sums the sweep up. Lives on one thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.tracking import wandb_metrics
from orchestrator.tracking.allow_list import clean, sweep_config, trial_config
from orchestrator.tracking.wandb_metrics import chart_values
from orchestrator.tracking.wandb_process import FINISH_S, WandbService
from sweeps.core.naming import trial_name
from sweeps.core.secrets import scrub
from sweeps.core.trial import Report, State, fingerprint
from sweeps.ledger.history import History, Record
from sweeps.ledger.ledger import Event
from sweeps.results.ranking import best
from sweeps.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

STEP = "optimizer_step"
LINGER_S = 5.0  # a trial's last rows may be read after its end was told
_SWEEP = "sweep"  # among the trial keys: the run of the sweep itself
_MOST_LETTERS = 128  # of a name
_SUCCESS = (State.COMPLETED, State.PRUNED)
_INTERRUPTED = 130  # exit code
_CLOSE_S = FINISH_S + 2.0
_LOOK_EVERY_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A run that is over, and stays open a little for late rows."""

    at: float  # time.monotonic
    exit_code: int


class SweepRuns:
    """Turns ledger events and training rows into W&B runs.

    Args:
        past: what the ledger holds already. It was tracked by the driver before, so it only says
            what the trials are; an event among it that is given again is passed over.
        trouble: asks the server; what is wrong with it now, or nothing.
    """

    def __init__(
        self,
        service: WandbService,
        folder: RunFolder,
        past: Iterable[Event],
        *,
        sweep_name: str,
        public: Mapping[str, Any],
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        self.service = service
        self._trouble = trouble
        self._looked = -_LOOK_EVERY_S
        self._folder = folder
        self._sweep_name = sweep_name
        self._public = public
        self._history = History()
        self._identity = ""
        self._open: dict[str, Run] = {}
        self._endings: dict[str, Ending] = {}
        self._from_step: dict[str, int] = {}  # of the trials that started under this driver
        self._known: set[tuple[object, ...]] = set()
        for event in past:
            self._known.add(_mark(event))
            self._fold(event)

    def on_event(self, event: Event) -> None:
        """Follow one ledger event."""
        if _mark(event) in self._known:
            return
        self._fold(event)
        follow = getattr(self, f"_on_{event['event']}", None)
        if follow is not None:
            follow(event)

    def on_row(self, key: str, row: Mapping[str, Any]) -> None:
        """Log a training row, unless the run has it from an earlier attempt, or is closed."""
        step = row.get("step")
        if key not in self._from_step or (step is not None and step <= self._from_step[key]):
            return
        if key not in self._open and self._history.trials[key].state.is_finished():
            return
        values = chart_values({name: value for name, value in row.items() if name != "step"})
        if step is not None:
            values[STEP] = step
        self._with_run(key, lambda run: run.log(values))

    def close_ended(self) -> None:
        """Close the runs whose trials ended some time ago."""
        now = time.monotonic()
        due = [key for key, ending in self._endings.items() if now - ending.at >= LINGER_S]
        self._close({key: self._endings.pop(key).exit_code for key in due}, _CLOSE_S)

    def close_all(self, summary: Mapping[str, Any], timeout_s: float) -> None:
        """Close every trial's run, then the sweep's with its table."""
        self._look()
        codes = {key: _INTERRUPTED for key in self._open if key != _SWEEP}
        codes |= {key: ending.exit_code for key, ending in self._endings.items()}
        self._endings.clear()
        self._close(codes, timeout_s)
        if not self._history.trials:
            return
        self._with_run(_SWEEP, lambda run: self._sum_up(run, summary))
        records = self._history.trials.values()
        finished = all(record.state.is_finished() for record in records)
        self._close({_SWEEP: 0 if finished else _INTERRUPTED}, timeout_s)

    def _fold(self, event: Event) -> None:
        self._history.apply(event)
        if event["event"] == "attempt":
            self._from_step.clear()
        elif event["event"] == "start":
            self._from_step[event["trial"]] = int(event.get("step") or 0)

    def _on_start(self, event: Event) -> None:
        self._endings.pop(event["trial"], None)
        self._with_run(_SWEEP, lambda run: None)
        self._with_run(event["trial"], lambda run: run.summary.update({"status": "running"}))

    def _on_report(self, event: Event) -> None:
        report = Report.from_json(event)
        if report.index == 0:
            shown = {f"base_{name}": value for name, value in report.metrics.items()}
            self._with_run(_SWEEP, lambda run: run.summary.update(shown))
            return
        values = chart_values(report.metrics)
        values |= {STEP: report.step, "examples": report.examples, "tokens": report.tokens}
        self._with_run(event["trial"], lambda run: run.log(values))

    def _on_end(self, event: Event) -> None:
        record = self._history.trials[event["trial"]]
        shown = wandb_metrics.outcome(self._history, record)
        self._with_run(record.key, lambda run: run.summary.update(shown))
        code = 0 if record.state in _SUCCESS else 1
        self._endings[record.key] = Ending(at=time.monotonic(), exit_code=code)
        self._with_run(_SWEEP, lambda run: run.log(wandb_metrics.progress(self._history)))
        if not self._history.unfinished():  # while the best is proven there is time for it
            self._look()

    def _look(self) -> None:
        """See that the server is there before runs are closed: a silent one is waited for long."""
        if not self.service.online or time.monotonic() - self._looked < _LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        if trouble := self._trouble():
            self._go_offline(trouble)

    def _sum_up(self, run: Run, summary: Mapping[str, Any]) -> None:
        import wandb

        columns, rows = wandb_metrics.ranking_table(self._history)
        table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        run.log({"ranking": table, **wandb_metrics.progress(self._history)})
        shown: dict[str, Any] = {"trials": wandb_metrics.counts(self._history)}
        top = best(self._history)
        if top is not None:
            shown["best_trial"] = {"name": self._name(top.record), "key": top.record.key}
        run.summary.update(shown | wandb_metrics.summary_values(summary))

    def _with_run(self, key: str, act: Callable[[Run], object]) -> None:
        """Do it with the run of a trial; where the server fails, once more with a run on disk."""
        try:
            act(self._run(key))
        except Exception as error:
            if not self.service.online:
                raise
            self._go_offline(str(error).strip() or type(error).__name__)
            act(self._run(key))

    def _run(self, key: str) -> Run:
        if key not in self._open:
            self._open[key] = self._begin(key)
        return self._open[key]

    def _begin(self, key: str) -> Run:
        if key == _SWEEP:
            name, axis = self._sweep_name, "trials_ended"
            config = sweep_config(self._public)
        else:
            record = self._history.trials[key]
            name, axis = self._name(record), STEP
            config = trial_config(self._public, record.values)
            config |= {"seed": record.seed, "trial": {"number": record.number, "key": key}}
        run = self.service.open(
            f"{self._sweep_identity()}-{key}",
            name=name[:_MOST_LETTERS],
            job_type="sweep" if key == _SWEEP else "trial",
            config=config,
        )
        run.define_metric("*", step_metric=axis)
        return run

    def _name(self, record: Record) -> str:
        repeated = (self._public.get("sweep") or {}).get("repeats", 1) > 1
        name = str(clean("", trial_name(record.values)))
        return f"{name} seed={record.seed}" if repeated else name

    def _sweep_identity(self) -> str:
        """The same for every driver of this run folder, another one for every other folder.

        Not the path: `outputs/lr_grid` is on many machines, and is made anew after being removed.
        """
        if not self._identity:
            began = self._history.began
            origin = began if began is not None else str(self._folder.root.resolve())
            self._identity = fingerprint([self._history.name or self._sweep_name, origin], 8)
        return self._identity

    def _close(self, codes: Mapping[str, int], timeout_s: float) -> None:
        """Close runs with these exit codes. Where the server does not keep up, leave it alone."""
        runs = [(self._open.pop(key), code) for key, code in codes.items() if key in self._open]
        if not runs or self.service.close(runs, timeout_s):
            return
        if not self.service.online:
            raise RuntimeError("wandb-core ended before the runs were closed")
        self._go_offline("the server does not take the runs in time")

    def _go_offline(self, reason: str) -> None:
        first_line = scrub(reason).splitlines()[0]
        log.warning("W&B: %s. Going on offline, in %s", first_line, self._folder.tracking)
        self.service.go_offline()
        self._open.clear()


def _mark(event: Mapping[str, Any]) -> tuple[object, ...]:
    """Tells one ledger event from all others."""
    return tuple(event.get(name) for name in ("event", "time", "trial", "attempt", "index", "step"))
