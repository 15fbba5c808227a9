"""The ledger's events, one class each: a class's fields are the keys of its lines, in their order.

A field whose default is None is left out of the line if it is unset. Keys that are not known here,
a newer version's, are passed over. Types are checked as a line is read; what it says of the lines
before it is for the reader of them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field, InstanceOf

from sweeps.core import trial as trials

_MOST = 2**63

Text = InstanceOf[str]
Keys = InstanceOf[Mapping[str, Any]]
# A trial's key is a folder's name, so no more than that.
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Trials = tuple[Key, ...]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=0, lt=_MOST)]
Whole = Annotated[int, Field(strict=True, ge=-_MOST, lt=_MOST)]
Number = Whole | Annotated[float, Field(strict=True, allow_inf_nan=False)]  # an int stays one
Numbers = Mapping[str, Number]
Counts = tuple[Count, ...]
Mappings = tuple[Keys, ...]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the ledger."""

    event: ClassVar[str]  # the line's first key
    time: Number | None = None  # seconds since the epoch; set by `Ledger.append`

    def __init_subclass__(cls) -> None:
        cls.event = cls.__dict__.get("event", cls.__name__.lower())

    def to_json(self) -> dict[str, Any]:
        """The line's keys and values."""
        return {"event": self.event} | {
            each.name: value
            for each in fields(self)
            if (value := getattr(self, each.name)) is not None or each.default is not None
        }


@dataclass(frozen=True, kw_only=True)
class Sweep(Event):
    """The ledger begins: the sweep's name and its config without secrets."""

    name: Text
    spec: Keys


@dataclass(frozen=True, kw_only=True)
class Attempt(Event):
    """A driver takes over.

    Attributes:
        spec: the config without secrets; keys that may change on a begun folder may differ.
        data, base: fingerprints of the prepared data and of the base model.
        examples: training examples per trial.
        code: a hash of this program's source code.
        rehearsal: the dry run's identity, what its step measured, and `lanes` if it reduced them.
    """

    number: Count | None = None
    spec: Keys | None = None
    host: Text | None = None
    pid: Count | None = None
    command: Text | None = None
    data: Text | None = None
    base: Text | None = None
    examples: Count | None = None
    versions: Keys | None = None
    code: Text | None = None
    rehearsal: Keys | None = None


@dataclass(frozen=True, kw_only=True)
class Ask(Event):
    """A new trial.

    Attributes:
        config: number of the Optuna trial that suggested it; the repeats of a config share it.
        choices: dimension -> what was picked.
        params: the config keys that this sets.
        first: the part of `choices` that an entry of `sweep.first` gave.
        request: of the user who asked for this trial: the name of its file.
        origin: what was asked for: added or clone.
        parent: of a clone, the trial that it has its config from.
        warm: of a clone that begins with its parent's weights, the step of their checkpoint.
    """

    trial: Key
    number: Count
    repeat: Count
    seed: Count
    config: Count
    choices: Keys
    by_hand: Flag = False
    params: Keys
    first: Keys | None = None
    request: Text | None = None
    origin: Text | None = None
    parent: Key | None = None
    warm: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Duplicate(Event):
    """A suggestion that trial `duplicate` had before: Optuna is told, and nothing is trained."""

    event = "ask"
    trial: None
    duplicate: Key
    config: Count
    choices: Keys
    by_hand: Flag = False
    params: Keys
    first: Keys | None = None


@dataclass(frozen=True, kw_only=True)
class TrialEvent(Event):
    """An event of an attempt at a trial."""

    trial: Key
    attempt: Count


@dataclass(frozen=True, kw_only=True)
class Start(TrialEvent):
    """An attempt begins on `worker`, host and pid, from the checkpoint of `step`.

    Attributes:
        lane: it trains as a lane of a pack; older versions do not say.
    """

    worker: Text
    device: Text
    step: Count
    lane: Flag | None = None


@dataclass(frozen=True, kw_only=True)
class Report(TrialEvent):
    """A trial's evaluation, and the decision on it.

    Attributes:
        noted: what the pruner noted in the Optuna trial, which a replay gives back.
    """

    index: Count
    step: Count
    examples: Count
    tokens: Count
    metrics: Numbers
    decision: Text
    noted: Numbers | None = None

    @property
    def report(self) -> trials.Report:
        return trials.Report.from_json(vars(self))


@dataclass(frozen=True, kw_only=True)
class Checkpoint(TrialEvent):
    """A checkpoint lies whole on disk, at `path` in the run folder."""

    step: Count
    path: Text
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class Retry(TrialEvent):
    """A trial waits again: a failure of the infrastructure, or of `kind` oom or moved."""

    kind: Text | None = None
    reason: Text


