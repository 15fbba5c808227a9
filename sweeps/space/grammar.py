"""Parse values and sweeps in Hydra's grammar, by its public parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    "quniform": "range({0}, {1}, {2})",
    "q_uniform": "range({0}, {1}, {2})",
    "qrandint": "range({0}, {1}, {2})",
}
_LISTS = ("grid_search", "categorical", "suggest_categorical", "values", "grid", "choices")
_NONE = re.compile(r"(?<![^\s,\[(])None(?![^\s,\])])")
_NULL = re.compile(r"(?:^|,)\s*null\s*(?:,|$)", re.IGNORECASE)  # which Hydra's choice refuses
_CALL = re.compile(r"(?:tune\.|hp\.|trial\.)?(\w+)\s*\((.*)\)\s*", re.DOTALL)


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
    listed = _NONE.sub("null", inner.removeprefix("[").removesuffix("]"))
    has_null = "," in listed and _NULL.search(listed) is not None
    if name in (*_LISTS, "choice"):
        is_ours = text.startswith("choice")
        return listed if has_null else None if is_ours else f"choice({listed})"
    given = [part.partition("=")[2] or part for part in inner.split(",")]
    parts = [part.strip() for part in given if part.strip()]
    form = _RANGES.get(name)
    needed = 3 if form and "{2}" in form else 2
    return form.format(*parts) if form and len(parts) >= needed else None


def _of_mapping(expression: Mapping[str, Any]) -> str | None:
    values = expression.get("values")
    if isinstance(values, list) and values:
        return among(values)
    low, high = expression.get("min"), expression.get("max")
    if low is None or high is None:
        return None
    name = str(expression.get("distribution", "uniform"))
    form = _RANGES.get(name, _RANGES["uniform"])
    return form.format(low, high, expression.get("q", 1))
