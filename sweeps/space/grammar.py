"""Parse values and sweeps in Hydra's grammar, by its public parser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

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
