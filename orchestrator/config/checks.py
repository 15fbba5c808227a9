"""Find everything that is wrong with a config before any device is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from orchestrator.cluster.gpus import gpu_problems
from orchestrator.config.decisions import UNREAD
from orchestrator.storage.run_dir import place_problems
from orchestrator.tracking.tracker import tracking_problems
from sweeps.config.keys import FACTS, STRATEGY, may_change, search_refusal
from sweeps.config.spec import Spec
from sweeps.config.validation import without_strategy
from sweeps.core.commands import UnwritableError, among, searched
from sweeps.core.errors import Problem, nearest
from sweeps.search.samplers import search_problems
from sweeps.space.grammar import foreign
from sweeps.space.parser import lookup, space_of
from sweeps.space.space import Choice, Interval, Space, set_by

_OF_A_DEVICE = ("trainer.optim", "trainer.optim_args", "trainer.tf32", "trainer.bf16")
_GOLDEN = 0.6180339887  # as a share of an interval, hardly a whole number


def read_space(config: Mapping[str, Any], problems: list[Problem]) -> Space:
    """The space of a composed config; what is wrong with it is added to `problems`."""
    space = space_of(config, problems)
    problems += _key_problems(config, space) + _condition_problems(config, space)
    return space


def training_problems(config: Mapping[str, Any], space: Space, device: str) -> list[Problem]:
    """What the libraries refuse: trainer fields, optimizers, schedules, LoRA. Imports torch."""
    from trainers.model.lora import peft_problems
    from trainers.sft.validation import problems

    trainer, peft = config["trainer"], config["peft"]
    searched = space.values_by_key()
    searched.pop(f"trainer.{STRATEGY}", None)  # refused as a key that is not a trial's
    own = without_strategy(trainer)
    dtype = _trained_type(config, searched, device)
    found = problems(own, searched=searched, device=device, dtype=dtype) + peft_problems(peft)
    methods = [method for method in searched.get("peft.method", []) if method != "full"]
    adapter = {"method": methods[0]} if methods else {}  # else a full one hides the others' faults
    for key, values in searched.items():
        section, _, name = key.partition(".")
        if section == "peft":
            for value in values:
                said = {str(problem) for problem in found}
                new = peft_problems({**peft, **adapter, name: value})
                found += [problem for problem in new if str(problem) not in said]
    return found or _fraction_problems(space)


def trial_problems(
    config: Mapping[str, Any], values: Mapping[str, Any], device: str
) -> list[Problem]:
    """What is wrong with one trial's values, which need not be of the sweep's space.

    Args:
        config: of the sweep.
        device: of its trials, "cpu" or "cuda".
    """
    dimensions = tuple(Choice(name=key, options=(value,)) for key, value in values.items())
    space = Space(dimensions)
    found = _key_problems(config, space) or training_problems(config, space, device)
    return [replace(problem, key=problem.key.removeprefix("sweep.space.")) for problem in found]


def is_of_here(problem: Problem) -> bool:
    """Whether a problem is of where trials run, which may change from one start to the next."""
    return may_change(problem.key) or problem.key in _OF_A_DEVICE


def with_search(config: Mapping[str, Any], problem: Problem) -> Problem:
    """The problem, with the way to search if its value is a list or a mapping of values to try."""
    key, value = problem.key, problem.value
    if UNREAD in problem.message:
        return problem
    if not isinstance(value, Mapping | list):
        value = lookup(config, key)
    if not isinstance(value, Mapping | list) or search_refusal(key) != "":
        return problem
    try:
        ours = foreign(value) if isinstance(value, Mapping) else None
        if isinstance(value, list) and value and _fit_alone(key, value):
            ours = among(value)
    except UnwritableError:
        ours = None
    if ours is None:
        return problem
    message = f"{problem.message} To search: {searched(key, ours)}"
    return replace(problem, message=message)


def _fit_alone(key: str, values: Sequence[Any]) -> bool:
    """Whether each value would be one of the key's."""
    from trainers.model.lora import peft_problems
    from trainers.sft.fields import name_problem, value_problem

    section, _, name = key.partition(".")
    if section == "trainer":
        return name_problem(name) is None and not any(value_problem(name, each) for each in values)
    if section == "peft":
        return not any(peft_problems({name: each}) for each in values)
    return section == "model" and all(isinstance(each, str) for each in values)


def _fraction_problems(space: Space) -> list[Problem]:
    """Intervals whose ends fit their key and whose fractions do not, such as of warm-up steps."""
    from trainers.model.lora import peft_problems
    from trainers.sft.fields import value_problem

    found = []
    for dimension in space.dimensions:
        if not isinstance(dimension, Interval) or dimension.integer:
            continue
        low, high = dimension.ends
        inside = low + (high - low) * _GOLDEN
        section, _, name = dimension.name.partition(".")
        if name.startswith("lr_scheduler_kwargs."):
            bad = name.rpartition(".")[2].startswith("num_") and inside > 1
        elif section == "trainer":
            bad = value_problem(name, inside) is not None
        else:
            bad = section == "peft" and bool(peft_problems({name: inside}))
        if bad:
            log = "log, " if dimension.log else ""
            message = (
                f"gives fractions such as {inside:.4g}, which do not fit: whole numbers are "
                f"written tag({log}int, interval({low:g}, {high:g}))."
            )
            found.append(Problem(key=f"sweep.space.{dimension.name}", message=message))
    return found


