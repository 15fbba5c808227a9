"""What a sweep searched: its dimensions, and the config keys that each of them sets."""

from __future__ import annotations

from sweeps.history import History
from sweeps.space import parse_space, set_by


def dimension_keys(history: History) -> dict[str, tuple[str, ...]]:
    """What was searched: the name of each dimension and the config keys that it sets together."""
    sweep = history.spec.get("sweep", {})
    space = parse_space(sweep.get("space") or {}, sweep.get("when") or {}, problems=[])
    found = {dimension.name: set_by(dimension) for dimension in space.dimensions}
    known = {key for keys in found.values() for key in keys}
    for record in history.trials.values():
        for key in record.values:
            if key not in known:
                known.add(key)
                found[key] = (key,)
    return found


def searched_keys(history: History) -> tuple[str, ...]:
    """Every searched config key, in the order of the space."""
    return tuple(dict.fromkeys(key for keys in dimension_keys(history).values() for key in keys))
