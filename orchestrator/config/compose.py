"""Compose the config of a command line by Hydra, which writes nothing of its own.

There is no run folder of Hydra's, no log, and no overrides.yaml that would hold secrets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config.config_files import CONF, choice_problem, hiding, not_there, unreadable
from orchestrator.config.decisions import Decisions
from orchestrator.config.overrides import Overrides, sort_overrides
from orchestrator.config.paths import begun_config, make_absolute
from sweeps.config.keys import may_change, search_refusal
from sweeps.config.trial_config import SECTIONS
from sweeps.core.errors import ConfigError, Problem
from sweeps.core.secrets import masked, scrub
from sweeps.core.trial import fingerprint

_own: ContextVar[Path | None] = ContextVar("own", default=None)


class _OwnFirst(SearchPathPlugin):
    """Lets Hydra search the folder of --config-dir first; hydra.searchpath would come last."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if (folder := _own.get()) is not None:
            search_path.prepend("config-dir", f"file://{folder}")


@dataclass(frozen=True, kw_only=True)
class Composed:
    """The config of a command line.

    Attributes:
        config: all of it, resolved.
        base: its training sections, unresolved.
        name, run_dir: the sweep's, if the config leaves them open.
        given: the keys that the command line sets.
        notes: what was decided where the command line and the sweep's file differ.
        problems: what was typed and would be read by no trial.
    """

    config: dict[str, Any]
    base: dict[str, Any]
    name: str
    run_dir: str
    given: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def compose_config(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    """Compose the config of a command line.

    Returns:
        the resolved config, its unresolved training sections, the sweep's default name, and its
        default folder.

    Raises:
        ConfigError: as `composed_of`.
    """
    composed = composed_of(argv)
    return composed.config, composed.base, composed.name, composed.run_dir


def composed_of(argv: Sequence[str]) -> Composed:
    """Compose the config of a command line.

    Raises:
        ConfigError: an override cannot be read, or names a group or choice that does not exist.
    """
    overrides = sort_overrides(argv)
    config, choice = _compose(overrides)
    _drop_options(config, overrides)
    try:
        _refuse_missing(config, overrides)
        name = str(config.get("name") or choice)
        suffix = f"-{fingerprint(sorted(overrides.naming), 8)}" if overrides.naming else ""
        run_dir = f"outputs/{name}{suffix}"
        make_absolute(config, run_dir)
        _keep_options(config, overrides, str(config.get("run_dir") or run_dir))
        space, when = _space(config, overrides)
        config["sweep"]["space"] = {}
        config["sweep"]["when"] = {}
        resolved = _container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([_problem(error)]) from None
    base = _container(config, resolve=False)
    decisions = Decisions(
        config=resolved,
        fixed=frozenset(overrides.given),
        forced=frozenset(overrides.forced),
        typed=frozenset(overrides.space) | frozenset(overrides.when),
        space=dict(space),
        when=dict(when) if isinstance(when, Mapping) else when,
    )
    decisions.settle()
    undecided = _searching(resolved, space, when)
    begun = begun_config(str(resolved.get("run_dir") or run_dir))
    if begun and not differences(public(undecided), begun):
        decisions.leave_as_begun()
    else:
        undecided = _searching(resolved, decisions.space, decisions.when)
    return Composed(
        config=undecided,
        base={section: base[section] for section in SECTIONS},
        name=name,
        run_dir=run_dir,
        given=frozenset(overrides.given),
        notes=(*hiding(overrides.own), *decisions.notes),
        problems=tuple(decisions.problems),
    )


def _searching(config: Mapping[str, Any], space: Mapping[str, Any], when: Any) -> dict[str, Any]:
    """The config with this space."""
    return {**config, "sweep": {**config["sweep"], "space": space, "when": when}}


def _drop_options(config: DictConfig, overrides: Overrides) -> None:
    """Drop the file's options of a sampler or pruner in whose place the command line sets one."""
    given = overrides.given
    for name in ("search", "pruner"):
        options = f"sweep.{name}_options"
        if f"sweep.{name}" in given and not any(key.startswith(options) for key in given):
            config.sweep[f"{name}_options"] = {}


def _keep_options(config: DictConfig, overrides: Overrides, run_dir: str) -> None:
    """Keep the options of a begun sweep's sampler and pruner if its file has others by now."""
    there = begun_config(run_dir).get("sweep")
    if not isinstance(there, Mapping):
        return
    for name in ("search", "pruner"):
        options = f"{name}_options"
        typed = any(key.startswith(f"sweep.{name}") for key in overrides.given)
        if not typed and there.get(name) == config.sweep.get(name) and options in there:
            config.sweep[options] = there[options]


def _compose(overrides: Overrides) -> tuple[DictConfig, str]:
    """The config and the name of the sweep's file. A Hydra of the caller's stays as it was."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    Plugins.instance().register(_OwnFirst)
    _own.set(overrides.own)
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            whole = compose("config", overrides=overrides.for_hydra, return_hydra_config=True)
    except Exception as error:
        if problems := unreadable(overrides.own) or _uncomposed(error, overrides.own):
            raise ConfigError(problems) from None
        raise
    finally:
        _own.set(None)
        GlobalHydra.instance().hydra = theirs
    choices = whole.hydra.runtime.choices
    found = [choice_problem(overrides.own, group, choices[group]) for group in choices]
    if problems := [problem for problem in found if problem is not None]:
        raise ConfigError(problems)
    OmegaConf.set_struct(whole, False)
    config = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
    return config, str(choices.get("sweep", "sweep"))


def _uncomposed(error: Exception, own: Path | None) -> list[Problem]:
    """Why Hydra composes nothing, if it is the user's to mend."""
    if isinstance(error, RecursionError):
        message = "a file names itself in its defaults list, or two name each other."
        return [Problem(key="defaults", message=message)]
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return []
    return [not_there(str(error), own) or _problem(error)]


def _problem(error: Exception) -> Problem:
    key = getattr(error, "full_key", None) or "config"
    return Problem(key=str(key), message=scrub(str(error).strip().splitlines()[0]))


def _space(config: DictConfig, overrides: Overrides) -> tuple[dict[str, Any], Any]:
    """`sweep.space` and `sweep.when`: the file's, changed by the command line."""
    space = {} if overrides.replaces_space else _mapping(config.sweep.get("space"))
    space.update(overrides.space)
    when = config.sweep.get("when")
    if when is not None and not OmegaConf.is_dict(when):
        return space, when  # `sweeps.config.validation` refuses it
    conditions = _mapping(when)
    if overrides.replaces_space:  # the file's conditions go with their keys
        conditions = {key: text for key, text in conditions.items() if key in space}
    return space, conditions | overrides.when


def _mapping(config: DictConfig | None) -> dict[str, Any]:
    return {} if config is None else _container(config, resolve=True)


def _container(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _refuse_missing(config: DictConfig, overrides: Overrides) -> None:
    message = "is left open by its file; set it on the command line."
    if keys := OmegaConf.missing_keys(config):
        raise ConfigError(
            [
                Problem(
                    key=key,
                    value=overrides.space.get(key),
                    message=(key in overrides.space and search_refusal(key)) or message,
                )
                for key in sorted(keys)
            ]
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf of a nested mapping."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it may be written down: secrets masked, inf and nan as text, for JSON."""
    shown = _finite(masked("", config))
    assert isinstance(shown, dict)
    return shown


def _finite(value: Any) -> Any:
    """Turn inf and nan into text, at any depth."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def differences(now: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Each key that may not change but does: key, value in the folder's config, value now.

    Args:
        now, there: configs as they may be written down, see `public`.
    """
    there, now = dict(flatten(there)), dict(flatten(now))
    return [
        (key, there.get(key), now.get(key))
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key) and not may_change(key)
    ]
