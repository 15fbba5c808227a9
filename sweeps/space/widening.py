"""What a space has lost against another: on its folder a sweep's space may only grow."""

from __future__ import annotations

from sweeps.space.space import Choice, Dimension, Interval, Space, label


def is_same(before: Space, now: Space) -> bool:
    """Whether two spaces give the same configs in the same order."""
    return (before.dimensions, before.when) == (now.dimensions, now.when)


def lost(before: Space, now: Space) -> dict[str, str]:
    """Each dimension that did not only grow, and why, in words; empty if none.

    A choice grows by options, in any order; an interval by its ends.
    """
    old = {each.name: each for each in before.dimensions}
    new = {each.name: each for each in now.dimensions}
    found = {name: "is no longer searched" for name in old if name not in new}
    found |= {name: "was not searched" for name in new if name not in old}
    for name in old.keys() & new.keys():
        if why := _lost(old[name], new[name]):
            found[name] = why
    return found


def _lost(before: Dimension, now: Dimension) -> str | None:
    if isinstance(before, Choice) and isinstance(now, Choice):
        kept = {repr(label(option)) for option in now.options}  # 1 and 1.0 are two trials
        gone = [str(option) for option in before.options if repr(label(option)) not in kept]
        return f"lacks {', '.join(gone)}" if gone else None
    if not (isinstance(before, Interval) and isinstance(now, Interval)):
        return "is searched in another way"
    if (before.log, before.integer) != (now.log, now.integer):
        return "is searched on another scale"
    (low, high), (new_low, new_high) = before.ends, now.ends
    return f"does not hold {low:g} to {high:g}" if new_low > low or new_high < high else None
