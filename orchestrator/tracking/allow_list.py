"""Picks what may leave the machine: listed config keys, without secrets and local paths.

What is not named here stays. A new config key is private until someone adds it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sweeps.config.keys import tracked_keys
from sweeps.core.secrets import is_secret_key, masked

_MODEL, _DATA, _SWEEP = (tracked_keys(section) for section in ("model", "data", "sweep"))
_TRIAL = frozenset(("seed", "budget", "evaluations"))
_LOCAL = ("/", "~", "./", "../", "file:")


def trial_config(public: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's training config as it may be shown: the base with the searched values set.

    Args:
        public: the sweep's whole resolved config.
        values: searched config keys, and what this trial sets them to.
    """
    config = copy.deepcopy(dict(public))
    for key, value in values.items():
        *path, last = key.split(".")
        part = config
        for name in path:
            part[name] = part[name] if isinstance(part.get(name), dict) else {}
            part = part[name]
        part[last] = value
    sweep = config.get("sweep")
    shown = {
        "model": _only(config.get("model"), _MODEL),
        "data": _only(config.get("data"), _DATA),
        "peft": config.get("peft"),
        "trainer": config.get("trainer"),
        **_only(sweep, _TRIAL),
        **_only(config, _TRIAL),
    }
    return _clean_mapping("", shown)


def sweep_config(public: Mapping[str, Any]) -> dict[str, Any]:
    """What was searched, as it may be shown; no trial's settings, of which each run has its own."""
    return _clean_mapping("", {"sweep": _only(public.get("sweep"), _SWEEP)})


def clean(key: str, value: object) -> object:
    """`value` without secrets, with local paths reduced to their last component, at any depth."""
    if isinstance(value, Mapping):
        return _clean_mapping(key, value)
    if isinstance(value, list | tuple):
        return [clean(key, item) for item in value]
    if isinstance(value, str):
        return _without_folders(str(masked(key, value)))
    return masked(key, value)


def _clean_mapping(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Clean a mapping. What is not set is left out, and secrets: their masks would say nothing."""
    return {
        str(name): clean(f"{key}.{name}" if key else str(name), item)
        for name, item in value.items()
        if item is not None and not is_secret_key(str(name))
    }


def _without_folders(text: str) -> str:
    if not text.startswith(_LOCAL):
        return text
    return text.rstrip("/").rpartition("/")[2] or text


def _only(section: object, names: frozenset[str]) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        return {}
    return {name: value for name, value in section.items() if name in names}
