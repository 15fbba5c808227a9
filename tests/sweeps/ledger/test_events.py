"""An event is its line and the other way round; what is no event of ours is refused in words."""

from __future__ import annotations

import json
import typing
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.real_sweeps import REPOSITORY

from sweeps.ledger import events
from sweeps.ledger.events import KINDS, Duplicate, Event, read_event

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(st.none() | st.booleans() | NUMBERS | st.text(), st.lists, max_leaves=3)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    events.Text: st.text(st.characters()),
    events.Keys: st.dictionaries(st.text(), JSON, max_size=3),
    events.Key: st.text("azAZ09_-", min_size=1, max_size=64),
    events.Trials: st.lists(st.text("azAZ09_-", min_size=1, max_size=64), max_size=2).map(tuple),
    events.Count: st.integers(0, 2**63 - 1),
    events.Flag: st.booleans(),
    events.Flag | None: st.booleans() | st.none(),
    events.Number | None: NUMBERS | st.none(),
    events.Mappings: st.lists(st.dictionaries(st.text(), JSON, max_size=2), max_size=2).map(tuple),
    events.Counts: st.lists(st.integers(0, 2**63 - 1)).map(tuple),
    events.Numbers: st.dictionaries(st.text(), NUMBERS, max_size=3),
    type(None): st.none(),
}


def strategy(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, which may be optional."""
    return VALUES[hint] if hint in VALUES else st.one_of(map(strategy, typing.get_args(hint)))


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from([*KINDS.values(), Duplicate]))
    hints = typing.get_type_hints(kind, include_extras=True)
    return kind(**{each.name: draw(strategy(hints[each.name])) for each in fields(kind)})


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(any_event())
def test_any_event_written_and_read_is_itself(event: Event) -> None:
    line = json.dumps(event.to_json(), allow_nan=False)
    read = read_event(json.loads(line))
    assert read == event
    assert json.dumps(read.to_json()) == line


def test_older_lines_are_read_and_written_again_byte_for_byte() -> None:
    lines = [
        line
        for ledger in (REPOSITORY / "tests/support/begun_by_ccb4d6b").glob("*/ledger.jsonl")
        for line in ledger.read_text().splitlines()
    ]
    newer = {"known", "learnt", "finalists", "removed", "interrupt", "request", "cost"}
    assert {json.loads(line)["event"] for line in lines} == KINDS.keys() - newer
    for line in lines:
        assert json.dumps(read_event(json.loads(line)).to_json()) == line


def test_a_newer_versions_fields_are_passed_over() -> None:
    line = {"event": "interrupt", "time": 1.5, "reason": "SIGINT", "mood": "calm"}
    assert read_event(line) == events.Interrupt(time=1.5, reason="SIGINT")


START = {"event": "start", "trial": "ab", "attempt": 1, "worker": "", "device": "", "step": 0}
END = {"event": "end", "trial": "ab", "attempt": 1, "state": "completed"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({**START, "trial": "../x"}, "trial is no key: '../x'"),
        ({**START, "trial": "ab\n"}, r"trial is no key: 'ab\\n'"),
        ({**START, "step": -1}, "step = -1"),
        ({**START, "step": True}, "step = True"),
        ({**START, "step": 2**63}, "step = 9223372036854775808"),
        ({**START, "worker": None}, "worker = None"),
        ({"event": "start", "trial": "ab"}, "attempt is missing"),
        ({"event": "ask", "trial": "ab"}, "number is missing"),
        ({"event": "ask", "trial": None}, "duplicate is missing"),
        ({**END, "totals": {"seconds": "1"}}, r"totals holds what is no number: {'seconds': '1'}"),
        ({**END, "totals": {"seconds": float("nan")}}, "totals holds what is no number"),
        ({**END, "totals": {"seconds": 10**400}}, "totals holds what is no number"),
    ],
)
def test_what_is_not_written_there_is_refused(line: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_event(line)
