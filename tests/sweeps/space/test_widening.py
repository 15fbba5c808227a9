"""Whether a space has only grown, and in words what it has lost."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.space.parser import parse_space
from sweeps.space.space import Space
from sweeps.space.widening import is_same, lost

KEY = "x.y"


def space(expression: Any, key: str = KEY) -> Space:
    return parse_space({key: expression}, {}, [])


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        ("choice(4, 8)", "choice(16, 8, 4)", None),
        ("range(1, 4)", "choice(1, 2, 3, 4)", None),
        ("choice(4, 8)", "choice(8, 16)", "lacks 4"),
        ("choice(4, 8)", "choice(4.0, 8)", "lacks 4"),
        ([{"x.y": 1}, {"x.y": 2}], [{"x.y": 2}, {"x.y": 3}, {"x.y": 1}], None),
        ("int(interval(4, 8))", "int(interval(4, 9))", None),
        ("interval(0.0, 0.1)", "interval(0.0, 0.05)", "does not hold 0 to 0.1"),
        ("interval(0.1, 0.2)", "tag(log, interval(0.1, 0.2))", "on another scale"),
        ("choice(4, 8)", "interval(4, 8)", "in another way"),
    ],
)
def test_a_space_grows_by_options_and_ends(before: Any, now: Any, why: str | None) -> None:
    found = lost(space(before), space(now))
    assert (KEY in found) == (why is not None)
    if why:
        assert why in found[KEY]


def test_no_key_may_come_or_go() -> None:
    one, other = space("choice(4, 8)"), space("choice(4, 8)", "x.z")
    assert lost(one, other) == {KEY: "is no longer searched", "x.z": "was not searched"}
    assert is_same(one, space("4,8"))
    assert not is_same(one, space("8,4"))
