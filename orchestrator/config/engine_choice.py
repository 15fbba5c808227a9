"""Choose the engine in which a sweep's trials train, and how many of them share a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sweeps.config.spec import Spec
from sweeps.config.trial_config import config_of
from sweeps.config.validation import read_train
from sweeps.core.errors import ConfigError, Problem, SweepError
from sweeps.search.quick import abreast
from sweeps.space.space import Space

# Measured with benchmarks/packing.py: on one core, more lanes gain nothing. At most: on a GPU how
# many fit is measured as they come, on a CPU by the one step that precedes all trials.
_CPU_LANES = 16
_GPU_LANES = 32


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """How many trials share a device (`lanes` is 1 if each trains alone), and why, in words."""

    lanes: int
    why: str


def engine_problems(spec: Spec, space: Space, device: str) -> list[Problem]:
    """Why trials cannot train on `device` as the engine section asks."""
    found = _kernel_problems(spec, device)
    if spec.engine.kind != "packed":
        return found
    if spec.engine.devices_per_trial > 1:
        message = "lanes share one device: engine=solo, or engine.devices_per_trial=1."
        return [*found, Problem(key="engine.kind", value="packed", message=message)]
    reasons = [reason for each in obstacles(spec, space, device).values() for reason in each]
    message = "; engine=auto trains what cannot share a device alone."
    return found + [
        Problem(key="engine.kind", value="packed", message=f"{reason}{message}")
        for reason in dict.fromkeys(reasons)
    ]


def _kernel_problems(spec: Spec, device: str) -> list[Problem]:
    """Why the base of lanes cannot have the kernels that are asked for."""
    if spec.engine.kernels == "torch":
        return []
    from trainers.model import kernels

    if spec.engine.kind == "solo" or spec.engine.devices_per_trial > 1:
        message = (
            "is for packs, whose base has its norms and gated layers from liger-kernel; a trial "
            "that trains alone has torch's: engine=auto, or engine.kernels=torch."
        )
    elif device == "cpu":
        message = "needs a GPU, and trials train on CPUs here: set engine.kernels=torch."
    elif lacking := kernels.lacking():
        missing = " and ".join(lacking)
        message = f"needs {missing}, not installed here: {kernels.EXTRA}, or engine.kernels=torch."
    else:
        return []
    return [Problem(key="engine.kernels", value="liger", message=message)]


def choose(spec: Spec, space: Space, *, on_gpu: bool) -> EngineChoice:
    """Choose the engine for `spec`."""
    devices = spec.engine.devices_per_trial
    if devices > 1:
        why = f"engine: solo, each trial on {devices} devices ({spec.strategy})"
        return EngineChoice(lanes=1, why=why)
    if spec.engine.kind == "solo":
        return EngineChoice(lanes=1, why="engine: solo, one trial on each device")
    found = obstacles(spec, space, "cuda" if on_gpu else "cpu")
    reasons = list(dict.fromkeys(reason for each in found.values() for reason in each[:1]))
    most = spec.engine.lanes
    lanes = most if most != "auto" else _GPU_LANES if on_gpu else _CPU_LANES
    if all(found.values()):
        return EngineChoice(lanes=1, why=f"engine: solo, one trial on each device ({reasons[0]})")
    if lanes == 1:
        return EngineChoice(lanes=1, why="engine: solo, one trial on each device (engine.lanes=1)")
    why = f"engine: packed, up to {lanes} trials share a device and its base model"
    if padding := _padding(spec, space):
        why += f", rows padded to the longest ({padding})"
    if spec.engine.kernels == "liger":
        why += _kernels_words(spec, space)
    if reasons:
        why += f"; alone where {'; '.join(reasons)}"
    return EngineChoice(lanes=lanes, why=why)


def _padding(spec: Spec, space: Space) -> str:
    """Why the rows of lanes are padded, as far as the model's config says."""
    from trainers.flat.check import obstacle

    try:
        _, values = next(_variants(spec, space))
        return obstacle(read_train(config_of(spec, values)).model)
    except (SweepError, ConfigError):
        return ""  # reported by the check of the model


def _kernels_words(spec: Spec, space: Space) -> str:
    """What becomes of engine.kernels=liger, as far as the model's config says."""
    from trainers.model.kernels import obstacle
    from trainers.model.source import load_config

    try:
        _, values = next(_variants(spec, space))
        found = obstacle(load_config(read_train(config_of(spec, values)).model))
    except (SweepError, ConfigError):
        return ""  # reported by the check of the model
    return f", torch's kernels ({found})" if found else ", liger-kernel's norms and gated layers"


def planned_trials(spec: Spec, space: Space) -> int | None:
    """Trials of the whole sweep, with repeats; None if only its time budget ends it."""
    configs = space.planned(spec.sweep.trials)
    return None if configs is None else spec.sweep.planned_trials(configs)


def most_workers(spec: Spec, space: Space) -> int:
    """At most as many workers as there are trials, or as the user allows."""
    limits = [spec.sweep.max_concurrent, planned_trials(spec, space), abreast(spec.sweep)]
    return min([n for n in limits if n is not None], default=10**6)


def obstacles(spec: Spec, space: Space, device: str) -> dict[str, list[str]]:
    """All that keeps trials from being lanes on `device`, for each searched value by itself."""
    from trainers.packed import compatibility

    return {
        name: compatibility.obstacles(read_train(config_of(spec, values)), device)
        for name, values in _variants(spec, space)
    }


def _variants(spec: Spec, space: Space) -> Iterator[tuple[str, dict[str, object]]]:
    searched = space.values_by_key()
    first = {key: values[0] for key, values in searched.items() if values}
    yield "", first
    for key, values in searched.items():
        for value in values[1:]:
            yield f"{key}={value}", {**first, key: value}
