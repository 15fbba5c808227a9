"""What the ledger's events add up to: the trials, their reports, and the best of them.

`History` is the one fold over the ledger. The Coordinator keeps it while a sweep runs; `status`,
the live table and tracking build their own from the file.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeps.config.spec import Direction
from sweeps.core.trial import Decision, Report, State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.ledger import read_ledger

# Of the sweep section: a sweep that a user has finished goes on if one of them is another.
_GROWING = ("space", "trials", "repeats", "finalists", "first", "reuse", "learn_from")


def sign_of(direction: Direction) -> int:
    """What a value is multiplied by so that lower is better."""
    return 1 if direction == "minimize" else -1


@dataclass(kw_only=True, slots=True)
class Record:
    """One trial, as its events tell it."""

    key: str
    number: int
    config: int  # the Optuna trial that suggested it; the repeats of a config share it
    repeat: int
    seed: int
    values: Mapping[str, Any]
    picked: Mapping[str, Any] = field(default_factory=dict)  # as Optuna names the choices
    state: State = State.WAITING
    attempt: int = 0
    retries: int = 0  # of the infrastructure; counted against sweep.max_retries
    halvings: int = 0  # of the micro-batch, after running out of memory
    memory_note: str = ""  # what was halved, and from what
    worker: str = ""
    device: str = ""
    started: float | None = None  # seconds since the epoch, this attempt
    ended: float | None = None
    reports: dict[int, Report] = field(default_factory=dict)
    pruned_at: int | None = None
    origin: str = ""  # added or clone, if a user asked for it
    parent: str = ""  # key of the trial that a clone has its config from
    warm: Mapping[str, Any] | None = None  # trial and step of the weights that it began with
    is_resumed: bool = False  # by a user, after its end: no pruner ends it again
    stopped_by: str = ""  # the user who did; it ends as soon as it has committed
    checkpoints: list[int] = field(default_factory=list)  # steps
    kind: str = ""  # of failure: diverged, oom, infrastructure, bug
    reason: str = ""
    totals: dict[str, float] = field(default_factory=dict)  # at the end: seconds, tokens, ...
    folder: str = ""  # another run folder that it was taken over from
    is_lane: bool = False  # has trained in passes that it shared with other trials
    has_neighbours: bool = False  # another worker has trained on the same CPUs or GPU meanwhile
    cost: Mapping[str, float] = field(default_factory=dict)  # alone, measured in another run folder
    tells_engine: bool = False  # False: of a version that did not note how it was trained

    @property
    def is_alone(self) -> bool:
        """Whether the trial has had its device to itself: then what it took is its cost."""
        return not (self.is_lane or self.has_neighbours)

    @property
    def latest(self) -> Report | None:
        return self.reports[max(self.reports)] if self.reports else None

    def best(self, metric: str, direction: Direction) -> Report | None:
        """The report with the best `metric`; the earlier one where two are equal."""
        return min(
            (self.reports[index] for index in sorted(self.reports)),
            key=lambda report: sign_of(direction) * report.metrics[metric],
            default=None,
        )


@dataclass(kw_only=True)
class History:
    """All trials of a sweep by key, in the order in which they were asked for."""

    metric: str = "eval_loss"
    direction: Direction = "minimize"
    name: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)  # the public config
    trials: dict[str, Record] = field(default_factory=dict)
    base: Report | None = None  # report 0
    attempts: int = 0
    driver: events.Attempt = field(default_factory=events.Attempt)  # the last one
    costs: list[events.Cost] = field(default_factory=list)
    interrupt: events.Interrupt | None = None  # of the last start
    finalists: tuple[int, ...] = ()  # configs that get all seeds, in the order of their choice
    chosen: tuple[int, int] | None = None  # of how many configs the last, and at most how many
    learnt: tuple[str, ...] = ()  # run folders whose best configs are tried first
    is_closed: bool = False  # a user has ended the sweep: nothing more is tried
    paused_by: str = ""  # the user; empty if trials begin as usual
    is_idle: bool = False  # while paused: running trials leave their devices, too
    changes: dict[str, Any] = field(default_factory=dict)  # keys that users have set
    typed: dict[str, Any] = field(default_factory=dict)  # what the command says of those keys
    added: set[int] = field(default_factory=set)  # configs that users asked for
    answered: dict[str, str] = field(default_factory=dict)  # requests done -> the answers
    began: float | None = None
    latest: float | None = None  # time of the last event
    pack_s: float = 0.0  # seconds for which packs trained, of all workers
    _worked: float | None = None  # time of the last event that shows that a driver ran
    _device_s: float = 0.0  # of workers that have no trial any more
    _busy: dict[str, tuple[float, set[str]]] = field(default_factory=dict, repr=False)
    _configs: dict[int, dict[str, Record]] = field(default_factory=dict, repr=False, compare=False)
    _values: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    _unfinished: dict[str, Record] = field(default_factory=dict, repr=False, compare=False)
    _counts: Counter[State] = field(default_factory=Counter, repr=False, compare=False)

    @property
    def sign(self) -> int:
        """What a value is multiplied by so that lower is better."""
        return sign_of(self.direction)

    def apply(self, event: Event) -> None:
        """Fold one ledger event in."""
        if isinstance(event, events.Attempt):
            for worker, (_, keys) in list(self._busy.items()):
                # The last word of the driver before was its end.
                self._rest(worker, any(self.trials[key].is_lane for key in keys))
        self.latest = event.time
        if _shows_work(event):
            self._worked = event.time
        match event:
            case events.Sweep():
                self.name = event.name
                self.spec = event.spec
                self.metric = self.spec["sweep"]["metric"]
                self.direction = self.spec["sweep"]["direction"]
                self.began = event.time
            case events.Attempt():
                self.attempts += 1
                self.is_closed = self.is_closed and not self.asks_for_more(event.spec)
                self.driver = event
                self.interrupt = None
                self.spec = event.spec or self.spec  # keys that may change on the same folder
                self._drop_changes()
                self.stop_running()  # their workers died with the driver before
            case events.Ask():
                self._note_user(self._add(event), event)
            case events.Report(index=0):
                self.base = event.report
            case events.TrialEvent():
                self._apply_to(self.trials[event.trial], event)
            case events.Known():
                self._take_over(event)
            case events.Learnt():
                self.learnt = (*self.learnt, event.folder)
            case events.Finalists():
                self.finalists = tuple(dict.fromkeys((*self.finalists, *event.configs)))
                self.chosen = event.among, event.most
            case events.Removed():
                for key in event.trials:
                    self.trials[key].checkpoints = []
            case events.Interrupt():
                self.interrupt = event
            case events.Cost():
                self.costs.append(event)
            case events.Request():
                self._carry_out(event)

    def _drop_changes(self) -> None:
        """Forget what users have set, of the keys that this start's command sets otherwise."""
        for key, value in list(self.changes.items()):
            section, _, name = key.partition(".")
            if (self.spec.get(section) or {}).get(name) != value:
                del self.changes[key], self.typed[key]

    def asks_for_more(self, spec: Mapping[str, Any] | None) -> bool:
        """Whether a config has another space, or other numbers of trials, than the last start."""
        before, now = self.spec.get("sweep", {}), (spec or self.spec).get("sweep", {})
        return any((before.get(name) or None) != (now.get(name) or None) for name in _GROWING)

    def _carry_out(self, event: events.Request) -> None:
        self.answered[event.request] = event.said
        values = event.values or {}
        match event.verb:
            case "stop" | "finish":
                self.is_closed = self.is_closed or event.verb == "finish"
                for key in event.trials or ():
                    self.trials[key].stopped_by = event.by
            case "pause":
                self.paused_by, self.is_idle = event.by, bool(values.get("now"))
            case "resume" if event.trials:
                for old, new in values.get("configs", {}).items():
                    self._renumber(int(old), new)
                for key in event.trials:
                    self._resume(self.trials[key])
            case "resume":
                self.paused_by, self.is_idle = "", False
            case "set":
                self.typed = {**(event.typed or {}), **self.typed}
                self.changes |= values
                for key, value in values.items():
                    section, _, name = key.partition(".")
                    own = {**(self.spec.get(section) or {}), name: value}
                    self.spec = {**self.spec, section: own}

    def _take_over(self, event: events.Known) -> None:
        record = self._add(event)
        record.folder = event.folder
        record.reports = {int(each["index"]): Report.from_json(each) for each in event.reports}
        if event.checkpoint is not None:
            record.checkpoints = [event.checkpoint]
        record.started = event.time
        record.tells_engine = event.lane is not None
        record.is_lane, record.has_neighbours = bool(event.lane), bool(event.neighbours)
        record.cost = event.cost or {}
        self._end(record, event)

    def _add(self, event: events.Ask | events.Known) -> Record:
        record = Record(
            key=event.trial,
            number=event.number,
            config=event.config,
            repeat=event.repeat,
            seed=event.seed,
            values=event.params,
            picked=event.choices,
        )
        self.trials[record.key] = record
        self._configs.setdefault(record.config, {})[record.key] = record
        self._unfinished[record.key] = record
        self._counts[record.state] += 1
        return record

    def _note_user(self, record: Record, event: events.Ask) -> None:
        """Note what a user asked for, if one asked for this trial."""
        record.origin, record.parent = event.origin or "", event.parent or ""
        if event.warm is not None:
            record.warm = {"trial": record.parent, "step": event.warm}
        if event.origin:
            self.added.add(event.config)
        if event.request:
            self.answered[event.request] = f"trial {event.number} is in the sweep already"

    def _renumber(self, old: int, new: int) -> None:
        """A further Optuna trial stands for a config from here on."""
        self._configs[new] = self._configs.pop(old)
        for record in self._configs[new].values():
            record.config = new
        self.finalists = tuple(new if each == old else each for each in self.finalists)
        if old in self.added:
            self.added = self.added - {old} | {new}

    def _resume(self, record: Record) -> None:
        """A trial that has ended goes on."""
        self._move(record, State.WAITING)
        self._unfinished[record.key] = record
        record.is_resumed = True
        record.pruned_at = record.ended = None
        record.stopped_by = record.kind = record.reason = ""
        record.retries = 0
        record.totals = {}

    def held_steps(self, key: str) -> set[int]:
        """Steps of a trial's checkpoints whose weights an unfinished trial begins with."""
        return {
            int(record.warm["step"])
            for record in self._unfinished.values()
            if record.warm is not None and record.warm["trial"] == key
        }

    def _apply_to(self, record: Record, event: events.TrialEvent) -> None:
        match event:
            case events.Start():
                self._move(record, State.RUNNING)
                record.attempt = event.attempt
                record.worker = event.worker
                record.device = event.device
                record.started = event.time
                if event.time is not None:
                    self._busy.setdefault(event.worker, (event.time, set()))[1].add(record.key)
                self._note_neighbours(record, event)
            case events.Report():
                record.reports[event.index] = event.report
                self._values.pop(record.key, None)
                if event.decision == Decision.PRUNE:
                    record.pruned_at = event.index
            case events.Checkpoint():
                if event.step not in record.checkpoints:
                    record.checkpoints.append(event.step)
            case events.Retry():
                self._leave(record)
                self._move(record, State.WAITING)
                record.reason = event.reason
                if event.kind == "oom":
                    record.halvings += 1
                    record.memory_note = event.reason
                elif event.kind != "moved":
                    record.retries += 1
            case events.End():
                self._leave(record)
                self._end(record, event)

    def _end(self, record: Record, event: events.End | events.Known) -> None:
        self._move(record, State(event.state))
        record.kind = event.kind
        record.reason = event.reason
        record.ended = event.time
        record.totals = dict(event.totals)

    def _note_neighbours(self, record: Record, start: events.Start) -> None:
        """Note which trials share a pack, and which the CPUs of a host or a GPU, from now on."""
        record.tells_engine = start.lane is not None
        record.is_lane |= bool(start.lane)
        has_own_gpu = start.device.startswith("cuda") and self._devices >= 1
        host = start.worker.rpartition(":")[0]
        for worker, (_, keys) in self._busy.items():
            for other in [self.trials[key] for key in keys if key != record.key]:
                if worker == start.worker:
                    record.is_lane = other.is_lane = True
                elif not has_own_gpu and worker.rpartition(":")[0] == host:
                    record.has_neighbours = other.has_neighbours = True

    def device_hours(self, now: float | None = None) -> float:
        """Hours for which devices had a trial, over all starts; `now` is for those that still have.

        The lanes of a worker share its device; a trial on several devices takes them all.
        """
        now = self._worked if now is None else now
        running = sum((now or 0.0) - since for since, _ in self._busy.values())
        return (self._device_s + running * self._devices) / 3600

    @property
    def _devices(self) -> float:
        """Devices of a worker; below 1 if several workers share one."""
        engine = self.spec.get("engine") or {}
        share = engine.get("gpus_per_trial")
        part = share if isinstance(share, float) and 0 < share < 1 else 1.0
        return float(engine.get("devices_per_trial") or 1) * part

    def _leave(self, record: Record) -> None:
        """A trial is off its worker's device."""
        if record.worker in self._busy:
            keys = self._busy[record.worker][1]
            keys.discard(record.key)
            if not keys:
                self._rest(record.worker, record.is_lane)

    def _rest(self, worker: str, was_pack: bool) -> None:
        since, _ = self._busy.pop(worker)
        seconds = max(0.0, (self._worked or since) - since)
        self._device_s += seconds * self._devices
        self.pack_s += seconds if was_pack else 0.0

    def value(self, record: Record) -> float | None:
        """What a trial is ranked by: its best metric over all its reports."""
        if record.key not in self._values:  # asked for often, and changed by reports alone
            best = record.best(self.metric, self.direction)
            if best is None:
                return None
            self._values[record.key] = best.metrics[self.metric]
        return self._values[record.key]

    def by_config(self) -> dict[int, list[Record]]:
        """Optuna trial -> its repeats, both in the order in which they were asked for."""
        return {config: list(repeats.values()) for config, repeats in self._configs.items()}

    def repeats(self, config: int) -> list[Record]:
        return list(self._configs.get(config, {}).values())

    def config_values(self, config: int) -> list[float]:
        """What a config's completed repeats are ranked by; none if they began with more than the
        base model."""
        return [
            value
            for record in self.repeats(config)
            if record.state is State.COMPLETED and record.warm is None
            if (value := self.value(record)) is not None
        ]

    def config_mean(self, config: int) -> float | None:
        """Mean value of a config's completed repeats; None where none is completed."""
        values = self.config_values(config)
        return statistics.fmean(values) if values else None

    def seeds(self, config: int) -> int:
        """How many seeds a config gets: `sweep.repeats`; with `sweep.finalists` they alone do."""
        if any(record.warm is not None for record in self.repeats(config)):
            return 1
        sweep = self.spec.get("sweep", {})
        is_one = sweep.get("finalists") is not None and config not in self.finalists
        return 1 if is_one else int(sweep.get("repeats") or 1)

    def is_settled(self, config: int) -> bool:
        """Whether nothing more will come of a config: all repeats ended, and none is to follow."""
        repeats = self.repeats(config)
        if not all(record.state.is_finished() for record in repeats):
            return False
        stopped = any(record.state is not State.COMPLETED for record in repeats)
        return stopped or len(repeats) >= self.seeds(config)

    @property
    def config_count(self) -> int:
        """Configs that the search asked for; their repeats count as one."""
        return len(self._configs) - len(self.added)

    def unfinished(self) -> list[Record]:
        """Trials that wait or run, in the order in which they were asked for."""
        return list(self._unfinished.values())

    @property
    def ended(self) -> int:
        """Trials that have ended, however."""
        return len(self.trials) - len(self._unfinished)

    def count(self, *states: State) -> int:
        return sum(self._counts[state] for state in states)

    def stop_running(self) -> None:
        """Nothing runs any more, whatever the ledger's last word was: its driver is gone."""
        for record in self._unfinished.values():
            self._move(record, State.WAITING)

    def _move(self, record: Record, state: State) -> None:
        self._counts[record.state] -= 1
        self._counts[state] += 1
        record.state = state
        if state.is_finished():
            self._unfinished.pop(record.key, None)


def _shows_work(event: Event) -> bool:
    """Whether an event shows that a driver and its workers ran at that time.

    What users asked for while none ran (a stop, an added config) stands in the ledger before the
    next start's own event; the devices were free by then.
    """
    if isinstance(event, events.End):
        return State(event.state) is not State.STOPPED
    work = events.Attempt | events.TrialEvent | events.Interrupt | events.Cost
    return isinstance(event, work)


def read_history(ledger: Path) -> History:
    """The ledger's events added up; a torn last line, which may be in the making, is left out."""
    history = History()
    read_ledger(ledger, history.apply)
    return history
