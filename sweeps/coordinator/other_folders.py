"""What other run folders know: finished trials to take over, and configs to try first."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sweeps.config.spec import Spec
from sweeps.config.trial_config import config_of, trial_key
from sweeps.core.commands import override
from sweeps.core.errors import SweepError
from sweeps.core.trial import Report, State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.ledger.ledger import read_ledger
from sweeps.results.cost import Costs
from sweeps.results.ranking import config_ranks
from sweeps.search.first import entry_of, picked_of
from sweeps.space.parser import lookup
from sweeps.space.space import Space
from sweeps.storage.durable_writes import publish
from sweeps.storage.run_folder import RunFolder

REUSE, LEARN = "sweep.reuse", "sweep.learn_from"
_TAKEN = (State.COMPLETED, State.DIVERGED)  # what another pruner or machine would do again
_BEST = 3  # configs of a folder that are tried first


@dataclass(frozen=True, kw_only=True)
class Found:
    """What other run folders give to a sweep.

    Attributes:
        known: finished trials, as events without the numbers that they get here.
        learnt: configs that are tried first.
        base: the base model's own evaluation, if a trial is taken over.
        lines: what to tell the user.
    """

    known: tuple[events.Known, ...] = ()
    learnt: tuple[events.Learnt, ...] = ()
    base: Report | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Other:
    """Another run folder: its trials, and on which data and base model each was trained."""

    folder: RunFolder
    history: History
    under: Mapping[str, tuple[str | None, str | None]]

    def value(self, record: Record, key: str) -> Any:
        """What a trial had for a config key."""
        return record.values[key] if key in record.values else lookup(self.history.spec, key)


def found_elsewhere(spec: Spec, space: Space, past: History, facts: events.Attempt) -> Found:
    """Read the folders of `sweep.reuse` and `sweep.learn_from` that the ledger does not hold yet.

    Args:
        past: of this sweep.
        facts: its data, base model and examples.

    Raises:
        SweepError: a folder is missing, or its trials cannot be compared with these; in words.
    """
    begun = past.spec.get("sweep", {})
    known, learnt, lines = list[events.Known](), list[events.Learnt](), list[str]()
    base: Report | None = None
    for place in spec.sweep.reuse:
        try:
            other = _read(REUSE, place, spec)
            _refuse_unlike(place, other, spec, facts)
        except SweepError:
            if place not in (begun.get("reuse") or ()):
                raise
            continue  # what it gave is in the ledger
        keys = {*past.trials, *(each.trial for each in known)}
        theirs = _known(place, other, spec, space, facts)
        known += (taken := [each for each in theirs if each.trial not in keys])
        base = base or (other.history.base if taken else None)
        lines.append(_taken_line(place, len(taken), place in (begun.get("reuse") or ())))
    for place in spec.sweep.learn_from:
        if place not in past.learnt:
            one, about = _learnt(place, _read(LEARN, place, spec), space)
            learnt.append(one)
            lines += about
    return Found(
        known=tuple(known), learnt=tuple(learnt), base=base, lines=tuple(filter(None, lines))
    )


def take_files(known: events.Known, target: RunFolder) -> None:
    """Copy a trial's files and its checkpoint, if they are not here; whole, or not at all.

    Raises:
        OSError: they cannot be written.
    """
    source, key = RunFolder(Path(known.folder)), known.trial
    for path in source.trial_files(key):
        if path.is_file() and not (copy := target.trial(key) / path.name).exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if known.checkpoint is None or target.checkpoint(key, known.checkpoint).exists():
        return
    final = target.checkpoint(key, known.checkpoint)
    draft = final.with_name(f".taken-{final.name}")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source.checkpoint(key, known.checkpoint), draft)
    publish(draft, final, "checkpoint")


def _read(key: str, place: str, spec: Spec) -> _Other:
    """The sweep of another folder.

    Raises:
        SweepError: there is none, or it is this sweep's own.
    """
    folder = RunFolder(Path(place))
    if folder.root.resolve() == Path(spec.run_dir).resolve():
        raise SweepError(f"{key}: {place} is this sweep's own folder: leave it out.")
    if not folder.ledger.is_file():
        why = "holds no sweep" if folder.root.is_dir() else "is no folder"
        raise SweepError(f"{key}: {place} {why}: give the run folder of a sweep, or leave it out.")
    history, under = History(), dict[str, tuple[str | None, str | None]]()

    def fold(event: Event) -> None:
        history.apply(event)
        if isinstance(event, events.Start | events.Known):
            under[event.trial] = history.driver.data, history.driver.base

    read_ledger(folder.ledger, fold)
    if not history.spec:
        raise SweepError(f"{key}: {place} holds a sweep that has not begun: leave it out.")
    return _Other(folder=folder, history=history, under=under)


def _refuse_unlike(place: str, other: _Other, spec: Spec, facts: events.Attempt) -> None:
    """Raise SweepError if the trials of another sweep cannot be compared with this one's."""
    there, ours = other.history.driver, spec.sweep.budget
    budget = other.history.spec["sweep"].get("budget") or {}
    unlike = {
        f"data (fingerprint {there.data}, here {facts.data})": there.data != facts.data,
        f"base model (fingerprint {there.base}, here {facts.base})": there.base != facts.base,
        f"budget ({_budget(budget.get('examples'), budget.get('epochs'))}, here "
        f"{_budget(ours.examples, ours.epochs)})": (budget.get("examples"), budget.get("epochs"))
        != (ours.examples, ours.epochs),
    }
    if found := [words for words, is_so in unlike.items() if is_so]:
        raise SweepError(
            f"{REUSE}: the trials of {place} had another {' and another '.join(found)}: they "
            "cannot be compared. To try its best configs first, without their losses: "
            f"{override(LEARN, [place])}"
        )


