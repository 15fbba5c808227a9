"""Parse values and sweeps in Hydra's grammar, by its public parser."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from sweeps.core.commands import among

GRAMMAR = "choice(a, b), range(1, 9, 2), interval(0.0, 0.3) or tag(log, interval(1e-5, 1e-2))"


def parse(text: Any) -> Any:
    """Parse a value, a list, or one of Hydra's sweeps.

    Raises:
        HydraException: `text` is none of them.
    """
    return OverridesParser.create().parse_override(f"key={text}").value()


def plain(option: Any) -> Any:
    """Replace Hydra's own types by plain ones, at any depth; a mapping's keys become text."""
    if isinstance(option, QuotedString):
        return option.text
    if isinstance(option, Mapping):
        return {str(plain(key)): plain(value) for key, value in option.items()}
    if isinstance(option, list | tuple):
        return [plain(item) for item in option]
    return option


# Functions of other tools (Ray Tune, W&B, Optuna, hyperopt), and ours.
_RANGES = {
    "uniform": "interval({0}, {1})",
    "suggest_float": "interval({0}, {1})",
    "loguniform": "tag(log, interval({0}, {1}))",
    "log_uniform": "tag(log, interval({0}, {1}))",
    "log_uniform_values": "tag(log, interval({0}, {1}))",
    "randint": "tag(int, interval({0}, {1}))",
    "int_uniform": "tag(int, interval({0}, {1}))",
    "suggest_int": "tag(int, interval({0}, {1}))",
    "lograndint": "tag(log, int, interval({0}, {1}))",
    "suggest_uniform": "interval({0}, {1})",
    "suggest_loguniform": "tag(log, interval({0}, {1}))",
    "suggest_discrete_uniform": "range({0}, {1}, {2})",
    "quniform": "range({0}, {1}, {2})",
    "q_uniform": "range({0}, {1}, {2})",
    "qrandint": "range({0}, {1}, {2})",
    # Steps of a logarithmic range are left out: there is no such sweep, and rates need none.
    "qloguniform": "tag(log, interval({0}, {1}))",
    "q_log_uniform_values": "tag(log, interval({0}, {1}))",
    "qlograndint": "tag(log, int, interval({0}, {1}))",
    "inv_log_uniform_values": "tag(log, interval({0}, {1}))",
    "q_log_uniform": "tag(log, interval({0}, {1}))",
}
_LOG = {"suggest_float": "loguniform", "suggest_int": "lograndint"}
_BOUNDS = (("low", "min", "lower"), ("high", "max", "upper"), ("q", "step"))
_STEPPED = ("suggest_float", "suggest_int")
_NAMED = re.compile(r"\s*(?:'[^']*'|\"[^\"]*\")\s*,")  # Optuna's name of a parameter, or hyperopt's
_LISTS = ("grid_search", "categorical", "suggest_categorical", "values", "grid", "choices")
_NONE = re.compile(r"(?<![^\s,\[(])None(?![^\s,\])])")
_NULL = re.compile(r"(?:^|,)\s*null\s*(?:,|$)", re.IGNORECASE)  # which Hydra's choice refuses
_CALL = re.compile(r"(?:ray\.)?(?:tune\.|hp\.|trial\.)?(\w+)\s*\((.*)\)\s*", re.DOTALL)


def foreign(expression: Any) -> str | None:
    """How a search in the words of another tool is written here; None if it is none that we know.

    Known are calls such as `loguniform(1e-5, 1e-2)`, and W&B's mappings of `values`, or of `min`,
    `max` and `distribution`.
    """
    if isinstance(expression, Mapping):
        return _of_mapping(expression)
    text = str(expression).strip()
    found = _CALL.fullmatch(text)
    if found is None:
        return None
    name, inner = found[1].lower(), found[2].strip()
    if name.startswith("suggest_") or text.startswith("hp."):
        inner = _NAMED.sub("", inner, count=1).strip()
    listed = _NONE.sub("null", inner.removeprefix("[").removesuffix("]"))
    has_null = "," in listed and _NULL.search(listed) is not None
    if name in (*_LISTS, "choice"):
        is_ours = text.startswith("choice")
        return listed if has_null else None if is_ours else f"choice({listed})"
    parts = [part.strip() for part in inner.split(",") if part.strip()]
    named = {
        key.strip(): value.strip()
        for key, sign, value in (part.partition("=") for part in parts)
        if sign
    }
    positional = [part for part in parts if "=" not in part]
    bounds = []
    for names in _BOUNDS:
        found_as = next((each for each in names if each in named), None)
        if found_as is not None:
            bounds.append(named[found_as])
        elif positional:
            bounds.append(positional.pop(0))
    if named.get("log", "").lower() == "true":
        name = _LOG.get(name, name)
    elif "step" in named and name in _STEPPED:
        name = "quniform"
    return _between(name, bounds)


def _between(name: str, parts: Sequence[str]) -> str | None:
    """A range of another tool, by its function's name and its bounds; None if it has others."""
    form = _RANGES.get(name)
    if form is None or len(parts) < (3 if "{2}" in form else 2):
        return None
    try:
        low, high, *rest = map(float, parts)
    except ValueError:
        return form.format(*parts)
    if "log" in form and low <= 0:  # W&B and hyperopt: from e^low to e^high
        return form.format(f"{math.exp(low):.4g}", f"{math.exp(high):.4g}")
    if "{2}" in form and rest:  # Hydra's range ends before its end
        are_whole = all(part.lstrip("-").isdecimal() for part in parts)
        beyond = f"{high + 1:.0f}" if are_whole else f"{high + rest[0] / 2:.12g}"
        return form.format(parts[0], beyond, parts[2])
    return form.format(*parts)


def _of_mapping(expression: Mapping[str, Any]) -> str | None:
    values = expression.get("values")
    if isinstance(values, list) and values:
        return among(values)
    low, high = expression.get("min"), expression.get("max")
    if low is None or high is None:
        return None
    name = str(expression.get("distribution", "uniform"))
    return _between(
        name if name in _RANGES else "uniform", [str(low), str(high), str(expression.get("q", 1))]
    )
