"""Everything that can be said against a config before any device is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.errors import Problem, nearest
from sweeps.search import search_problems
from sweeps.space import Choice, Interval, Space, parse_space, set_by
from sweeps.spec import Spec

_SEARCHED_MODEL_KEYS = ("model.dtype", "model.quantization", "model.attn_implementation")
_OWNED = {
    "seed": "sweep.repeats runs each config with several seeds",
    "sweep": "it says how to search",
    "engine": "it says where trials run",
    "tracking": "it says what is tracked",
    "cluster": "it says where trials run",
    "run_dir": "it says where files go",
    "name": "it names the sweep",
    "storage": "it says where files go",
}


def read_space(spec: Spec, problems: list[Problem]) -> Space:
    """The sweep's space, with what a condition needs of the base config."""
    space = parse_space(spec.sweep.space, spec.sweep.when, problems)
    asked = {condition.key for condition in space.when.values()}
    fixed = {key: _lookup(spec.base, key) for key in asked}
    problems += _key_problems(spec, space)
    problems += search_problems(spec.sweep, space)
    return Space(space.dimensions, space.when, fixed)


def searched_values(space: Space) -> dict[str, list[Any]]:
    """Config key -> every value it may get; the bounds of an interval."""
    found: dict[str, list[Any]] = {}
    for dimension in space.dimensions:
        if isinstance(dimension, Interval):
            found[dimension.name] = [dimension.low, dimension.high]
            continue
        for option in dimension.options:
            pairs = option if isinstance(option, Mapping) else {dimension.name: option}
            for key, value in pairs.items():
                found.setdefault(key, []).append(value)
    return found


def training_problems(spec: Spec, space: Space, device: str) -> list[Problem]:
    """What the libraries refuse: trainer fields, optimizers, schedulers, LoRA, data. Imports torch."""
    from trainers.data_spec import spec_problems
    from trainers.model import peft_problems
    from trainers.settings import problems

    searched = searched_values(space)
    found = problems(spec.train.trainer, searched=searched, device=device)
    found += peft_problems(spec.train.peft, spec.train.model)
    for key, values in searched.items():
        section, _, name = key.partition(".")
        if section == "peft":
            for value in values:
                changed = {**spec.train.peft, name: value}
                found += [p for p in peft_problems(changed) if p not in found]
    return found + spec_problems(spec.train.data)


def engine_problems(spec: Spec) -> list[Problem]:
    """What this version's engine does not do."""
    found = []
    if spec.engine.devices_per_trial > 1:
        found.append(
            Problem(
                key="engine.devices_per_trial",
                value=spec.engine.devices_per_trial,
                message="a trial trains on one device; set it to 1 and let trials run side by side.",
            )
        )
    if spec.storage is not None:
        found.append(
            Problem(
                key="storage",
                value=spec.storage,
                message="checkpoints lie in the run folder; put run_dir on a shared file system.",
            )
        )
    return found


def _key_problems(spec: Spec, space: Space) -> list[Problem]:
    """Searched keys that are not in the config, or not a trial's to vary."""
    found = []
    for dimension in space.dimensions:
        for key in set_by(dimension):
            reason, near = _refusal(spec, key)
            if reason:
                found.append(Problem(key=f"sweep.space.{key}", message=reason, nearest=near))
            elif isinstance(dimension, Choice) and key != dimension.name and "." in dimension.name:
                reason = f"sets {key} besides what it is called; give it a name without a dot."
                found.append(Problem(key=f"sweep.space.{dimension.name}", message=reason))
    return found


def _refusal(spec: Spec, key: str) -> tuple[str, str | None]:
    section, _, name = key.partition(".")
    if section in _OWNED:
        return f"cannot be searched: {_OWNED[section]}.", None
    if key in _SEARCHED_MODEL_KEYS:
        return "", None
    if section in ("model", "data"):
        reason = "changes what the evaluation measures, so trials could not be compared: run one "
        return f"{reason}sweep for each value.", None
    known = [f"{part}.{leaf}" for part in ("trainer", "peft") for leaf in spec.base[part]]
    known += _SEARCHED_MODEL_KEYS
    if section in ("trainer", "peft") and name:
        return "", None  # the libraries' own fields are checked by name in `training_problems`
    return "is no key of the config.", nearest(key, known) or nearest(f"trainer.{key}", known)


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
