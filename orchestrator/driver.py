"""Runs a sweep from start to end: `python -m orchestrator`."""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.best.model_card import is_ready, proof_of, train_again, write_best
from orchestrator.cluster.nodes import CapacityWatch, require_nodes
from orchestrator.cluster.placement import Placement, live_slots, place
from orchestrator.cluster.ray_cluster import (
    begin_ray,
    own_ray_is_ending,
    own_ray_is_gone,
    own_session,
    start_ray,
    stop_ray,
)
from orchestrator.cluster.signals import Heartbeat, Signals
from orchestrator.config.command import Command, checked
from orchestrator.config.device_hours import expected_lines
from orchestrator.config.engine_choice import EngineChoice, choose, most_workers
from orchestrator.config.preflight import Findings, step_line
from orchestrator.config.prepare import Ready, prepare_training
from orchestrator.config.run_folder_claim import (
    claim_folder,
    refuse_strangers,
    remove_claim,
    write_spec,
)
from orchestrator.coordinator.assignment import assignment_rules
from orchestrator.coordinator.handle import send, start_coordinator
from orchestrator.coordinator.job import SweepResult
from orchestrator.plan import plan_lines
from orchestrator.report.write import has_plotly, report_line, write_report
from orchestrator.storage.folder_token import write_token
from orchestrator.storage.run_dir import folder_of, held, places_of, unanswered
from orchestrator.storage.sync import Copies
from orchestrator.terminal.format import show
from orchestrator.terminal.live_table import Display, paused_line
from orchestrator.terminal.progress import read_progress
from orchestrator.terminal.summary import summary
from orchestrator.tracking.tracker import Job, TrackerProcess
from orchestrator.workers.pool import Workers
from sweeps.config.spec import Spec
from sweeps.coordinator.changes import with_changes
from sweeps.coordinator.coordinator import Coordinator
from sweeps.coordinator.other_folders import Found, found_elsewhere
from sweeps.coordinator.steering import answer
from sweeps.core.commands import command_line
from sweeps.core.ending import Cause, Stop, exit_code
from sweeps.core.errors import SweepError, first_line
from sweeps.core.trial import State
from sweeps.ledger import events
from sweeps.ledger.history import History, read_history
from sweeps.ledger.ledger import Tail
from sweeps.results.cost import Costs
from sweeps.results.importance import effects, importance
from sweeps.results.ranking import best
from sweeps.search.optuna_export import completed_study
from sweeps.space.space import Space
from sweeps.storage.durable_writes import write_text
from sweeps.storage.lock import Lock
from sweeps.storage.requests import unanswered_requests
from sweeps.storage.run_folder import RunFolder, folder_text
from trainers.trial.task import DryRun

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor

