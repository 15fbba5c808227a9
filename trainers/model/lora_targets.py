"""Checks the modules and layers that `peft.*` names against those that a model has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweeps.core.commands import typed
from sweeps.core.errors import Problem, nearest

_SHORTHAND = "all-linear"
_ANY_LAYER = r"[^.]*"  # the list that holds the layers, if peft.layers_pattern names none


def missing_targets(
    peft: Mapping[str, Any],
    module_names: Sequence[str],
    searched: Mapping[str, Sequence[Any]] | None = None,
) -> list[Problem]:
    """Find the modules, layers and patterns of `peft` that a model with these names lacks.

    Args:
        searched: `peft.NAME` -> the values that are searched, each of which is checked.
    """
    searched = searched or {}
    methods = searched.get("peft.method", [peft.get("method", "lora")])
    if all(method == "full" for method in methods):
        return []
    found = []
    for variant in _variants(peft, searched):
        found += [each for each in _problems(variant, module_names, searched) if each not in found]
    return found


def _variants(
    peft: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
) -> Iterator[Mapping[str, Any]]:
    """The section with each searched value by itself; as it stands if none of its keys is."""
    ours = {key.removeprefix("peft."): searched[key] for key in searched if key[:5] == "peft."}
    yield {**peft, **{name: values[0] for name, values in ours.items() if values}}
    for name, values in ours.items():
        for value in values[1:]:
            yield {**peft, **{other: ours[other][0] for other in ours if ours[other]}, name: value}


def _problems(
    peft: Mapping[str, Any], names: Sequence[str], searched: Mapping[str, Sequence[Any]]
) -> Iterator[Problem]:
    for name in ("target_modules", "exclude_modules"):
        value = peft.get(name)
        if isinstance(value, str):
            yield from _unmatched(name, value, names, searched.get(f"peft.{name}", ()))
        elif isinstance(value, list | tuple | set):
            yield from _absent(name, value, names)
    saved = peft.get("modules_to_save")
    if isinstance(saved, list | tuple | set):
        yield from _absent("modules_to_save", saved, names)
    yield from _layer_problems(peft, names)
    for name in ("rank_pattern", "alpha_pattern"):
        value = peft.get(name)
        if isinstance(value, Mapping):
            yield from _pattern_problems(name, value, _targeted(peft, names) or names)


def _absent(
    name: str, modules: Sequence[Any] | set[Any], names: Sequence[str]
) -> Iterator[Problem]:
    last = _last_names(names)
    for module in modules:
        if isinstance(module, str) and not _has(names, module):
            yield Problem(
                key=f"peft.{name}",
                value=module,
                message=f"the model has no module of this name; it has {', '.join(last)}.",
                nearest=nearest(module, last),
            )


def _unmatched(
    name: str, pattern: str, names: Sequence[str], searched: Sequence[Any]
) -> Iterator[Problem]:
    """A text is a pattern that a module's whole name must match, so a bare name matches nothing."""
    try:
        if pattern.lower() == _SHORTHAND or any(re.fullmatch(pattern, each) for each in names):
            return
    except re.error as error:
        message = f"not a regular expression: {error}"
        yield Problem(key=f"peft.{name}", value=pattern, message=message)
        return
    said = "a text must match a module's whole name, such as "
    said += f"{max(names, key=len)}, and this one matches none"
    meant = [each for each in searched if isinstance(each, str) and _has(names, each)]
    if _has(names, pattern):
        word = typed(f"peft.{name}", meant or [pattern])
        many = "For modules of these names write" if len(meant) > 1 else "For the name alone write"
        message = f"{said}. {many} {word}"
        yield Problem(key=f"peft.{name}", value=pattern, message=message)
        return
    last = _last_names(names)
    message = f"{said}. The model has {', '.join(last)}."
    near = nearest(pattern, last)
    yield Problem(key=f"peft.{name}", value=pattern, message=message, nearest=near)


def _layer_problems(peft: Mapping[str, Any], names: Sequence[str]) -> Iterator[Problem]:
    """Layers, and lists of layers, that the model lacks."""
    given = peft.get("layers_pattern") or []
    patterns = [given] if isinstance(given, str) else list(given)
    there = {pattern: _layers(names, pattern) for pattern in patterns or [_ANY_LAYER]}
    for pattern in patterns:
        if not there[pattern]:
            lists = sorted({found[1] for each in names if (found := _NUMBERED.fullmatch(each))})
            message = f"the model has no layers of this name; it has {', '.join(lists) or 'none'}."
            near = nearest(str(pattern), lists)
            yield Problem(key="peft.layers_pattern", value=pattern, message=message, nearest=near)
    layers = peft.get("layers_to_transform")
    if layers is None or not all(there.values()):
        return
    known = set().union(*there.values())
    for layer in [layers] if isinstance(layers, int) else layers:
        if layer not in known:
            message = f"the model has no such layer; it has {min(known)} to {max(known)}."
            yield Problem(key="peft.layers_to_transform", value=layer, message=message)


_NUMBERED = re.compile(r"(?:.*\.)?([^.]+)\.\d+(?:\..*)?")


def _layers(names: Sequence[str], pattern: str) -> set[int]:
    """The numbers of the layers that lie in a list of this name, as PEFT finds them."""
    try:
        sought = re.compile(rf"(?:.*\.)?(?:{pattern})\.(\d+)\..*")
    except re.error:
        return set()
    return {int(found[1]) for each in names if (found := sought.fullmatch(each))}


def _targeted(peft: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The modules that `peft.target_modules` names."""
    targets = peft.get("target_modules") or _SHORTHAND
    if isinstance(targets, str):
        is_short = targets.lower() == _SHORTHAND
        return [each for each in names if is_short or re.fullmatch(targets, each)]
    return [each for each in names if any(_has([each], str(target)) for target in targets)]


def _pattern_problems(
    name: str, patterns: Mapping[str, Any], names: Sequence[str]
) -> Iterator[Problem]:
    last = _last_names(names)
    for pattern in patterns:
        try:
            sought = re.compile(rf"(?:.*\.)?(?:{str(pattern).removeprefix('^')})")
        except re.error as error:
            message = f"not a regular expression: {error}"
            yield Problem(key=f"peft.{name}", value=pattern, message=message)
            continue
        if not any(sought.fullmatch(each) for each in names):
            message = f"no module that has an adapter matches it; there are {', '.join(last)}."
            near = nearest(str(pattern), last)
            yield Problem(key=f"peft.{name}", value=pattern, message=message, nearest=near)


def _has(names: Sequence[str], module: str) -> bool:
    return any(name == module or name.endswith(f".{module}") for name in names)


def _last_names(names: Sequence[str]) -> list[str]:
    """The last parts of the names; those of layers in a list are numbers, which name nothing."""
    last = {name.rpartition(".")[2] for name in names}
    return sorted(each for each in last if not each.isdigit())