@dataclass(frozen=True, kw_only=True)
class End(TrialEvent):
    """A trial has ended; `kind` and `reason` say why it failed, `totals` what it took."""

    state: Text
    kind: Text = ""
    reason: Text = ""
    totals: Numbers = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Known(Event):
    """A finished trial that is taken over from another run folder; nothing is trained.

    Attributes:
        number, repeat, seed, config, choices, params: as of an `Ask`.
        folder: where it was trained.
        reports: index, step, examples, tokens and metrics of each.
        checkpoint: the step of the one that was copied; None if it was gone.
        state, kind, reason, totals: as of an `End`.
        lane, neighbours: whether it shared a pass, or its CPUs or GPU; None if that was not noted.
        cost: what training its config alone costs, by the names of `sweeps.results.cost.Alone`, if
            that was measured there after the trials.
    """

    trial: Key
    number: Count
    repeat: Count
    seed: Count
    config: Count
    choices: Keys
    params: Keys
    folder: Text
    reports: Mappings
    checkpoint: Count | None = None
    state: Text
    kind: Text = ""
    reason: Text = ""
    totals: Numbers = field(default_factory=dict)
    lane: Flag | None = None
    neighbours: Flag | None = None
    cost: Numbers | None = None


@dataclass(frozen=True, kw_only=True)
class Learnt(Event):
    """The best configs of another run folder are tried first, as entries of `sweep.first` are."""

    folder: Text
    first: Mappings


@dataclass(frozen=True, kw_only=True)
class Finalists(Event):
    """The search is over, and these configs get the other seeds of `sweep.repeats`.

    Attributes:
        configs: the best, as `Ask.config` has them.
        among: how many configs there were.
        most: `sweep.finalists`.
    """

    configs: Counts
    among: Count
    most: Count


@dataclass(frozen=True, kw_only=True)
class Removed(Event):
    """No checkpoint of these completed trials is kept any more: other configs are better."""

    trials: Trials


@dataclass(frozen=True, kw_only=True)
class Interrupt(Event):
    """No more trials are handed out.

    Attributes:
        cause: the name of a `sweeps.core.ending.Cause`; older ledgers have none.
    """

    reason: Text
    cause: Text | None = None


@dataclass(frozen=True, kw_only=True)
class Request(Event):
    """What a user's verb asked for is done from here on.

    Attributes:
        request: the name of its file.
        by: who asked, and from where.
        trials: keys of the trials that it is about.
        values: of set, the keys and their values; of pause, whether running trials leave, too; of
            resume, the Optuna trials that go on, and the numbers under which they do.
        typed: of set, what the command says of the same keys.
        said: the answer.
    """

    request: Text
    verb: Text
    by: Text
    trials: Trials | None = None
    values: Keys | None = None
    typed: Keys | None = None
    said: Text


@dataclass(frozen=True, kw_only=True)
class Cost(Event):
    """The parts of what it costs to train a trial's config alone, measured after the trials.

    Attributes:
        trial: whose config was measured.
        device: that it was measured on.
        micro, update: the searched values on which a micro-batch and an optimizer step depend.
        parts: see `sweeps.core.cost.Parts`; None if they could not be measured, for `reason`.
    """

    trial: Key
    device: Text
    micro: Keys
    update: Keys
    parts: Numbers | None = None
    reason: Text | None = None


KINDS: Mapping[str, type[Event]] = {
    kind.event: kind
    for kind in (
        *(Sweep, Attempt, Ask, Start, Report, Checkpoint, Retry, End),
        *(Known, Learnt, Finalists, Removed, Interrupt, Request, Cost),
    )
}


def read_event(line: Mapping[str, Any]) -> Event:
    """The event of a line, whose `event` is one of `KINDS`.

    Raises:
        ValueError: a field is missing, or is not what is written there.
    """
    kind = KINDS[line["event"]]
    if kind is Ask and line.get("trial") is None:
        kind = Duplicate
    try:
        return _readers()[kind].validate_python(line)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)[0]
        name, *inside = map(str, found["loc"])
    if found["type"] == "missing":
        raise ValueError(f"{name} is missing")
    if inside:
        raise ValueError(f"{name} holds what is no number: {line[name]!r:.80}")
    is_key = found["type"].startswith("string_pattern")
    raise ValueError(f"{name} {'is no key:' if is_key else '='} {line[name]!r:.40}")


@cache
def _readers() -> dict[type[Event], pydantic.TypeAdapter[Event]]:
    return {kind: pydantic.TypeAdapter(kind) for kind in (*KINDS.values(), Duplicate)}
