"""Read plain nested dictionaries into the dataclasses of `spec`, and tell every error at once."""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from sweeps.config.keys import STRATEGY
from sweeps.config.setting import Kind
from sweeps.config.spec import (
    METRICS,
    BudgetSpec,
    ClusterSpec,
    Config,
    DataSpec,
    ModelSpec,
    SearchSpec,
    Spec,
    TrainSpec,
    Warm,
)
from sweeps.core.commands import override, typed
from sweeps.core.errors import ConfigError, Problem, nearest
from sweeps.core.naming import ELSEWHERE, SPOKEN
from sweeps.core.secrets import is_secret_key

Section = TypeVar("Section")

_SECTIONS = [
    name
    for name, hint in typing.get_type_hints(Config).items()
    if is_dataclass(hint) or typing.get_origin(hint) is Mapping
]
# What other tools call a value of ours.
_SAID = {
    **dict.fromkeys(("bayes", "bayesian", "bayesopt", "optuna", "hyperopt"), "tpe"),
    **{"sobol": "qmc", "cma": "cmaes", "cma-es": "cmaes", "disabled": "off", "none": "off"},
    **{"fp32": "float32", "fp16": "float16", "half": "float16", "16-mixed": "float16"},
    **{"bf16": "bfloat16", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16"},
    **{"4bit": "nf4", "int4": "nf4", "8bit": "int8", "min": "minimize", "max": "maximize"},
    **dict.fromkeys(("sha", "successive_halving", "successivehalving", "asynchyperband"), "asha"),
    **{"medianstopping": "median", "nop": "none", "loss": "eval_loss", "val_loss": "eval_loss"},
    **{"eval/loss": "eval_loss", "validation_loss": "eval_loss", "train/loss": "train_loss"},
}
_SUFFIX = re.compile(r"[_-]?(?:sampler|pruner|scheduler|search|rule)$")  # of other tools' classes
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
    """The sweep's spec; None, and `problems` longer, if something is wrong with it.

    Args:
        config: the composed and resolved config.
        base: its training sections, unresolved.
        public: the config as it may be written down.
        default_name, default_run_dir: if the config leaves them open.
    """
    before = len(problems)
    values = _values(Config, config, "", problems)
    trainer = values["trainer"] or {}
    strategy = _kinds(Spec)[STRATEGY]
    chosen = _value(f"trainer.{STRATEGY}", strategy, trainer.get(STRATEGY, "ddp"), problems)
    name, run_dir = values.get("name") or default_name, values.get("run_dir") or default_run_dir
    problems += _path_problems(name, run_dir)
    problems += sweep_problems(values["sweep"]) + _cluster_problems(values["cluster"])
    if len(problems) > before:
        return None
    sections = {section: values.pop(section) for section in ("model", "data", "peft", "trainer")}
    sections["trainer"] = without_strategy(trainer)
    sweep: SearchSpec = values["sweep"]
    train = TrainSpec(
        **sections, seed=values["seed"], budget=sweep.budget, evaluations=sweep.evaluations
    )
    trial_base = {**base, "trainer": without_strategy(base["trainer"])} if base else base
    own = {"name": name, "run_dir": run_dir, "strategy": chosen, "train": train}
    return Spec(**{"storage": None, **values, **own}, base=trial_base, public=public)


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
    problems: list[Problem] = []
    model = _read(ModelSpec, config["model"], "model", problems)
    data = _read(DataSpec, config["data"], "data", problems)
    budget = _read(BudgetSpec, config["budget"], "sweep.budget", problems)
    if model is None or data is None or budget is None:
        raise ConfigError(problems)
    as_it_is = {name: config[name] for name in ("peft", "trainer", "seed", "evaluations")}
    warm = Warm(**config["warm"]) if "warm" in config else None
    return TrainSpec(model=model, data=data, budget=budget, warm=warm, **as_it_is)


def key_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of keys SECTION.NAME of the config, as their fields hold them.

    Raises:
        ConfigError: a value does not fit its key.
        KeyError: there is no such key.
    """
    problems: list[Problem] = []
    read = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        read[key] = _value(key, _kinds(_kinds(Config)[section])[name], value, problems)
    if problems:
        raise ConfigError(problems)
    return read


def _read(
    section: type[Section], config: Any, prefix: str, problems: list[Problem]
) -> Section | None:
    """A section as a dataclass; None, and `problems` longer, if it does not fit."""
    if not isinstance(config, Mapping):
        problems.append(Problem(key=prefix, value=config, message="must be a mapping of keys."))
        return None
    before = len(problems)
    values = _values(section, config, prefix, problems)
    return section(**values) if len(problems) == before else None


def _values(
    section: Any, config: Mapping[str, Any], prefix: str, problems: list[Problem]
) -> dict[str, Any]:
    """Each key's value; None, and `problems` longer, if it does not fit."""
    kinds = _kinds(section)
    problems += [_unknown(str(key), kinds, prefix, config) for key in config if key not in kinds]
    values = {}
    for declared in fields(section):
        name, key = declared.name, f"{prefix}.{declared.name}".lstrip(".")
        if name in config:
            values[name] = _value(key, kinds[name], config[name], problems)
        elif declared.default is MISSING and declared.default_factory is MISSING:
            problems.append(Problem(key=key, message="is missing and has no default; set it."))
            values[name] = None
    return values


def _near(value: str, options: Sequence[str]) -> str | None:
    """The option that was most likely meant."""
    plain = _SUFFIX.sub("", value.lower().removeprefix("torch."))
    said = plain if plain in options else _SAID.get(plain)
    return said if said in options else nearest(value, options)


def _value(key: str, kind: Any, value: Any, problems: list[Problem]) -> Any:
    """The value as its field holds it; None, and `problems` longer, if it does not fit."""
    if not isinstance(kind, Kind):
        return _read(kind, value, key, problems)
    if value == "None" and _fits(kind, None):
        message = f"is a text here; nothing is written null: {typed(key, None)}"
        problems.append(Problem(key=key, value=value, message=message))
        return None
    try:
        return kind.read(value)
    except ValueError as error:
        close = _near(value, kind.options) if isinstance(value, str) else None
        message = f"must be {error}.{_as_typed(key, kind, value)}"
        problems.append(Problem(key=key, value=value, message=message, nearest=close))
        return None


def _as_typed(key: str, kind: Kind, value: Any) -> str:
    """How a number is written that is meant as text, and one word as a list of one."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    for meant in ([str(value)] if is_number else []) + [[value]]:
        if _fits(kind, meant) and not is_secret_key(key):
            return f" Write {typed(key, meant)}"
    return ""


def _fits(kind: Kind, value: Any) -> bool:
    try:
        kind.read(value)
    except ValueError:
        return False
    return True


@functools.cache
def _kinds(section: Any) -> dict[str, Any]:
    """Each key of a section and its `Kind`, or its dataclass if it is a section itself."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {name: hint if is_dataclass(hint) else Kind(hint) for name, hint in hints.items()}


def _unknown(name: str, names: Iterable[str], prefix: str, config: Mapping[str, Any]) -> Problem:
    """A key that its section does not have; at the top, it may be one of a section's."""
    head = f"{prefix}." if prefix else ""
    near = nearest(name, names)
    spoken = SPOKEN.get(name, name)
    within = [
        f"{section}.{spoken}"
        for section in ([] if prefix else _SECTIONS)
        if isinstance(config.get(section), Mapping) and spoken in config[section]
    ]
    message = f"is no key of the config. There are: {', '.join(names)}."
    likely = within[0] if within else ELSEWHERE.get(name) or (head + near if near else None)
    return Problem(key=head + name, message=message, nearest=likely)


def sweep_problems(sweep: SearchSpec | None) -> list[Problem]:
    """What the keys of the sweep section say against each other."""
    found: list[Problem] = []
    if sweep is None:
        return found
    if (sweep.budget.examples is None) == (sweep.budget.epochs is None):
        message = "set one of sweep.budget.examples and sweep.budget.epochs, and the other to null."
        found.append(Problem(key="sweep.budget", message=message))
    if sweep.finalists is not None and sweep.repeats == 1:
        message = (
            "the best configs get further seeds, and sweep.repeats=1 has none: "
            f"{override('sweep.repeats', 3)} gives each of them three."
        )
        found.append(Problem(key="sweep.finalists", value=sweep.finalists, message=message))
    own = METRICS[sweep.metric]
    if sweep.direction != own:
        better = {"minimize": "lower", "maximize": "higher"}[own]
        message = (
            f"would rank the worst trial first, since {sweep.metric} is better when it is "
            f"{better}: leave it out, or set sweep.direction={own}."
        )
        found.append(Problem(key="sweep.direction", value=sweep.direction, message=message))
    return found


def _cluster_problems(cluster: ClusterSpec | None) -> list[Problem]:
    if cluster is None or cluster.kind == "local" or cluster.address:
        return []
    message = "cluster=ray needs one: auto, or host:port."
    return [Problem(key="cluster.address", message=message)]


def _path_problems(name: str, run_dir: str) -> list[Problem]:
    """A name and a folder that could lead elsewhere."""
    found = []
    if not _NAME.fullmatch(name):
        message = (
            "must be 1 to 100 letters, digits, dots, dashes or underscores, and start with a "
            "letter or digit: it names a folder."
        )
        found.append(Problem(key="name", value=name[:60], message=message))
    parts = run_dir.split("/")
    if ".." in parts or not run_dir.isprintable() or any(len(part) > 200 for part in parts):
        message = "must be a plain path: no .., no control characters, no part over 200 characters."
        found.append(Problem(key="run_dir", value=run_dir[:60], message=message))
    return found
