"""Claim a run folder for one sweep: write its sweep.yaml, or compare it with the one there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from orchestrator.config import compose
from sweeps.config.keys import may_grow
from sweeps.config.spec import Spec
from sweeps.coordinator.changes import with_changes
from sweeps.core.errors import Problem, SweepError
from sweeps.ledger.history import read_history
from sweeps.space.parser import space_of
from sweeps.space.widening import lost
from sweeps.storage.durable_writes import remove_tree, write_text
from sweeps.storage.run_folder import RunFolder, is_prepared

_SPACE = "sweep.space."
SPEC_HEAD = "# The resolved config of this sweep; secrets are left out."


_MAY_GROW = (
    "Its sweep may grow: more options or wider intervals in sweep.space, more sweep.repeats, "
    "sweep.finalists and sweep.trials, and more of sweep.first and sweep.reuse. "
)


def claim_folder(folder: RunFolder, spec: Spec) -> list[str]:
    """Write sweep.yaml, or check that the one in the folder says the same or less.

    If the sweep grows, sweep.yaml is left as it is until the ledger says so: see `write_spec`.

    Returns:
        Lines on what grows.

    Raises:
        SweepError: see `refuse_another`.
    """
    grown = refuse_another(folder, spec)
    if not grown:
        write_spec(folder, spec)
    return grown


def write_spec(folder: RunFolder, spec: Spec) -> None:
    """Write sweep.yaml."""
    text = OmegaConf.to_yaml(OmegaConf.create(dict(spec.public)))
    write_text(folder.spec, f"{SPEC_HEAD}\n{text}")


def refuse_another(folder: RunFolder, spec: Spec) -> list[str]:
    """Check that the folder holds no other sweep than this one, or a smaller part of it.

    Returns:
        Lines on what grows.

    Raises:
        SweepError: it does; the differences are shown.
    """
    if not (folder.has_begun and folder.spec.exists()):  # else no trial depends on it
        return []
    there, history = _written(folder), read_history(folder.ledger)
    spec = with_changes(spec, history)  # what users have set, a command need not say
    told = history.spec.get("sweep", {})
    if isinstance(there.get("sweep"), Mapping):  # the ledger is read by what it says itself
        own = {name: told[name] for name in ("space", "repeats") if name in told}
        there["sweep"] = {**there["sweep"], **own}
    narrower = lost(space_of(there), space_of(spec.public))
    changed = compose.differences(spec, there)
    grown = [each for each in changed if _grows(*each, narrower)]
    refused = [each for each in changed if each not in grown]
    if refused:
        rows = "\n".join(f"  {_row(*each, narrower)}" for each in refused)
        may = _MAY_GROW if any(key.startswith("sweep.") for key, _, _ in refused) else ""
        raise SweepError(
            f"{folder.root} holds another sweep:\n{rows}\n{may}"
            "Give the same settings to go on with it, or choose another run_dir=..."
        )
    return [f"grows: {_row(*each, {})}" for each in grown]


def _grows(key: str, there: Any, now: Any, narrower: Mapping[str, str]) -> bool:
    if key.startswith(_SPACE):
        return key.removeprefix(_SPACE) not in narrower
    return may_grow(key) and isinstance(there, int) and isinstance(now, int) and there < now


def _row(key: str, there: Any, now: Any, narrower: Mapping[str, str]) -> str:
    why = narrower.get(key.removeprefix(_SPACE)) if key.startswith(_SPACE) else None
    return f"{key}: there {there!r}, now {now!r}{f', which {why}' if why else ''}"


def holds(folder: RunFolder, spec: Spec) -> bool:
    """Whether this very sweep has begun in the folder."""
    if not folder.has_begun or not folder.spec.exists():
        return False
    return not compose.differences(spec, _written(folder))


def is_as_begun(spec: Spec, there: Mapping[str, Any]) -> bool:
    """Whether the sweep of a begun folder is no more than it was.

    Args:
        there: the config of the last start; empty if it is not known.
    """
    return not there or not compose.differences(spec, there)


def as_begun(problems: Iterable[Problem]) -> list[str]:
    """Notes on what a sweep that began before it was refused goes on with."""
    return [f"{problem} This sweep began with it, and goes on as it is." for problem in problems]


def remove_claim(folder: RunFolder) -> None:
    """Remove what was written for a sweep that was refused before it began."""
    if folder.has_begun:
        return
    for path in (folder.spec, folder.lock, folder.ledger, folder.token):
        path.unlink(missing_ok=True)
    if is_prepared(folder.data):
        remove_tree(folder.data)
    with suppress(OSError):  # the folder holds other files of the user's
        folder.root.rmdir()
        if folder.root.parent.name == "outputs":
            folder.root.parent.rmdir()


def _written(folder: RunFolder) -> dict[str, Any]:
    """The config in sweep.yaml."""
    try:
        config = yaml.safe_load(folder.spec.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise SweepError(
            f"{folder.spec} cannot be read: it says what this folder's sweep is. Restore it from a "
            "copy, or choose another run_dir=..."
        )
    return {str(key): value for key, value in config.items()}


def refuse_strangers(folder: RunFolder) -> None:
    """Check that a sweep would not write over files of the user's.

    Raises:
        SweepError: there is no sweep in the folder, but files with the names of a sweep's.
    """
    if folder.has_begun:
        return
    ours = (
        *(folder.trials, folder.best, folder.tracking, folder.tensorboard, folder.mlflow),
        *(folder.table, folder.study, folder.report),
    )
    there = [path for path in ours if path.exists()]
    # These may come from a start that was killed before its ledger began.
    there += [
        path
        for path, is_ours in (
            (folder.data, is_prepared),
            (folder.spec, lambda path: _begins(path, rf"{re.escape(SPEC_HEAD)}\n")),
            (folder.lock, lambda path: _begins(path, r"(\S+, pid \d+)?\n?$")),
        )
        if path.exists() and not is_ours(path)
    ]
    if there:
        names = ", ".join(path.name for path in there)
        raise SweepError(
            f"{folder.root} holds no sweep, but has {names} in it, which a sweep would write over. "
            "Choose another run_dir=..., a folder that is empty or new."
        )


def _begins(path: Path, pattern: str) -> bool:
    try:
        return re.match(pattern, path.read_text(encoding="utf-8")) is not None
    except (OSError, ValueError):
        return False
