"""Reads plain nested dictionaries into the dataclasses of `spec`, and says every error at once."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, Literal, TypeVar

from sweeps.config.spec import (
    METRICS,
    BudgetSpec,
    ClusterSpec,
    DataSpec,
    EngineSpec,
    ModelSpec,
    SearchSpec,
    Spec,
    Strategy,
    TrackingSpec,
    TrainSpec,
)
from sweeps.core.errors import Problem, nearest
from sweeps.core.naming import SPOKEN

Section = TypeVar("Section")
Range = tuple[float, float, str]  # lowest, highest, in words

_COUNT: Range = (1, math.inf, "1 or more")
_FROM_ZERO: Range = (0, math.inf, "0 or more")
_ABOVE_ZERO: Range = (math.ulp(0.0), math.inf, "above 0")

RANGES: dict[str, Range] = {
    "engine.lanes": _COUNT,
    "engine.cpus_per_trial": _ABOVE_ZERO,
    "engine.gpus_per_trial": _FROM_ZERO,
    "engine.devices_per_trial": _COUNT,
    "sweep.trials": _COUNT,
    "sweep.repeats": _COUNT,
    "sweep.keep": _COUNT,
    "sweep.evaluations": _COUNT,
    "sweep.budget.examples": _COUNT,
    "sweep.budget.epochs": _ABOVE_ZERO,
    "sweep.time_budget_s": _ABOVE_ZERO,
    "sweep.max_concurrent": _COUNT,
    "sweep.max_retries": _FROM_ZERO,
    "sweep.max_same_error": _COUNT,
    "cluster.cpus": _COUNT,
    "cluster.gpus": _FROM_ZERO,
    "seed": _FROM_ZERO,
}

_TOP = {
    "seed": int,
    "name": str | None,
    "run_dir": str | None,
    "storage": str | None,
    "accept_changes": bool,
}
# In the trainer section, but not a trial's: it says where its weights lie, and changes no number.
STRATEGY = "strategy"
_SECTIONS = ("model", "data", "peft", "trainer", "engine", "sweep", "tracking", "cluster")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read_spec(
    config: Mapping[str, Any],
    *,
    base: Mapping[str, Any],
    public: Mapping[str, Any],
    default_name: str,
    default_run_dir: str,
    problems: list[Problem],
) -> Spec | None:
    """The sweep's spec; None where `problems` grew so much that none can be made.

    Args:
        config: the composed and resolved config.
        base: its training sections, unresolved.
        public: the config as it may be written down.
        default_name, default_run_dir: where the config leaves them open.
    """
    before = len(problems)
    for key in config:
        if key not in _TOP and key not in _SECTIONS:
            unknown = _unknown(key, [*_TOP, *_SECTIONS], "")
            problems.append(replace(unknown, nearest=_in_a_section(key, config) or unknown.nearest))
    top = {name: _value(name, kind, config.get(name), problems) for name, kind in _TOP.items()}
    name = top["name"] or default_name
    run_dir = top["run_dir"] or default_run_dir
    _check_paths(name, run_dir, problems)
    model = read(ModelSpec, config.get("model"), "model", problems)
    data = read(DataSpec, config.get("data"), "data", problems)
    engine = read(EngineSpec, config.get("engine"), "engine", problems)
    sweep = read(SearchSpec, config.get("sweep"), "sweep", problems)
    tracking = read(TrackingSpec, config.get("tracking"), "tracking", problems)
    cluster = read(ClusterSpec, config.get("cluster"), "cluster", problems)
    peft = _open_section("peft", config, problems)
    trainer = _open_section("trainer", config, problems)
    strategy = _value(f"trainer.{STRATEGY}", Strategy, trainer.get(STRATEGY, "ddp"), problems)
    if sweep is not None:
        _check_sweep(sweep, problems)
    if cluster is not None and cluster.kind == "ray" and not cluster.address:
        problems.append(
            Problem(key="cluster.address", message="cluster=ray needs one: auto, or host:port.")
        )
    if None in (model, data, engine, sweep, tracking, cluster) or len(problems) > before:
        return None
    assert model is not None
    assert data is not None
    assert engine is not None
    assert sweep is not None
    assert tracking is not None
    assert cluster is not None
    train = TrainSpec(
        model=model,
        data=data,
        peft=peft,
        trainer=without_strategy(trainer),
        seed=top["seed"],
        budget=sweep.budget,
        evaluations=sweep.evaluations,
    )
    return Spec(
        name=name,
        run_dir=run_dir,
        storage=top["storage"],
        accept_changes=top["accept_changes"],
        seed=top["seed"],
        engine=engine,
        sweep=sweep,
        tracking=tracking,
        cluster=cluster,
        train=train,
        strategy=strategy,
        base={
            section: without_strategy(keys) if section == "trainer" else keys
            for section, keys in base.items()
        },
        public=public,
    )


def without_strategy(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer section as a trial has it."""
    return {name: value for name, value in trainer.items() if name != STRATEGY}


