"""From a base config and searched values to the one config that a trial trains with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf, open_dict

from sweeps.config.spec import Spec
from sweeps.core.trial import fingerprint

SECTIONS = ("model", "data", "peft", "trainer")


def trial_config(
    base: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    seed: int,
    budget: Mapping[str, Any],
    evaluations: int,
) -> dict[str, Any]:
    """The resolved training config. Interpolations follow what was searched.

    Args:
        base: the four training sections, interpolations unresolved.
        values: config keys and what they are set to.
        seed: the trial's seed.
        budget: `examples` or `epochs`.
        evaluations: reports per trial.
    """
    resolved = _set_plainly(base, values) or _interpolated(base, values)
    sections = {name: resolved[name] for name in SECTIONS}
    return {**sections, "seed": seed, "budget": dict(budget), "evaluations": evaluations}


def _interpolated(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[Any, Any]:
    config = OmegaConf.create(dict(base))
    with open_dict(config):
        for key, value in values.items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return resolved


def _set_plainly(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[Any, Any] | None:
    """The same where nothing is interpolated, in a hundredth of the time; None where it may not be.

    Every trial is resolved in the one process that all workers wait for.
    """
    if not (_is_plain(dict(base)) and _is_plain(dict(values))):
        return None
    config: dict[Any, Any] = copy.deepcopy(dict(base))
    for key, value in values.items():
        *path, last = key.split(".")
        part: Any = config
        for name in path:
            part = part.get(name) if isinstance(part, dict) else None
        if not isinstance(part, dict) or "[" in key:
            return None
        part[last] = copy.deepcopy(value)
    return config


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(held) for name, held in value.items())
    if isinstance(value, list):
        return all(_is_plain(held) for held in value)
    if isinstance(value, str):
        return "${" not in value
    return value is None or type(value) in (bool, int, float)


def config_of(spec: Spec, values: Mapping[str, Any], repeat: int = 0) -> dict[str, Any]:
    """The config of a sweep's trial; each repeat has the next seed."""
    budget = spec.sweep.budget
    return trial_config(
        spec.base,
        values,
        seed=spec.seed + repeat,
        budget={"examples": budget.examples, "epochs": budget.epochs},
        evaluations=spec.sweep.evaluations,
    )


def trial_key(config: Mapping[str, Any]) -> str:
    """The same config is the same trial: same key, same folder, so running again is resuming."""
    return fingerprint(config)