def _trained_type(config: Mapping[str, Any], searched: Mapping[str, list[Any]], device: str) -> str:
    """The number type of the trained weights; if trials differ, that of fewer optimizers."""
    from trainers.sft.optimizers import trained_type

    keys = ("peft.method", "model.quantization", "model.dtype")
    options = [searched.get(key, [lookup(config, key)]) for key in keys]
    found = (trained_type(m, q, d, device) for m, q, d in product(*options))
    return min(found, default="float32")  # bfloat16 comes first


def spec_problems(spec: Spec, space: Space) -> list[Problem]:
    """Parts of a spec that do not go together, and what no device or storage can do."""
    from trainers.data import schema
    from trainers.model.lora import peft_problems

    found = search_problems(spec.sweep, space) + _group_problems(spec, space)
    found += _sharding_problems(spec, space) + _gpu_problems(spec) + place_problems(spec)
    found += tracking_problems(spec.tracking, spec.run_dir.rstrip("/").rpartition("/")[2])
    found += [p for p in peft_problems(spec.train.peft, spec.train.model) if p.key[:5] == "model"]
    return found + schema.spec_problems(spec.train.data)


def _group_problems(spec: Spec, space: Space) -> list[Problem]:
    """Optimizer steps that cannot be shared out among a trial's devices."""
    from trainers.trial.ranks import indivisible

    world = spec.engine.devices_per_trial
    if world == 1:
        return []
    searched = space.values_by_key()
    batches = searched.get("trainer.per_device_train_batch_size", [spec.train.batch_size])
    key, own = "trainer.gradient_accumulation_steps", spec.train.accumulation_steps
    return [
        indivisible(batch, accumulation, world)
        for batch, accumulation in product(batches, searched.get(key, [own]))
        if isinstance(batch, int) and isinstance(accumulation, int)
        if batch % world and accumulation % world
    ][:1]


def _sharding_problems(spec: Spec, space: Space) -> list[Problem]:
    """trainer.strategy=fsdp, and what cannot be shared out among a trial's devices."""
    if spec.strategy != "fsdp":
        return []
    from trainers.sft import fsdp

    if spec.engine.devices_per_trial == 1:
        message = (
            "shares a model out among the devices of a trial, and a trial has one here: set "
            f"engine.devices_per_trial=2 or more, or trainer.{STRATEGY}=ddp."
        )
        return [Problem(key=f"trainer.{STRATEGY}", value="fsdp", message=message)]
    return fsdp.problems(spec.train, space.values_by_key())


def _gpu_problems(spec: Spec) -> list[Problem]:
    """GPUs that no trial can use, or that are not here; a cluster's are counted later."""
    found = gpu_problems(spec.engine, spec.cluster)
    asked = spec.engine.gpus_per_trial
    if asked != "auto" and asked > 1:
        message = "a trial trains on one device: 1, or a fraction to let several share one."
        found.append(Problem(key="engine.gpus_per_trial", value=asked, message=message))
    return found


def _key_problems(config: Mapping[str, Any], space: Space) -> list[Problem]:
    """Searched keys that are not in the config, or not a trial's to vary."""
    found = []
    for dimension in space.dimensions:
        for key in set_by(dimension):
            reason, near = _refusal(config, key)
            if reason:
                found.append(Problem(key=f"sweep.space.{key}", message=reason, nearest=near))
            elif isinstance(dimension, Choice) and key != dimension.name and "." in dimension.name:
                reason = f"sets {key} besides what it is called; give it a name without a dot."
                found.append(Problem(key=f"sweep.space.{dimension.name}", message=reason))
    return found


def _condition_problems(config: Mapping[str, Any], space: Space) -> list[Problem]:
    """Conditions on a key that is not set: they would never hold, and nobody would notice."""
    searched = [key for dimension in space.dimensions for key in set_by(dimension)]
    fixed = [f"{part}.{leaf}" for part in ("trainer", "peft", "model") for leaf in config[part]]
    return [
        Problem(
            key=f"sweep.when.{name}",
            value=f"{condition.key}=...",
            message=f"{condition.key} is neither searched nor in the config: set or search it.",
            nearest=nearest(condition.key, [*searched, *fixed]),
        )
        for name, condition in space.when.items()
        if condition.key not in searched and lookup(config, condition.key) is None
    ]


def _refusal(config: Mapping[str, Any], key: str) -> tuple[str, str | None]:
    reason = search_refusal(key)
    if reason is not None and (reason or key.partition(".")[2]):
        return reason, None  # a library's own fields are checked by name in `training_problems`
    known = [f"{part}.{leaf}" for part in ("trainer", "peft") for leaf in config[part]]
    known += [each for each, facts in FACTS.items() if facts.searched and "." in each]
    return "is no key of the config.", nearest(key, known) or nearest(f"trainer.{key}", known)