def section_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Sections that are no sections, and numbers that no float can hold: nothing can be asked of
    them, so nothing else is looked at."""
    return _endless("", config) + [
        Problem(
            key=name,
            value=config.get(name),
            message="must hold settings; choose one of its "
            f"files, as in conf/{name}/, or set {name}.KEY=...",
        )
        for name in _SECTIONS
        if not isinstance(config.get(name), Mapping)
    ]


def _endless(key: str, value: Any) -> list[Problem]:
    """Whole numbers of more than 64 bits, at any depth."""
    if isinstance(value, int) and abs(value) >= 2**63:
        digits = len(str(abs(value)))
        return [Problem(key=key, message=f"a number of {digits} digits: at most 64 bits fit.")]
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    head = f"{key}." if key else ""
    return [found for name, part in parts for found in _endless(f"{head}{name}", part)]


def read_train(config: Mapping[str, Any]) -> TrainSpec:
    """A trial's resolved config (`sweeps.config.trial_config.trial_config`) as a worker needs it.

    Raises:
        ConfigError: a searched value does not fit its key.
    """
    from sweeps.core.errors import ConfigError

    problems: list[Problem] = []
    model = read(ModelSpec, config["model"], "model", problems)
    data = read(DataSpec, config["data"], "data", problems)
    budget = read(BudgetSpec, config["budget"], "sweep.budget", problems)
    if model is None or data is None or budget is None:
        raise ConfigError(problems)
    return TrainSpec(
        model=model,
        data=data,
        peft=config["peft"],
        trainer=config["trainer"],
        seed=config["seed"],
        budget=budget,
        evaluations=config["evaluations"],
    )


def read(kind: type[Section], config: Any, section: str, problems: list[Problem]) -> Section | None:
    """One section as a dataclass; None, and `problems` longer, where it does not fit."""
    before = len(problems)
    if not isinstance(config, Mapping):
        problems.append(Problem(key=section, value=config, message="must be a mapping of keys."))
        return None
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in config:
        if key not in names:
            problems.append(_unknown(str(key), names, section))
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        key = f"{section}.{item.name}"
        if item.name in config:
            values[item.name] = _value(key, hints[item.name], config[item.name], problems)
        elif item.default is MISSING and item.default_factory is MISSING:
            problems.append(Problem(key=key, message="is missing and has no default; set it."))
    return kind(**values) if len(problems) == before else None


def _open_section(
    section: str, config: Mapping[str, Any], problems: list[Problem]
) -> dict[str, Any]:
    """A section whose keys are a library's own, and are checked where that library is known."""
    value = config.get(section)
    if isinstance(value, Mapping):
        return dict(value)
    problems.append(Problem(key=section, value=value, message="must be a mapping of keys."))
    return {}


