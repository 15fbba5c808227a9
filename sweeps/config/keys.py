"""What may be done with a config key: the facts at its own field and at its section's."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from sweeps.config.setting import Facts
from sweeps.config.spec import Config, Spec

# In the trainer section, but not a trial's: it says where its weights lie, and changes no number.
STRATEGY = "strategy"


def _facts(declared: Field[Any]) -> Facts:
    facts: Facts = declared.metadata.get("facts", Facts())
    return facts


def _walk(section: type[Any], prefix: str = "") -> Iterator[tuple[str, Facts]]:
    hints = typing.get_type_hints(section)
    for declared in fields(section):
        key, hint = f"{prefix}{declared.name}", hints[declared.name]
        yield key, _facts(declared)
        if is_dataclass(hint):
            yield from _walk(hint, f"{key}.")  # type: ignore[arg-type]


FACTS: dict[str, Facts] = dict(_walk(Config)) | {
    f"trainer.{STRATEGY}": _facts(next(each for each in fields(Spec) if each.name == STRATEGY))
}


def may_change(key: str) -> bool:
    """Whether the key may differ between two starts on one run folder."""
    return any(facts.may_change for facts in _of(key))


def may_grow(key: str) -> bool:
    """Whether the key may become more between two starts on one run folder."""
    return any(facts.may_grow for facts in _of(key))


# Keys that the verb `set` may change while a sweep runs.
SETTABLE = tuple(key for key, facts in FACTS.items() if facts.may_set)


def tracked_keys(section: str) -> frozenset[str]:
    """The names in a section that may leave the machine; "" is the top of the config."""
    above = ((*key.rpartition(".")[::2], facts) for key, facts in FACTS.items())
    return frozenset(name for head, name, facts in above if head == section and facts.tracked)


def search_refusal(key: str) -> str | None:
    """Why no trial may vary the key; "" if one may, None if there is no such key."""
    for facts in _of(key):
        if facts.searched or facts.owner:
            return "" if facts.searched else f"cannot be searched: {facts.owner}."
    return None


def _of(key: str) -> list[Facts]:
    """The facts of the key and of each section above it, the nearest first."""
    parts = key.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return [FACTS[name] for name in names if name in FACTS]