def _budget(examples: int | None, epochs: float | None) -> str:
    return f"{examples} examples" if examples is not None else f"{epochs} epochs"


def _known(
    place: str, other: _Other, spec: Spec, space: Space, facts: events.Attempt
) -> list[events.Known]:
    """The finished trials of another sweep that are this one's, first seeds first."""
    found = []
    costs = Costs(other.history)
    for record in other.history.trials.values():
        repeat = record.seed - spec.seed
        if record.state not in _TAKEN or not 0 <= repeat < spec.sweep.repeats:
            continue
        if other.under.get(record.key) != (facts.data, facts.base):
            continue
        picked = picked_of(partial(other.value, record), space)
        if picked is None:
            continue
        values = space.values(picked)
        if trial_key(config_of(spec, values, repeat)) != record.key:
            continue
        found.append(
            events.Known(
                trial=record.key,
                number=record.number,
                repeat=repeat,
                seed=record.seed,
                config=record.config,
                choices=picked,
                params=values,
                folder=place,
                reports=tuple(report.to_json() for report in record.reports.values()),
                checkpoint=_checkpoint(other, record, spec),
                state=record.state,
                kind=record.kind,
                reason=record.reason,
                totals=record.totals,
                lane=record.is_lane if record.tells_engine else None,
                neighbours=record.has_neighbours if record.tells_engine else None,
                cost=None if record.is_alone else costs.measured(record),
            )
        )
    return sorted(found, key=lambda each: (each.repeat, each.number))


def _checkpoint(other: _Other, record: Record, spec: Spec) -> int | None:
    """The step of the best checkpoint, if it is still there."""
    best = record.best(spec.sweep.metric, spec.sweep.direction)
    if best is None or record.state is not State.COMPLETED:
        return None
    return best.step if other.folder.checkpoint(record.key, best.step).is_dir() else None


def _taken_line(place: str, count: int, is_known: bool) -> str:
    if count:
        return f"taken over from {place}: {count} finished trial{'' if count == 1 else 's'}"
    return "" if is_known else f"taken over from {place}: none, since none is a trial of this sweep"


def _learnt(place: str, other: _Other, space: Space) -> tuple[events.Learnt, list[str]]:
    """The best configs of another sweep as far as the space holds them, and lines on them."""
    ranks = config_ranks(other.history)
    entries: list[Mapping[str, Any]] = []
    outside: dict[str, None] = {}
    for config in sorted(ranks, key=ranks.__getitem__)[:_BEST]:
        record = other.history.repeats(config)[0]
        entry, left = entry_of(partial(other.value, record), space)
        outside |= dict.fromkeys(left)
        if entry and entry not in entries:
            entries.append(entry)
    many = f"its best {len(entries)} configs are" if len(entries) > 1 else "its best config is"
    none = "nothing, since the space holds none of its best configs"
    lines = [f"learnt from {place}: {f'{many} tried first' if entries else none}"]
    if outside:
        lines.append(f"  left out, since sweep.space does not hold them: {', '.join(outside)}")
    return events.Learnt(folder=place, first=tuple(entries)), lines
