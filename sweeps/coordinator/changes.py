"""Keys that a user has set for a sweep, and that hold until a command gives them another value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sweeps.config.spec import Spec
from sweeps.ledger.history import History


def changed(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """The spec with these keys SECTION.NAME set."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        own = replace(getattr(spec, section), **{name: value})
        public = {**spec.public, section: {**spec.public.get(section, {}), name: value}}
        spec = replace(spec, **{section: own}, public=public)
    return spec


def value_of(spec: Spec, key: str) -> Any:
    """What a key SECTION.NAME is in a spec."""
    section, _, name = key.partition(".")
    return getattr(getattr(spec, section), name)


def with_changes(spec: Spec, history: History) -> Spec:
    """A command's spec with what users have set, but for keys that it gives another value since."""
    held = {
        key: value
        for key, value in history.changes.items()
        if value_of(spec, key) == history.typed[key]
    }
    return changed(spec, held)
