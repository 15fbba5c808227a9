"""Keys that a user has set for a sweep, and that hold until a command gives them another value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sweeps.config.spec import Spec
from sweeps.ledger.history import History

# Those keys that may change on a begun folder and are read while the sweep runs.
SETTABLE = tuple(
    f"sweep.{name}"
    for name in ("max_concurrent", "trials", "keep", "time_budget_s", "device_hours", "max_retries")
)


def changed(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """The spec with these keys of `SETTABLE` set."""
    own = {key.removeprefix("sweep."): value for key, value in values.items()}
    public = {**spec.public, "sweep": {**spec.public["sweep"], **own}}
    return replace(spec, sweep=replace(spec.sweep, **own), public=public)


def value_of(spec: Spec, key: str) -> Any:
    """What a key of `SETTABLE` is in a spec."""
    return getattr(spec.sweep, key.removeprefix("sweep."))


def with_changes(spec: Spec, history: History) -> Spec:
    """A command's spec with what users have set, but for keys that it gives another value since."""
    held = {
        key: value
        for key, value in history.changes.items()
        if value_of(spec, key) == history.typed[key]
    }
    return changed(spec, held)
