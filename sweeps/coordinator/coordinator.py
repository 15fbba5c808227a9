"""Hands out trials, takes their reports, decides on them, and writes all of it to the ledger.

A plain class over the ledger and Optuna. One Ray actor holds it while a sweep runs; workers of
every engine call it. Its memory is what a replay of the ledger gives, so its death loses nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import optuna
from omegaconf import OmegaConf

from sweeps.config.spec import Spec
from sweeps.config.trial_config import config_of, trial_key
from sweeps.config.validation import read_train
from sweeps.coordinator import steering
from sweeps.coordinator.ledger_replay import replay_ledger
from sweeps.coordinator.other_folders import Found, take_files
from sweeps.coordinator.retention import Retention
from sweeps.coordinator.suggestions import Suggestions
from sweeps.core.cost import Parts
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import LedgerWriteError, StaleAttemptError
from sweeps.core.secrets import masked, scrub
from sweeps.core.trial import OUTSIDE, Decision, Report, State, Trial
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.results import row_losses
from sweeps.results.cost import settings
from sweeps.search.study import Suggestion, Verdict
from sweeps.space.space import Space
from sweeps.storage.durable_writes import append_lines, write_text
from sweeps.storage.requests import Answer, Request
from sweeps.storage.run_folder import RunFolder

log = logging.getLogger(__name__)


class Coordinator:
    """Asks, reports and ends of one sweep; safe to call from several threads.

    Raises (on making one):
        LedgerDamagedError: the ledger cannot be read.
    """

    def __init__(self, spec: Spec, space: Space, folder: RunFolder) -> None:
        self._spec = spec
        self._space = space
        self._folder = folder
        self._guard = threading.RLock()
        self.history = History()
        self._suggestions = Suggestions(spec, space, self.history, self._write)
        # Configs of the trials that have not ended.
        self._ledger, self._configs = replay_ledger(
            folder.ledger, spec, space, self.history, self._suggestions
        )
        if self.history.asks_for_more(spec.public):
            self.history.is_closed = False
        self._retention = Retention(folder, self.history, spec.sweep.kept, self._write)
        self._handed: set[str] = set()  # given to a worker by this driver, not ended
        ended = self.history.trials.values()
        self._same_errors = Counter(record.reason for record in ended if record.kind == "bug")
        self._base_holder: str | None = None
        self._stop: Stop | None = None  # why no more trials are handed out
        self.has_begun = False  # a driver has taken over
        self._broken: Stop | None = None  # why nothing can be written any more

    # ------------------------------------------------------------------ a driver's life

    def begin(self, driver: events.Attempt | None = None, found: Found | None = None) -> None:
        """A driver takes over: write what it is, and settle what the last one left open.

        Args:
            found: what other run folders give to this sweep.
        """
        with self._guard:
            if not self.history.spec:
                self._write(events.Sweep(name=self._spec.name, spec=self._spec.public))
            driver = driver or events.Attempt()
            number = self.history.attempts + 1
            self._write(replace(driver, number=number, spec=self._spec.public))
            self._suggestions.seeds_may_change()
            if found is not None:
                self._take_over(found)
            self._retention.begin()
            self.has_begun = True
            for record in self.history.unfinished():
                self.end_if_decided(record)

    def take(self, request: Request) -> Answer:
        """Carry out what a user asks for, once; a request that is known is answered again.

        Raises:
            LedgerWriteError: it cannot be written down, and nothing was done.
        """
        with self._guard:
            return steering.take(self, request)

    def note(self, request: Request, said: str, **about: Any) -> None:
        """Write down that a request is carried out from here on, and its answer.

        Args:
            about: other fields of the event.
        """
        self._write(
            events.Request(
                request=request.name, verb=request.verb, by=request.by, said=said, **about
            )
        )

    @property
    def spec(self) -> Spec:
        """The command's, with what users have set."""
        return self._spec

    @property
    def space(self) -> Space:
        return self._space

    @property
    def folder(self) -> RunFolder:
        return self._folder

    def change(self, spec: Spec) -> None:
        """Go on with another spec, which differs in keys that may change."""
        self._spec = spec
        self._suggestions.change(spec)
        self._retention.keep = spec.sweep.kept
        if self.has_begun:
            self._retention.begin()

    def stop_for(self, stop: Stop) -> None:
        """Hand out nothing more in this start, unless that is so already."""
        self._stop = self._stop or stop

    def _take_over(self, found: Found) -> None:
        """Write down what other run folders know, each trial with its files."""
        for known in found.known:
            config = self._suggestions.next_number
            if known.repeat:
                first = trial_key(config_of(self._spec, known.params))
                if first not in self.history.trials:
                    continue
                config = self.history.trials[first].config
                if known.repeat != len(self.history.repeats(config)):
                    continue  # of its seeds an earlier one is missing
            take_files(known, self._folder)
            known = replace(known, config=config, number=len(self.history.trials))
            self._write(known)
            self._suggestions.add_known(known)
            if found.base is not None and self.history.base is None:
                self._write_base(known.trial, found.base)
        for learnt in found.learnt:
            self._write(learnt)
            self._suggestions.learn(learnt)
        if found.known:
            self._suggestions.settle()

    def _write_base(self, key: str, report: Report) -> None:
        decision = Decision.CONTINUE
        self._write(events.Report(trial=key, attempt=0, **report.to_json(), decision=decision))

    def interrupt(self, stop: Stop) -> None:
        """Hand out nothing more; whoever reports next is told to commit and leave."""
        with self._guard:
            if self.stop is None:
                self._stop = stop
                with suppress(LedgerWriteError):  # then it stops for that reason, and says so
                    self._write(events.Interrupt(reason=str(stop), cause=stop.cause.name))

    def close(self) -> None:
        self._ledger.close()

    @property
    def study(self) -> optuna.Study:
        """Optuna's view of the sweep, in memory."""
        return self._suggestions.study

    def trial(self, key: str) -> Trial:
        record = self.history.trials[key]
        config = self._configs.get(key)
        return Trial(
            key=key,
            number=record.number,
            seed=record.seed,
            values=record.values,
            config=config or config_of(self._spec, record.values, record.repeat, record.warm),
            halvings=record.halvings,
        )

    @property
    def stop(self) -> Stop | None:
        """Why no more trials are handed out; None while they are."""
        return self._broken or self._stop

    @property
    def is_finished(self) -> bool:
        """Whether no trial will be handed out any more, whatever happens to those that run."""
        with self._guard:
            if self.stop is not None:
                return True
            if self.history.is_closed or self.history.unfinished():
                return not self.history.unfinished()
            if self._suggestions.wants_config():
                return False
            return not (self._suggestions.repeat() or self._suggestions.finalists())

    @property
    def is_at_rest(self) -> bool:
        """Whether each trial that a worker was given has ended, or waits at its checkpoint."""
        return not self._handed

    # ------------------------------------------------------------------ handing out

    def ask(self) -> Trial | None:
        """The next trial to train: an unfinished one first, else a new suggestion.

        None means: nothing now. Ask again unless `is_finished`.
        """
        with self._guard:
            if self.stop is not None or self.history.paused_by:
                return None
            for record in self.history.unfinished():
                if record.state is State.WAITING and record.key not in self._handed:
                    return self._hand_out(record.key)
            if self.history.is_closed:
                return None
            try:
                suggestion = self._suggestions.repeat() or self._suggestions.suggest()
                if suggestion is None and (best := self._suggestions.finalists()):
                    self._write(best)
                    self._retention.begin()  # they may have been judged before
                    suggestion = self._suggestions.repeat()
                return None if suggestion is None else self._hand_out(self._new_trial(suggestion))
            except LedgerWriteError:
                return None
            except Exception as error:  # else every worker that asks would die of it, for ever
                log.debug("asking", exc_info=error)
                said = f"{type(error).__name__}: {error}"
                self._broken = Stop(cause=Cause.NO_SUGGESTION, details=(said,))
                return None

    def requeue(self, key: str) -> None:
        """A trial that was handed out could not be started: it waits again."""
        with self._guard:
            self._handed.discard(key)

    def _hand_out(self, key: str) -> Trial:
        self._handed.add(key)
        return self.trial(key)

    def add(
        self,
        request: Request,
        values: Mapping[str, Any],
        picked: Mapping[str, Any] | None,
        parent: Record | None = None,
        warm: int | None = None,
    ) -> Record:
        """A new trial that a user asks for.

        Args:
            picked: the same as Optuna names it; None if its space does not hold it.
            parent: the trial that this is a clone of.
            warm: step of the parent's checkpoint whose weights it begins with.
        """
        if picked is not None:
            suggestion = self._suggestions.impose(picked)
        else:
            number = OUTSIDE + len(self.history.trials)
            suggestion = Suggestion(number, {}, values, by_hand=True)
            self._suggestions.outside(number, is_warm=warm is not None)
        key = self._new_trial(
            suggestion,
            request=request.name,
            origin="added" if parent is None else "clone",
            parent=None if parent is None else parent.key,
            warm=warm,
        )
        return self.history.trials[key]

    def resume(self, request: Request, records: Sequence[Record], said: str) -> None:
        """Let trials that have ended go on.

        What Optuna was told of a trial's end stands: a further Optuna trial with the same values
        gets what comes now.
        """
        numbers = dict.fromkeys(r.config for r in records if self._suggestions.is_told(r.config))
        configs = {
            str(config): self._suggestions.impose(self.history.repeats(config)[0].picked).number
            for config in numbers
        }
        keys = tuple(record.key for record in records)
        self.note(request, said, trials=keys, values={"configs": configs})
        self._configs |= {record.key: self.trial(record.key).config for record in records}
        if self.has_begun:
            self._retention.begin()

    def _new_trial(self, suggestion: Suggestion, **asked_for: Any) -> str:
        """A trial of this config is in the sweep from here on; its key.

        Args:
            asked_for: fields of the event that say what a user asked for.
        """
        warm = None
        if asked_for.get("warm") is not None:
            warm = {"trial": asked_for["parent"], "step": asked_for["warm"]}
        config = config_of(self._spec, suggestion.values, suggestion.repeat, warm)
        key = trial_key(config)
        shown = masked("", config)
        assert isinstance(shown, dict)
        write_text(self._folder.trial_config(key), OmegaConf.to_yaml(OmegaConf.create(shown)))
        self._write(
            events.Ask(
                trial=key,
                number=len(self.history.trials),
                repeat=suggestion.repeat,
                seed=config["seed"],
                **suggestion.to_json(),
                **asked_for,
            )
        )
        self._configs[key] = config
        return key

    # ------------------------------------------------------------------ while a trial trains

    def start(
        self,
        key: str,
        *,
        worker: str,
        device: str,
        step: int,
        reports: Sequence[Report] = (),
        lane: bool = False,
    ) -> int | None:
        """An attempt at a trial begins; returns its number, or None where there is nothing to do.

        Args:
            worker: host and pid.
            step: the checkpoint's step that it goes on from, 0 for none.
            reports: those in that checkpoint's manifest; what never reached the ledger is added.
            lane: it trains as a lane of a pack.
        """
        with self._guard:
            record = self.history.trials[key]
            if record.state.is_finished() or self.stop is not None or self.history.paused_by:
                return None
            if record.state is State.RUNNING and not self._retry(record, "its worker died"):
                return None
            attempt = record.attempt + 1
            self._write(
                events.Start(
                    trial=key,
                    attempt=attempt,
                    worker=worker,
                    device=device,
                    step=step,
                    lane=lane,
                )
            )
            for report in reports:
                if report.index and report.index not in record.reports:
                    self._report(record, report)
            return None if self.end_if_decided(record) else attempt

    def claim_base(self, key: str, attempt: int) -> bool:
        """Whether this trial is to measure the base model first: once per sweep."""
        with self._guard:
            self._check(key, attempt)
            holder = self.history.trials.get(self._base_holder or "")
            free = holder is None or holder.key == key or holder.state is not State.RUNNING
            if self.history.base is not None or not free:
                return False
            self._base_holder = key
            return True

    def log(self, key: str, attempt: int, rows: Sequence[Mapping[str, Any]]) -> Decision:
        """Take training metrics; they go to the trial's metrics.jsonl, not into the ledger."""
        with self._guard:
            record = self._check(key, attempt)
            with suppress(OSError):  # rows for the eye; a full disk shows at the next checkpoint
                if rows:
                    append_lines(self._folder.metrics(key), rows)
            return self._decision(record)

    def report(self, key: str, attempt: int, report: Report) -> Decision:
        """Take a report and decide. A report that is known already is not told twice.

        Raises:
            StaleAttemptError: a newer attempt at this trial has begun.
        """
        with self._guard:
            record = self._check(key, attempt)
            if report.index == 0:
                if self.history.base is None:
                    self._write_report(record, report, Verdict(prune=False))
                return Decision.CONTINUE
            if report.index not in record.reports:
                self._report(record, report)
            else:
                self._keep_rows_again(record, report)
            return self._decision(record)

    def committed(self, key: str, attempt: int, step: int, size: int) -> None:
        """A checkpoint lies whole on disk. Checkpoints that need not stay are removed.

        Raises:
            StaleAttemptError: a newer attempt at this trial has begun.
        """
        with self._guard:
            record = self._check(key, attempt)
            path = self._folder.checkpoint(key, step).relative_to(self._folder.root)
            self._write(
                events.Checkpoint(trial=key, attempt=attempt, step=step, path=str(path), bytes=size)
            )
            self._retention.committed(record)

    def may_commit(self, key: str, attempt: int) -> None:
        """Asked right before a checkpoint takes its name.

        Raises:
            StaleAttemptError: a newer attempt at this trial has begun, or it has ended.
        """
        with self._guard:
            self._check(key, attempt)

    def end(self, ended: events.End, error: str = "") -> None:
        """A trial has ended; its reason is one line, and `error`, a traceback, goes to error.txt.

        Raises:
            StaleAttemptError: a newer attempt at this trial has begun.
        """
        with self._guard:
            self._check(ended.trial, ended.attempt)
            self._keep_error(ended.trial, error)
            ended = replace(ended, reason=scrub(ended.reason))
            self._end(ended)
            if ended.kind == "bug":
                self._stop_if_all_fail_alike(ended.reason)

    def pause(
        self,
        key: str,
        attempt: int,
        reason: str = "",
        totals: Mapping[str, float] | None = None,
    ) -> None:
        """A worker leaves a trial unfinished: it waits for the next, from its last checkpoint.

        While the sweep goes on that is none of the trial's doing, and costs none of its retries:
        the worker's node is about to go, or has no room for one more trial. A trial that a user
        has stopped ends here.
        """
        with self._guard:
            record = self._check(key, attempt)
            self._handed.discard(key)
            if self.end_if_decided(record, totals or {}):
                return
            if self._stop is None:
                if self.history.is_idle:
                    reason = reason or f"paused by {self.history.paused_by}"
                reason = reason or "its node is about to go"
                self._write(events.Retry(trial=key, attempt=attempt, kind="moved", reason=reason))

    def release(self, key: str, reason: str, error: str = "", *, full_disk: bool = False) -> bool:
        """A worker is gone for good; True where the trial will be tried again.

        With `full_disk`, where its retries are spent, the sweep stops and the trial waits: every
        other trial would fail of the same, and for good.
        """
        with self._guard:
            record = self.history.trials[key]
            self._handed.discard(key)
            if record.state.is_finished():
                return False
            if full_disk and record.retries >= self._spec.sweep.max_retries:
                self._broken = Stop(cause=Cause.DISK_FULL, details=(reason,))
                return False
            try:
                self._keep_error(key, error)
                return self._retry(record, scrub(reason))
            except LedgerWriteError:
                return False

    def out_of_memory(self, key: str, attempt: int, reason: str, error: str = "") -> bool:
        """A trial ran out of memory; True where it is tried again with half the micro-batch.

        Once, from its last checkpoint; it costs none of its retries.
        """
        with self._guard:
            record = self._check(key, attempt)
            self._keep_error(key, error)
            whole = read_train(self.trial(key).config).halved(record.halvings)
            half = whole.halved() if whole is not None else None
            assert whole is not None
            size = f"micro-batch {whole.batch_size} x {whole.accumulation_steps}"
            if record.halvings or half is None:
                why = "at half the micro-batch too" if record.halvings else "it cannot be halved"
                reason = f"{scrub(reason)} ({size}: {why})"
                self._finish(record, State.FAILED, "oom", reason)
                return False
            self._handed.discard(key)
            note = f"out of memory at {size}, goes on with "
            note += f"{half.batch_size} x {half.accumulation_steps}"
            self._write(events.Retry(trial=key, attempt=attempt, kind="oom", reason=note))
            return True

    def cost_measured(self, key: str, device: str, parts: Parts | None, reason: str = "") -> None:
        """Take what training a trial's config alone came to, or why that cannot be measured."""
        with self._guard:
            micro, update = settings(self.history.trials[key])
            self._write(
                events.Cost(
                    trial=key,
                    device=device,
                    micro=micro,
                    update=update,
                    parts=asdict(parts) if parts else None,
                    reason=None if parts else scrub(reason),
                )
            )

    def _write(self, event: Event) -> None:
        """Append an event to the ledger, then fold it into the history.

        Raises:
            LedgerWriteError: it cannot be written; from then on nothing is.
        """
        if self._broken is not None:
            raise LedgerWriteError(str(self._broken))
        try:
            written = self._ledger.append(event)
        except OSError as error:
            details = str(self._folder.ledger), str(error.strerror)
            self._broken = Stop(cause=Cause.LEDGER_UNWRITABLE, details=details)
            raise LedgerWriteError(str(self._broken)) from error
        self.history.apply(written)

    def _check(self, key: str, attempt: int) -> Record:
        record = self.history.trials[key]
        if attempt != record.attempt or record.state is not State.RUNNING:
            raise StaleAttemptError(
                f"attempt {attempt} at trial {key} is over; {record.attempt} is the latest"
            )
        return record

    def _report(self, record: Record, report: Report) -> None:
        self._keep_rows(record, report)
        self._write_report(record, report, self._suggestions.tell_report(record, report))

    def _keep_rows(self, record: Record, report: Report) -> None:
        """Keep the rows' losses of the best report so far; before the ledger tells of it."""
        rows, best = report.row_losses, self.history.value(record)
        value = report.metrics[self.history.metric]
        if rows is None or (best is not None and self.history.sign * (value - best) >= 0):
            return
        with suppress(OSError):  # a full disk shows at the next checkpoint
            row_losses.keep(self._folder, record.key, rows)

    def _keep_rows_again(self, record: Record, report: Report) -> None:
        """Keep what a folder lacks that came back from a store; the ledger may be ahead of it."""
        best = record.best(self.history.metric, self.history.direction)
        is_best = best is not None and best.index == report.index
        if not is_best or report.row_losses is None:
            return
        if row_losses.of_trial(self._folder, self.history, record) is None:
            with suppress(OSError):
                row_losses.keep(self._folder, record.key, report.row_losses)

    def _write_report(self, record: Record, report: Report, verdict: Verdict) -> None:
        self._write(
            events.Report(
                trial=record.key,
                attempt=record.attempt,
                **report.to_json(),
                decision=Decision.PRUNE if verdict.prune else Decision.CONTINUE,
                noted=verdict.noted,
            )
        )

    def _retry(self, record: Record, reason: str) -> bool:
        """Count a failure of the infrastructure; False where the trial ends instead.

        It ends as pruned or stopped if that was decided already, as failed if its retries are
        spent.
        """
        if self.end_if_decided(record):
            return False
        if record.retries >= self._spec.sweep.max_retries:
            reason = f"{reason}; {record.retries} retries spent (sweep.max_retries)"
            self._finish(record, State.FAILED, "infrastructure", reason)
            return False
        self._write(events.Retry(trial=record.key, attempt=record.attempt, reason=reason))
        return True

    def _decision(self, record: Record) -> Decision:
        if record.pruned_at is not None:
            return Decision.PRUNE
        leaves = self.stop or record.stopped_by or self.history.is_idle
        return Decision.STOP if leaves else Decision.CONTINUE

    def end_if_decided(self, record: Record, totals: Mapping[str, float] | None = None) -> bool:
        """End a trial that was pruned or stopped and whose worker has no more to say."""
        if record.pruned_at is not None:
            self._finish(record, State.PRUNED)
            return True
        if record.stopped_by:
            self._end(
                events.End(
                    trial=record.key,
                    attempt=record.attempt,
                    state=State.STOPPED,
                    reason=f"by {record.stopped_by}",
                    totals=totals or {},
                )
            )
            return True
        return False

    def _finish(self, record: Record, state: State, kind: str = "", reason: str = "") -> None:
        """End a trial of which its worker has no more to say."""
        key, attempt = record.key, record.attempt
        self._end(events.End(trial=key, attempt=attempt, state=state, kind=kind, reason=reason))

    def _end(self, ended: events.End) -> None:
        self._write(ended)
        record = self.history.trials[ended.trial]
        self._handed.discard(record.key)
        self._configs.pop(record.key, None)
        if ended.kind == "bug":
            self._same_errors[ended.reason] += 1
        self._suggestions.tell_result(record.config)
        self._retention.ended(record)

    def _stop_if_all_fail_alike(self, reason: str) -> None:
        alike = self._same_errors[reason]
        limit = self._spec.sweep.max_same_error
        if alike >= limit and not self.history.count(State.COMPLETED, State.PRUNED, State.STOPPED):
            self.interrupt(Stop(cause=Cause.SAME_ERROR, details=(str(alike),)))

    def _keep_error(self, key: str, error: str) -> None:
        """A traceback goes to the trial's error.txt, if it can be written."""
        if error:
            with suppress(OSError):
                write_text(self._folder.error(key), scrub(error))
