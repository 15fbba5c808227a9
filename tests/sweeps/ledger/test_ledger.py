"""The ledger survives kills and full disks, and says where it is damaged."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sweep_events import new_ledger, of_kind, read

from sweeps.core.errors import LedgerDamagedError
from sweeps.ledger.events import Attempt, Event, Interrupt, Sweep
from sweeps.ledger.ledger import Ledger, Tail

EVENTS = [
    Sweep(time=1.0, name="größer", spec={"seed": 0}),
    Attempt(time=2.0, versions={"x": "1"}),
    Interrupt(time=3.0, reason="SIGINT\r\n"),
]
LINES = [json.dumps(event.to_json()).encode() + b"\n" for event in EVENTS]
WHOLE = b"".join(LINES)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "ledger.jsonl"
    path.write_bytes(data)
    return path


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = new_ledger(path)
    written = [
        ledger.append(Sweep(name="a\nb", spec={"lr": 1e-4})),
        ledger.append(Interrupt(reason="SIGINT")),
    ]
    ledger.close()
    assert read(path) == written
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize(
    "torn", [b'{"event": "end", "ti', b'{"event": "end"}', b"\xff\x00", b"{}\n"]
)
def test_a_torn_last_line_is_dropped_with_a_warning(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, found = write(tmp_path, WHOLE + torn), list[Event]()
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(path, found.append)
    assert found == EVENTS
    assert "the last line (4) is torn and was dropped" in caplog.text
    ledger.append(Interrupt(reason="x"))
    ledger.close()
    assert len(read(path)) == 4


@pytest.mark.parametrize("damage", [b"\n", b"{\n", b'{"event": "unknown"}\n', b"[1]\n", b"\x00\n"])
def test_damage_in_the_middle_is_refused_by_its_number(damage: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, LINES[0] + damage + LINES[2])
    with pytest.raises(
        LedgerDamagedError, match=r"ledger\.jsonl, line 2 is damaged.*run_dir="
    ) as e:
        new_ledger(path)
    assert e.value.exit_code == 1
    assert path.read_bytes() == LINES[0] + damage + LINES[2]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(WHOLE)))
def test_cut_anywhere_it_gives_a_beginning_of_the_events(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("cut"), WHOLE[:cut])
    new_ledger(path).close()
    count = WHOLE[:cut].count(b"\n")
    assert read(path) == EVENTS[:count]
    assert path.read_bytes() == b"".join(LINES[:count])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_clear_error_or_leaves_events_in_place(
    place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :]
    with contextlib.suppress(LedgerDamagedError):
        events = read(write(tmp_path_factory.mktemp("byte"), data))
        assert sum(one != other for one, other in zip(events, EVENTS, strict=False)) <= 1


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = new_ledger(path, "first")
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))  # room for a part of a line
    try:
        with pytest.raises(OSError, match="No space left"):
            ledger.append(Interrupt(reason="second"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    ledger.append(Interrupt(reason="third"))
    ledger.close()
    assert [event.reason for event in of_kind(read(path), Interrupt)] == ["first", "third"]


def test_numbers_that_json_cannot_hold_are_never_written(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.append(Interrupt(reason=float("nan")))
    assert (tmp_path / "ledger.jsonl").read_bytes() == b""


def test_a_tail_gives_complete_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    tail = Tail(path)
    seen = [list(tail.events())]
    for piece in (WHOLE[:10], WHOLE[10:-5], WHOLE[-5:], b"not json\n[1]\n" + LINES[0]):
        with open(path, "ab") as file:
            file.write(piece)
        seen.append(list(tail.events()))
    assert seen == [[], [], EVENTS[:2], EVENTS[2:], EVENTS[:1]]
