"""Composes conf/ and what is typed over it, plainly: no Hydra, and nothing of the product."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[2] / "conf"
SECTIONS = ("model", "data", "peft", "trainer")

_LOADER = type("Yaml12", (yaml.SafeLoader,), {})
_LOADER.add_implicit_resolver(  # 1e-4 is a number
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


@dataclass(frozen=True)
class Options:
    """The values that are tried; a mapping sets several keys together."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Between:
    """Any number between two, both included."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


Space = dict[str, Options | Between]


def base_config(sweep: str, **groups: str) -> dict[str, Any]:
    """All keys as the files of these choices set them; `sweep.space` as the file writes it."""
    top = _read(CONF / "config.yaml")
    config = {key: value for key, value in top.items() if key != "defaults"}
    for entry in top["defaults"]:
        if entry == "_self_":
            continue
        ((group, choice),) = entry.items()
        chosen = sweep if group == "sweep" else groups.get(group, choice)
        _merge(config, _group(group, chosen))
    return config


def _read(path: Path) -> dict[str, Any]:
    values = yaml.load(path.read_text(), _LOADER)
    assert isinstance(values, dict)
    return values


def _group(group: str, choice: str) -> dict[str, Any]:
    path = CONF / group / f"{choice}.yaml"
    values, merged = _read(path), dict[str, Any]()
    for above in values.pop("defaults", []):
        if above != "_self_":
            _merge(merged, _group(group, above))
    package = re.match(r"# @package (\S+)", path.read_text())
    place = package[1] if package else group
    _merge(merged, values if place == "_global_" else {place: values})
    return merged


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def set_key(config: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for part in above:
        config = config.setdefault(part, {})
    config[last] = value


def get_key(config: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def space_of_file(config: Mapping[str, Any]) -> Space:
    """The space of a shipped sweep, whose expressions are few and simple."""
    return {name: _dimension(text) for name, text in config["sweep"]["space"].items()}


def _dimension(text: Any) -> Options | Between:
    if isinstance(text, list):
        return Options(tuple(text))
    if found := re.fullmatch(r"choice\((.*)\)", text):
        return Options(tuple(yaml.load(f"[{found[1]}]", _LOADER)))
    found = re.fullmatch(r"(tag\(log, )?interval\((\S+), (\S+?)\)+", text)
    assert found is not None, text
    return Between(float(found[2]), float(found[3]), log=bool(found[1]))


def keys_of(name: str, dimension: Options | Between) -> tuple[str, ...]:
    first = dimension.values[0] if isinstance(dimension, Options) else None
    return tuple(first) if isinstance(first, dict) and "." in next(iter(first), "") else (name,)


def combinations(
    space: Space, when: Mapping[str, tuple[str, Any]], config: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """What is set in each trial of a grid; of an interval, its ends.

    Args:
        when: searched key -> the key and value that it asks for.
    """
    yield from _combinations(list(space.items()), when, config, {})


def _combinations(
    left: list[tuple[str, Options | Between]],
    when: Mapping[str, tuple[str, Any]],
    config: Mapping[str, Any],
    found: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    if not left:
        yield found
        return
    (name, dimension), *rest = left
    if name in when:
        asked, wanted = when[name]
        if found.get(asked, get_key(config, asked)) != wanted:
            yield from _combinations(rest, when, config, found)
            return
    linked = keys_of(name, dimension) != (name,)
    is_counted = isinstance(dimension, Options)
    for value in dimension.values if is_counted else (dimension.low, dimension.high):
        new = value if linked else {name: value}
        yield from _combinations(rest, when, config, {**found, **new})