def _value(key: str, hint: Any, value: Any, problems: list[Problem]) -> Any:
    """`value` as `hint` wants it, or a problem."""
    if isinstance(hint, type) and hint is BudgetSpec:
        return read(BudgetSpec, value, key, problems)
    fitting, allowed = _fit(hint, value)
    if fitting is _UNFIT:
        close = nearest(value, _words(hint)) if isinstance(value, str) else None
        problems.append(Problem(key=key, value=value, message=f"must be {allowed}.", nearest=close))
        return None
    if key in RANGES and isinstance(fitting, int | float) and not isinstance(fitting, bool):
        low, high, words = RANGES[key]
        if not low <= fitting <= high:
            problems.append(Problem(key=key, value=value, message=f"must be {words}."))
    return fitting


_UNFIT = object()


def _fit(hint: Any, value: Any) -> tuple[Any, str]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        tried = [_fit(option, value) for option in typing.get_args(hint)]
        fits = [fitting for fitting, _ in tried if fitting is not _UNFIT]
        return (fits[0] if fits else _UNFIT), " or ".join(words for _, words in tried)
    if origin is Literal:
        options = typing.get_args(hint)
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        return (value if value in options else _UNFIT), "one of " + ", ".join(options)
    if hint is type(None):
        return (None if value is None else _UNFIT), "null"
    if hint is bool:
        return (value if isinstance(value, bool) else _UNFIT), "true or false"
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and value.is_integer():
            return int(value), "a whole number"
        return (value if whole else _UNFIT), "a whole number"
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (value if number and math.isfinite(value) else _UNFIT), "a finite number"
    if hint is str:
        return (value if isinstance(value, str) else _UNFIT), "text"
    if origin is tuple:
        is_list = isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
        return (tuple(value) if is_list else _UNFIT), "a list of words"
    is_mapping = isinstance(value, Mapping)
    return (dict(value) if is_mapping else _UNFIT), "a mapping"


def _words(hint: Any) -> list[str]:
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [word for option in typing.get_args(hint) for word in _words(option)]


def _in_a_section(key: str, config: Mapping[str, Any]) -> str | None:
    """The full key, where a section has one of this name."""
    name = SPOKEN.get(key, key)
    sections = [part for part in _SECTIONS if name in (config.get(part) or {})]
    return f"{sections[0]}.{name}" if sections else None


def _unknown(key: str, names: list[str], section: str) -> Problem:
    full = f"{section}.{key}" if section else key
    close = nearest(key, names)
    near = f"{section}.{close}" if section and close else close
    return Problem(
        key=full, message=f"is no key of the config. There are: {', '.join(names)}.", nearest=near
    )


def _check_sweep(sweep: SearchSpec, problems: list[Problem]) -> None:
    if (sweep.budget.examples is None) == (sweep.budget.epochs is None):
        problems.append(
            Problem(
                key="sweep.budget",
                message="set one of sweep.budget.examples and sweep.budget.epochs, and the other "
                "to null.",
            )
        )
    if sweep.metric not in METRICS:
        problems.append(
            Problem(
                key="sweep.metric",
                value=sweep.metric,
                message=f"must be one of {', '.join(METRICS)}.",
                nearest=nearest(sweep.metric, METRICS),
            )
        )
    elif sweep.direction != (own := METRICS[sweep.metric]):
        better = {"minimize": "lower", "maximize": "higher"}[own]
        problems.append(
            Problem(
                key="sweep.direction",
                value=sweep.direction,
                message=f"would rank the worst trial first, since {sweep.metric} is better when "
                f"it is {better}: leave it out, or set sweep.direction={own}.",
            )
        )


def _check_paths(name: str, run_dir: str, problems: list[Problem]) -> None:
    if not _NAME.fullmatch(name):
        problems.append(
            Problem(
                key="name",
                value=name[:60],
                message="must be 1 to 100 letters, digits, dots, dashes or underscores, and start "
                "with a letter or digit: it names a folder.",
            )
        )
    parts = run_dir.split("/")
    if ".." in parts or not run_dir.isprintable() or any(len(part) > 200 for part in parts):
        problems.append(
            Problem(
                key="run_dir",
                value=run_dir[:60],
                message="must be a plain path: no .., no control characters, no part over 200 "
                "characters.",
            )
        )
