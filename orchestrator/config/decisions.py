"""What of a sweep's space is searched if the command line also fixes some of its keys.

A fixed value is a decision: its key is no longer searched, and a list of linked values keeps the
rows that have it. What no trial would read leaves the space if a file put it there, and is refused
if it was typed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.core.commands import UnwritableError, written
from sweeps.core.errors import Problem
from sweeps.search.first import fitting
from sweeps.space.parser import lookup, parse_space
from sweeps.space.space import Choice, Dimension, Space, set_by

# data.source -> the keys of `data` that it does not read.
_UNREAD = {
    "docstrings": "path name revision split format encoding columns eval_path".split(),
    "file": "name revision split".split(),
    "hub": "format encoding eval_path".split(),
}
# What not every optimizer, schedule or trial reads.
_CONDITIONAL = tuple(
    f"trainer.{name}"
    for name in (
        *("adam_beta1", "adam_beta2", "adam_epsilon", "optim_target_modules", "warmup_steps"),
        *("lr_scheduler_kwargs", "gradient_checkpointing_kwargs"),
    )
)
UNREAD = "no trial reads it"
_EMPTY: tuple[Any, ...] = (None, "", {}, [])


@dataclass
class Decisions:
    """The space that is left, what the user is told, and what is refused.

    Attributes:
        config: the resolved config.
        fixed: the keys that the command line sets to one value.
        forced: those of them that may be read by no trial.
        typed: the keys that it searches or puts a condition on; the rest of `space` is a file's.
        space, when: `sweep.space` and `sweep.when` as written.
    """

    config: Mapping[str, Any]
    fixed: frozenset[str]
    forced: frozenset[str]
    typed: frozenset[str]
    space: dict[str, Any]
    when: Any
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _unread: list[Problem] = field(default_factory=list)  # typed, and read by no trial

    def settle(self) -> None:
        """Take out of the space what is fixed, and what no trial reads."""
        self.problems += self._both_typed()
        for name, dimension in self._dimensions().items():
            if name not in self.typed:
                self._fix(name, dimension)
        self._settle_adapter()
        self._settle_trainer()
        self._settle_conditions()
        self._settle_first()
        self._unread += [*self._unread_data(), *self._unread_places()]
        for each in self._unread:
            if is_within(each.key, self.forced):
                self.notes.append(f"set by ++ all the same: {each}")
            else:
                self.problems.append(each)

    def leave_as_begun(self) -> None:
        """Turn what was decided into notes: the sweep began when nothing of it was decided."""
        told = [*self.notes, *map(str, self.problems)]
        self.notes = [
            f"this sweep goes on as it began; a new one would differ: {each}" for each in told
        ]
        self.problems = []

    def _both_typed(self) -> Iterator[Problem]:
        """Keys typed both with a value and with a search; a condition may leave the value."""
        conditions = self.when if isinstance(self.when, Mapping) else {}
        for name, dimension in self._dimensions().items():
            if name not in self.typed or name in conditions:
                continue
            for key in self.fixed.intersection(set_by(dimension)):
                value = _text(lookup(self.config, key))
                by = "" if key == name else f" by {name}"
                message = (
                    f"is typed twice: as {value}, and to be searched{by}. Leave one of them out."
                )
                yield Problem(key=key, message=message)

    def _dimensions(self) -> dict[str, Dimension]:
        return {each.name: each for each in self._parsed().dimensions}

    def _parsed(self) -> Space:
        when = self.when if isinstance(self.when, Mapping) else {}
        return parse_space(self.space, when, [])

    def _fix(self, name: str, dimension: Dimension) -> None:
        chosen = {key: lookup(self.config, key) for key in set_by(dimension) if key in self.fixed}
        if not chosen:
            return
        rows = list(dimension.options) if isinstance(dimension, Choice) else []
        if not rows or not isinstance(rows[0], Mapping):
            self._leave(name)
            self.notes.append(
                f"{name} is {_text(chosen[name])}, as typed: no longer searched, as {name}=a,b "
                "would be"
            )
            return
        kept = [row for row in rows if all(row.get(key) == chosen[key] for key in chosen)]
        words = " ".join(f"{key}={_text(value)}" for key, value in chosen.items())
        if not kept:
            self.problems += self._no_row(name, rows, chosen)
        elif len(kept) < len(rows):
            self.space[name] = kept
            self.notes.append(f"sweep.space.{name}: {len(kept)} of its {len(rows)} have {words}")

    def _no_row(
        self, name: str, rows: list[Mapping[str, Any]], chosen: Mapping[str, Any]
    ) -> Iterator[Problem]:
        for key, value in chosen.items():
            there = list(dict.fromkeys(_text(row.get(key)) for row in rows))
            if len(chosen) == 1 or _text(value) not in there:
                message = (
                    f"is set by sweep.space.{name}, whose rows have {', '.join(there)}; take one "
                    f"of them, or search something else with sweep.space.{name}=..."
                )
                yield Problem(key=key, value=value, message=message)
                return
        keys = " and ".join(chosen)
        yield Problem(key=f"sweep.space.{name}", message=f"no row has these {keys} together.")

    def _settle_adapter(self) -> None:
        """Without an adapter, no trial reads its fields."""
        dimensions = self._dimensions()
        key = "peft.method"
        searched = any(key in set_by(each) for each in dimensions.values())
        if searched or lookup(self.config, key) != "full":
            return
        for name, dimension in dimensions.items():
            if name not in self.typed and all(_is_adapters(each) for each in set_by(dimension)):
                self._leave(name)
                self.notes.append(f"{name} is not searched: peft.method=full trains no adapter")
        for each in sorted(filter(_is_adapters, self.fixed | self.typed)):
            message = (
                f"{UNREAD}, since peft.method=full trains no adapter: leave it out, or take "
                "peft=lora."
            )
            self._unread.append(Problem(key=each, message=message))

    def _settle_trainer(self) -> None:
        """Settings of optimizers and schedules that no trial has, and the like."""
        dimensions = self._dimensions()
        keys = {key for each in dimensions.values() for key in set_by(each)} | self.fixed
        asked = {key for key in keys if key.startswith(_CONDITIONAL)}
        trainer = self.config.get("trainer")
        if not asked or not isinstance(trainer, Mapping):
            return
        from trainers.sft.validation import unread  # imports torch

        space = self._parsed()
        searched = space.values_by_key()
        # What the base has of a key that the space sets in every trial, no trial has.
        always = [each for name, each in dimensions.items() if name not in space.when]
        given = [key for each in always for key in set_by(each) if key.startswith("trainer.")]
        trainer = {**trainer, **{key.removeprefix("trainer."): searched[key][0] for key in given}}
        reasons = {key: unread(key.removeprefix("trainer."), trainer, searched) for key in asked}
        for name, dimension in dimensions.items():
            reason = next((reasons[key] for key in set_by(dimension) if reasons.get(key)), None)
            if reason is None or name in self.typed or len(set_by(dimension)) > 1:
                continue
            self._leave(name)
            self.notes.append(f"{name} is not searched: {reason}")
        typed = {key for name in self.typed & set(dimensions) for key in set_by(dimensions[name])}
        for key in sorted(asked & (self.fixed | self.typed | typed)):
            is_noted = key == "trainer.warmup_steps" or lookup(self.config, key) in _EMPTY
            if (reason := reasons[key]) and (key in self.typed | typed or not is_noted):
                message = f"{UNREAD}: {reason}. Leave it out."
                self._unread.append(Problem(key=key, message=message))

    def _settle_conditions(self) -> None:
        """Of a file's condition, what its key may be is left; if it may be none, so is nothing."""
        space = self._parsed()
        intervals = {each.name for each in space.dimensions if not isinstance(each, Choice)}
        searched = space.values_by_key()
        for name, condition in space.when.items():
            there = searched.get(condition.key) or [lookup(self.config, condition.key)]
            kept = [value for value in condition.values if value in there]
            if 0 < len(kept) < len(condition.values) and name not in self.typed:
                self.when[name] = f"{condition.key}=choice({', '.join(map(written, kept))})"
            if kept or None in there or condition.key in intervals:
                continue
            wanted = " or ".join(map(_text, condition.values))
            why = f"it is for {condition.key}={wanted}, which is {' or '.join(map(_text, there))}"
            if name in self.typed:
                message = f"is searched by no trial: {why} (sweep.when.{name})."
                self.problems.append(Problem(key=name, message=message))
                self.when.pop(name)  # said once
            else:
                self._leave(name)
                self.notes.append(f"{name} is not searched: {why}")

    def _settle_first(self) -> None:
        """Choose `sweep.first` by peft.method, if it is written for each.

        Of a file's, only what the space still searches is kept.
        """
        sweep = self.config["sweep"]
        first = sweep["first"] = [] if sweep.get("first") is None else sweep["first"]
        if isinstance(first, Mapping) and (method := lookup(self.config, "peft.method")) in first:
            first = sweep["first"] = first[method]
        if "sweep.first" in self.fixed or not isinstance(first, list):
            return
        entries = [entry for entry in first if isinstance(entry, Mapping)]
        sweep["first"] = [] if sweep.get("search") == "grid" else fitting(entries, self._parsed())

    def _unread_data(self) -> Iterator[Problem]:
        source = lookup(self.config, "data.source")
        for name in _UNREAD.get(source, ()):
            key = f"data.{name}"
            value = lookup(self.config, key)
            if key not in self.fixed or value in _EMPTY:
                continue
            readers = [other for other in ("file", "hub") if name not in _UNREAD[other]]
            message = f"is not read by data={source}: leave it out, or add " + " or ".join(
                f"data={other}" for other in readers
            )
            yield Problem(key=key, value=value, message=f"{message}.")
        own = next((k for k in ("data.eval_path", "data.eval_split") if lookup(self.config, k)), "")
        if own and (key := "data.eval_fraction") in self.fixed:
            message = (
                f"no row is drawn to measure on, since {own} names them: leave one of them out."
            )
            yield Problem(key=key, value=lookup(self.config, key), message=message)

    def _unread_places(self) -> Iterator[Problem]:
        key, kind = "cluster.address", lookup(self.config, "cluster.kind")
        value = lookup(self.config, key)
        if kind == "local" and key in self.fixed and value not in _EMPTY:
            message = "is not read by cluster=local: leave it out, or add cluster=ray."
            yield Problem(key=key, value=value, message=message)

    def _leave(self, name: str) -> None:
        del self.space[name]
        if isinstance(self.when, dict):
            self.when.pop(name, None)


def is_within(key: str, keys: Collection[str]) -> bool:
    """Whether a key, or a mapping that holds it, is one of `keys`."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)


def _is_adapters(key: str) -> bool:
    return key.startswith("peft.") and key != "peft.method"


def _text(value: Any) -> str:
    """A value as it is typed."""
    try:
        return written(value)
    except UnwritableError:
        return str(value)