_TICK_S = 0.2
_TRACKING_END_S = 15.0
_COPIES_END_S = 100.0  # under the two minutes that a spot instance or a batch system leaves
_SILENCE_S = 20.0  # after a signal: a process that is silent for so long was ended by it, too
_RAY_SILENCE_S = 45.0  # Ray itself aborts the process when its head is gone for 60


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a start of a sweep ended.

    Attributes:
        stop: why it stopped before its end; None if it did not.
        proof_error: why the best checkpoint could not be made ready; else empty.
    """

    folder: RunFolder
    exit_code: int
    stop: Stop | None = None
    proof_error: str = ""


def run(argv: Sequence[str]) -> int:
    """Run or go on with a sweep; returns the exit code.

    Raises:
        SweepError: refused before anything was trained.
    """
    return run_under(Signals(), argv).exit_code


def run_under(signals: Signals, argv: Sequence[str]) -> Ended:
    """Run or go on with a sweep, which `signals` stop; raises as `run` does."""
    command = Command.read(argv)
    with signals, ExitStack() as refused:
        refused.callback(stop_ray)
        _begin_own_ray(command)
        spec, space = checked(command)
        folder, store = places_of(spec)
        refuse_strangers(folder)
        lock = Lock(folder.lock)
        try:
            with ExitStack() as stack:
                lease = stack.enter_context(held(store, folder, spec)) if store else None
                grown = claim_folder(folder, spec)
                copies = Copies(store, folder, spec.sweep.kept, lease) if store and lease else None
                driver = Driver(spec, space, folder, argv, signals, copies, grown)
                refused.pop_all()  # from here on Ray ends with the driver
                return driver.run()
        finally:
            remove_claim(folder)
            lock.release()


def _begin_own_ray(command: Command) -> None:
    """Let Ray start while the libraries are imported and asked, unless the sweep may have ended."""
    spec = command.spec
    if spec is None or command.problems or spec.cluster.kind != "local":
        return
    if not proof_of(folder_of(spec)):
        begin_ray(spec.cluster)


class Driver:
    """One start of a sweep: Ray, workers, tracking and the live table, until all have ended."""

    def __init__(
        self,
        spec: Spec,
        space: Space,
        folder: RunFolder,
        argv: Sequence[str],
        signals: Signals,
        copies: Copies | None = None,
        grown: Sequence[str] = (),
    ) -> None:
        self._spec = spec
        self._space = space
        self._folder = folder
        self._argv = argv
        # What can be shown before the ledger begins, while workers start.
        self._history = History(
            name=spec.name,
            spec=spec.public,
            metric=spec.sweep.metric,
            direction=spec.sweep.direction,
        )
        self._tail = Tail(folder.ledger)
        self._signals = signals
        self._copies = copies
        self._display = Display(folder, spec.public)
        self._elsewhere = Found()  # what other run folders give
        self._grown = grown  # lines on what is more than it was
        self._attempts = 0  # before this one
        self._asked: dict[str, Future[None]] = {}  # requests that the Coordinator has in hand
        self._tokens = 0.0  # of a trial
        self._is_broken = False
        self._leaving = threading.RLock()
        self._has_left = False
        self._coordinator: CoordinatorActor  # from `_get_ready` on
        self._tracker: TrackerProcess  # from the first worker on

    def run(self) -> Ended:
        past = read_history(self._folder.ledger) if self._folder.ledger.exists() else History()
        self._attempts = past.attempts
        self._spec = with_changes(self._spec, past)
        try:
            is_over = bool(past.spec) and self._is_over()
            if past.spec:  # what was asked for in the meantime is in the ledger now
                past = read_history(self._folder.ledger)
                self._spec = with_changes(self._spec, past)
            if is_over:
                self._history = past
                spent = ", and its trials are spent: more sweep.trials try what is new"
                grown = [f"{line}{spent}" for line in self._grown]
                weights = importance(completed_study(past)) or {}
                self._show(weights, ["This sweep had ended already.", *grown])
                self._tell_failure(None)
                return self._ended()
            self._display.say(*plan_lines(self._spec, self._space, self._folder), *self._grown)
            return self._sweep(past, *self._get_ready(past))
        finally:
            self._display.close()
            self._signals.stop_watching()
            stop_ray(keep_logs=self._is_broken)

    def _get_ready(self, past: History) -> tuple[Ready, Placement, EngineChoice]:
        """Prepare the data, start Ray and the Coordinator."""
        findings = Findings()
        with findings.part():
            ready = prepare_training(self._spec, self._space, self._folder, past, self._argv)
            self._elsewhere = found_elsewhere(self._spec, self._space, past, ready.facts)
        most = most_workers(self._spec, self._space)
        with findings.part():
            start_ray(self._spec.cluster)
            self._signals.take_over()
            placement = place(self._spec.engine, self._spec.cluster, most)
        findings.refuse()  # what the data and what the machine lacks, together
        self._tokens = ready.tokens
        engine = choose(self._spec, self._space, on_gpu=bool(placement.gpus))
        rules = assignment_rules(
            self._spec,
            self._space,
            workers=min(placement.slots, most),
            lanes=engine.lanes,
            memory_mb=math.inf if placement.gpus else placement.memory_mb,
        )
        self._coordinator = start_coordinator(self._spec, self._space, self._folder.root, rules)
        self._display.say(*ready.lines, *self._elsewhere.lines)
        self._signals.collect(self._leave_now, own_ray_is_gone)
        return ready, placement, engine

    def _is_over(self) -> bool:
        """Take what was asked for in the meantime; whether nothing is left to do: all trials have
        ended, best/ is made, costs are measured."""
        coordinator = Coordinator(self._spec, self._space, self._folder)
        coordinator.history.stop_running()
        try:
            for request in unanswered_requests(self._folder):
                said = answer(coordinator, self._folder, request).said
                self._display.say(f"asked while no driver ran: {said}.")
            history = coordinator.history
            is_finished = coordinator.is_finished and is_ready(self._folder, best(history))
            return is_finished and Costs(history).next_to_measure() is None
        finally:
            coordinator.close()

    def _sweep(
        self, past: History, ready: Ready, placement: Placement, engine: EngineChoice
    ) -> Ended:
        import ray

        try:
            return self._watch(past, ready, placement, engine)
        except ray.exceptions.RayActorError as error:
            raise self._ray_failed("The Coordinator's process died", error) from None
        except ray.exceptions.RayTaskError as error:  # its message, without Ray's traceback
            if isinstance(error.cause, SweepError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise self._ray_failed("Ray failed", error) from None

    def _ray_failed(self, what: str, error: Exception) -> SweepError:
        if self._signals.seen:  # the signal went to Ray's processes, too
            self._leave_now()
        return self._broken(f"{what}: {first_line(error).rstrip('.')}")

    def _broken(self, why: str) -> SweepError:
        """The error for a Ray that failed: keeps Ray's logs and names them."""
        self._is_broken = True
        logs = own_session()
        where = f" Ray's own logs are in {logs}." if logs is not None else ""
        return SweepError(f"{why}.{where} {self._go_on()}")

    def _watch(
        self, past: History, ready: Ready, placement: Placement, engine: EngineChoice
    ) -> Ended:
        from orchestrator.workers.worker_config import WorkerConfig

        device = "cuda" if placement.gpus else "cpu"
        strategy = self._spec.strategy
        kernels = self._spec.engine.kernels
        known = ready.known_dry_run(
            past, device, packed=engine.lanes > 1, strategy=strategy, kernels=kernels
        )
        self._begin(ready, *known)
        job = Job(
            tracking=self._spec.tracking,
            root=self._folder.root,
            sweep_name=self._folder.root.name,
            public=self._spec.public,
        )
        self._tracker = TrackerProcess(job)
        self._display.say(f"{engine.why}; {placement.where}")
        folder_token = self._folder_token(on_gpus=bool(placement.gpus))
        if self._copies is not None:
            self._begin_copies(self._copies)
        most = most_workers(self._spec, self._space)
        slots = live_slots(self._spec.engine, placement.gpus, most)
        worker_config = WorkerConfig(
            root=self._folder.root,
            examples=ready.examples,
            cpus=placement.cpus,
            gpus=placement.gpus,
            lanes=engine.lanes,
            fits_unknown=bool(placement.gpus) and self._spec.engine.lanes == "auto",
            kernels=kernels,
            devices=placement.devices,
            strategy=strategy,
            folder_token=folder_token,
            storage=self._copies.store.place if self._copies is not None else "",
            optimizers=tuple(self._space.values_by_key().get("trainer.optim", ())),
        )
        scratch = self._folder.scratch
        shutil.rmtree(scratch, ignore_errors=True)
        tune = Workers(self._coordinator, worker_config, placement, slots, scratch)
        began = time.monotonic()
        tune.start()
        try:
            with (
                Heartbeat(lambda: send(self._coordinator.ping)) as heartbeat,
                CapacityWatch(slots) as capacity,
            ):
                self._loop(tune, heartbeat, began, capacity)
                if tune.error is not None:
                    raise self._tune_failed(tune.error)
                result = self._result(heartbeat)
        except SystemExit:  # the sweep is left at once, and the program goes on
            tune.leave()
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self._finish(result)

    def _tune_failed(self, error: Exception) -> SweepError:
        if self._signals.seen:  # Tune's processes took the signal, too
            self._leave_now()
        with suppress(TimeoutError):
            # Tune stops if the Coordinator is dead, and says so in a long traceback.
            send(self._coordinator.ping).result(timeout=_SILENCE_S)
        words = str(error).strip().splitlines() or [type(error).__name__]
        return self._broken(f"Ray Tune stopped: {words[-1]}")

    def _result(self, heartbeat: Heartbeat) -> SweepResult:
        """The Coordinator's last answer. It answers no ping meanwhile, but Ray does."""
        answer = send(self._coordinator.finish)
        while wait([answer], timeout=_TICK_S).not_done:
            self._require_ray(heartbeat)
        return answer.result()

    def _require_ray(self, heartbeat: Heartbeat) -> None:
        silent_s = heartbeat.ray_silent_s()
        if self._signals.seen and silent_s > _SILENCE_S:
            self._leave_now()
        if silent_s > _RAY_SILENCE_S:
            raise self._broken("Ray does not answer any more")

    def _folder_token(self, *, on_gpus: bool) -> str:
        """Check which nodes of a cluster can take part; the token of the run folder for them."""
        if self._spec.cluster.kind == "local":
            return ""
        folder_token = write_token(self._folder.root)
        has_store = self._copies is not None
        unfit = require_nodes(self._folder.root, folder_token, has_store=has_store, on_gpus=on_gpus)
        self._display.say(*unfit)
        return folder_token

    def _begin_copies(self, copies: Copies) -> None:
        try:
            copies.begin()
        except OSError as error:
            raise unanswered(copies.store, error) from None
        self._display.say(f"copies: {copies.store}")

    def _begin(self, ready: Ready, identity: str, known: DryRun | None) -> None:
        """Let the Coordinator hand out trials."""
        facts = replace(ready.facts, rehearsal={"identity": identity})
        to_try = None if known else ready.largest
        self._coordinator.begin(facts, known, to_try, self._elsewhere)
        found = proof_of(self._folder)
        if found:
            self._coordinator.already_proven(found["trial"], found["step"], found["proof"])

    # ------------------------------------------------------------------ while it runs

    def _loop(
        self, workers: Workers, heartbeat: Heartbeat, began: float, capacity: CapacityWatch
    ) -> None:
        interrupted = is_spent = False
        while workers.is_alive():
            workers.join(_TICK_S)
            self._follow()
            silent_s = heartbeat.silent_s()
            if self._signals.seen and not interrupted:
                interrupted = True
                self._interrupt(self._signals.seen[0].name)
            if interrupted and (silent_s > _SILENCE_S or self._only_tune_waits()):
                self._leave_now()
            self._require_ray(heartbeat)
            if line := capacity.news() or (not capacity.seconds and workers.news()):
                self._display.say(line)
            if capacity.is_over:
                send(self._coordinator.interrupt, capacity.STOP, False)
                break  # a worker that waits for resources would keep Tune alive for ever
            if interrupted and capacity.seconds > _SILENCE_S:
                break
            cause = None if is_spent else self._spent(time.monotonic() - began)
            if cause is not None:
                is_spent = True
                self._display.say(f"{str(Stop(cause=cause)).capitalize()}: trials commit and wait.")
                send(self._coordinator.interrupt, Stop(cause=cause), True)
        self._follow()

    def _only_tune_waits(self) -> bool:
        """Whether all trials have committed, under a Ray that a signal to the whole process group
        is ending. Once it has ended, it ends this process, with code 1."""
        if not own_ray_is_ending():
            return False
        answer = send(self._coordinator.is_at_rest)
        return not wait([answer], timeout=_TICK_S).not_done and answer.result()

    def _spent(self, seconds: float) -> Cause | None:
        """The budget that is spent after so many seconds of this start; users may change them."""
        sweep = self._history.spec["sweep"]
        budget, hours = sweep.get("time_budget_s"), sweep.get("device_hours")
        if budget is not None and seconds > budget:
            return Cause.TIME_BUDGET
        if hours is None or self._history.attempts == self._attempts:
            return None  # until this start is in the ledger, trials of the one before seem to run
        is_spent = self._history.device_hours(time.time()) >= hours
        return Cause.DEVICE_HOURS if is_spent else None

    def _follow(self) -> None:
        """Hand over what users ask for; show news and the new events of the ledger."""
        self._asked = {name: sent for name, sent in self._asked.items() if not sent.done()}
        for request in unanswered_requests(self._folder):
            if request.name not in self._asked:
                self._asked[request.name] = send(self._coordinator.take, request)
        for news in (self._tracker.news, self._copies.news if self._copies else str):
            if line := news():
                self._display.say(line)
        if self._copies is not None and self._copies.lost is not None:
            raise self._copies.lost
        for event in self._tail.events():
            self._history.apply(event)
            if isinstance(event, events.Attempt) and self._history.attempts > self._attempts:
                if self._grown:  # the ledger says so by now
                    write_spec(self._folder, self._spec)
                self._tell_step(event.rehearsal or {})
                if self._history.paused_by:
                    self._display.say(paused_line(self._history, self._folder))
            if isinstance(event, events.Request) and self._history.attempts > self._attempts:
                self._display.say(f"{event.verb}, asked by {event.by}: {event.said}.")
        self._display.update(self._history, read_progress(self._folder, self._history))

    def _tell_step(self, told: Mapping[str, Any]) -> None:
        """Say what the dry run measured, now or at an earlier start; nothing if none was done."""
        if found := DryRun.recorded(told):
            expected = expected_lines(self._spec, self._space, self._tokens, found)
            self._display.say(step_line(found, told.get("lanes")), *expected)

    def _interrupt(self, name: str) -> None:
        self._display.say(f"{name}: trials commit a checkpoint and stop; once more leaves at once.")
        send(self._coordinator.interrupt, Stop(cause=Cause.SIGNAL, details=(name,)), False)

    def _leave_now(self) -> NoReturn:
        """Leave at once; a second thread that comes waits for the first to do it."""
        with self._leaving:
            self._signals.stop_watching()
            self._display.close()
            if not self._has_left:
                print(self._go_on(), flush=True)
            self._has_left = True
            if self._signals.ends_process:  # else once the heartbeat has ended; see `run`
                stop_ray(leaves=True)
            self._signals.leave()

    # ------------------------------------------------------------------ the end

    def _finish(self, result: SweepResult) -> Ended:
        self._display.close()
        if result.refusal:
            self._refuse(result.refusal, result.traceback)
        found = best(self._history)
        if self._copies is not None:
            self._copies.take_draft()
        if found is not None and result.proof is not None:
            write_best(self._folder, self._spec, self._history, found, result.proof)
        proof_error = result.proof_error
        if result.proof is not None and not is_ready(self._folder, found):
            proof_error = "its files did not arrive from the worker that put them together"
        notes = list(result.notes)
        stop = result.stop
        if stop is not None:
            notes.append(f"Stopped before the end: {stop}.")
        lines = [*self._report(), *self._tracker.finish(_TRACKING_END_S)]
        if self._copies is not None:
            lines = [*lines, *self._copies.finish(_COPIES_END_S)]
        self._show(result.importance or {}, [*notes, *lines], proof_error)
        self._tell_failure(stop)
        for_good = (Cause.SAME_ERROR, Cause.FINISHED)
        can_go_on = stop is not None and stop.cause not in for_good
        if self._signals.seen or can_go_on or proof_error:
            self._display.say(self._go_on())
        return self._ended(stop, proof_error)

    def _report(self) -> list[str]:
        """Write report.html, if plotly is installed and no signal waits; a line that names it."""
        if not has_plotly() or self._signals.seen:
            return []
        try:
            write_report(self._folder, holder=None, again=self._again())
            return [report_line(self._folder)]
        except Exception as error:  # the sweep has ended well all the same
            return [f"{folder_text(self._folder.report)} was not written: {first_line(error)}"]

    def _refuse(self, why: str, traceback: str) -> NoReturn:
        """End the sweep, since no step could be trained."""
        self._tracker.finish(_TRACKING_END_S)
        where = ""
        if traceback:
            write_text(self._folder.refusal, traceback)
            where = f" The traceback is in {self._folder.refusal}."
        raise SweepError(f"{why.rstrip('.')}. No trial was started.{where}")

    def _show(
        self, importance: Mapping[str, float], notes: Sequence[str], proof_error: str = ""
    ) -> None:
        found = best(self._history)
        proof = proof_of(self._folder) if is_ready(self._folder, found) else None
        show(
            self._display.console,
            summary(
                self._history,
                self._folder,
                effects(self._history),
                importance or None,
                found,
                proof=(proof or {}).get("proof"),
                notes=notes,
                again=self._again(),
                proof_error=proof_error,
            ),
        )

    def _again(self) -> str | None:
        """The command that trains the winner again."""
        found = best(self._history)
        return None if found is None else train_again(self._spec, found)

    def _ended(self, stop: Stop | None = None, proof_error: str = "") -> Ended:
        code = exit_code(
            completed=self._history.count(State.COMPLETED),
            failed=self._history.count(State.FAILED),
            stop=stop,
            signal_code=self._signals.exit_code if self._signals.seen else 0,
            is_proven=not proof_error,
        )
        return Ended(folder=self._folder, exit_code=code, stop=stop, proof_error=proof_error)

    def _tell_failure(self, stop: Stop | None) -> None:
        """Print a traceback if trials failed alike and nothing else ended the sweep."""
        if stop is None or not stop.cause.is_failure:
            is_told = not self._signals.seen and not self._history.count(State.COMPLETED)
        else:
            is_told = stop.cause is Cause.SAME_ERROR
        if not is_told:
            return
        for record in self._history.trials.values():
            if record.state is State.FAILED and self._folder.error(record.key).exists():
                print(self._folder.error(record.key).read_text(encoding="utf-8"), file=sys.stderr)
                return

    def _go_on(self) -> str:
        return f"Nothing is lost; go on with the same command:\n  {command_line(self._argv)}"
