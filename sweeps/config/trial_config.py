"""Make the config that a trial trains with, of the base config and searched values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from sweeps.config.spec import Spec
from sweeps.core.trial import fingerprint

SECTIONS = ("model", "data", "peft", "trainer")
_ADDED_DATA_KEYS = ("encoding", "shared_prompts")


def trial_config(
    base: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    seed: int,
    budget: Mapping[str, Any],
    evaluations: int,
) -> dict[str, Any]:
    """The base with the searched values set; interpolations follow them.

    Args:
        base: the four training sections, interpolations unresolved.
        values: config keys and what they are set to.
        seed: the trial's seed.
        budget: `examples` or `epochs`.
        evaluations: reports per trial.
    """
    config = OmegaConf.create(dict(base))
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=False)
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    sections = {name: resolved[name] for name in SECTIONS}
    return {**sections, "seed": seed, "budget": dict(budget), "evaluations": evaluations}


def config_of(
    spec: Spec,
    values: Mapping[str, Any],
    repeat: int = 0,
    warm: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The config of a sweep's trial; each repeat has the next seed.

    Args:
        warm: `trial` and `step` of the checkpoint whose weights it begins with.
    """
    budget = spec.sweep.budget
    config = trial_config(
        spec.base,
        values,
        seed=spec.seed + repeat,
        budget={"examples": budget.examples, "epochs": budget.epochs},
        evaluations=spec.sweep.evaluations,
    )
    return config if warm is None else {**config, "warm": dict(warm)}


def trial_key(config: Mapping[str, Any]) -> str:
    """A hash of the config: the same config is the same trial and folder, so it is resumed.

    A key that later versions added does not count while it is null, so older folders go on.
    """
    data = config.get("data")
    if isinstance(data, Mapping):
        data = {k: v for k, v in data.items() if k not in _ADDED_DATA_KEYS or v is not None}
        config = {**config, "data": data}
    return fingerprint(config)
