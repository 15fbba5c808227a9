"""The fault hook, and a Coordinator that is killed at each point of its writes; no training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.driving import SMALL, drive, make, open_sweep, story
from support.sweep_events import new_ledger

from sweeps.core import fault_injection
from sweeps.core.ending import Cause
from sweeps.core.errors import LedgerWriteError
from sweeps.core.trial import State
from sweeps.ledger.events import Interrupt
from sweeps.storage.durable_writes import append_lines, write_text

# A whole sweep of four trials that are formulas; the fault is in the environment.
CHILD = """
import sys
from pathlib import Path
from support.driving import SMALL, drive, make, open_sweep
drive(open_sweep(make(SMALL, search="tpe", trials=4), Path(sys.argv[1])))
"""
TESTS = Path(__file__).parents[2]


def run(root: Path, fault: str) -> int:
    environment = dict(os.environ, PYTHONPATH=f"{TESTS}:{TESTS.parent}", SWEEPS_FAULT=fault)
    words = [sys.executable, "-c", CHILD, str(root)]
    return subprocess.run(words, env=environment, check=False, capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        *(f"kill:ledger.{at}:{n}" for at in ("before", "middle", "after") for n in (1, 9, 20)),
        *(f"kill:text.{where}:2" for where in ("before", "middle", "rename", "after")),
    ],
)
def test_killed_at_any_write_the_sweep_ends_as_if_it_had_not_been(
    fault: str, tmp_path: Path
) -> None:
    made = make(SMALL, search="tpe", trials=4)
    assert run(tmp_path / "killed", fault) == -signal.SIGKILL
    again = open_sweep(made, tmp_path / "killed")
    drive(again)
    whole = open_sweep(made, tmp_path / "whole")
    drive(whole)
    assert story(again) == story(whole)
    assert again.history.count(State.COMPLETED) == 4
    left = [path.name for path in (tmp_path / "killed").rglob(".*") if path.is_file()]
    assert len(left) <= 1  # the draft that the kill left, which nothing reads


def test_unarmed_it_costs_next_to_nothing() -> None:
    import timeit

    assert (
        min(timeit.repeat(lambda: fault_injection.passing("step"), number=10_000)) < 0.05
    )  # 5 us each


@pytest.mark.parametrize("text", ["kill:nowhere:1", "burn:step:1", "kill:step", "kill:step:x"])
def test_a_fault_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any: a test armed nothing)
        fault_injection.parse(text)


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> object:
    """Arms a fault in this process."""

    def arm(text: str) -> None:
        fault = fault_injection.parse(text)
        monkeypatch.setattr(fault_injection, "_armed", lambda: (fault,))

    return arm


def test_a_full_disk_at_a_write_leaves_the_old_text(tmp_path: Path, armed: object) -> None:
    path = tmp_path / "table"
    write_text(path, "old")
    for where in ("before", "middle", "rename"):
        armed(f"full:text.{where}:1")  # type: ignore[operator]
        with pytest.raises(OSError, match="No space left"):
            write_text(path, "new and longer")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["table"]


def test_a_full_disk_in_the_middle_of_a_ledger_line_leaves_no_half(
    tmp_path: Path, armed: object
) -> None:
    ledger = new_ledger(tmp_path / "ledger.jsonl", "first")
    armed("full:ledger.middle:1")  # type: ignore[operator]
    with pytest.raises(OSError, match="No space left"):
        ledger.append(Interrupt(reason="second"))
    ledger.append(Interrupt(reason="third"))
    ledger.close()
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["first", "third"]


def test_where_the_ledger_cannot_be_written_the_sweep_stops_and_goes_on_later(
    tmp_path: Path, armed: object
) -> None:
    made = make(SMALL, search="grid", trials=None)
    coordinator = open_sweep(made, tmp_path / "full")
    armed("full:ledger.before:9+")  # type: ignore[operator]
    with pytest.raises(LedgerWriteError, match=r"cannot be written \(No space left on device\)"):
        drive(coordinator)
    assert coordinator.stop is not None
    assert coordinator.stop.cause is Cause.LEDGER_UNWRITABLE
    assert coordinator.is_finished
    assert coordinator.ask() is None
    running = next(r.key for r in coordinator.history.unfinished())
    assert not coordinator.release(running, "its worker died")
    armed("kill:step:1")  # type: ignore[operator]
    again = open_sweep(made, tmp_path / "full")
    drive(again)
    whole = open_sweep(made, tmp_path / "whole")
    drive(whole)
    assert story(again) == story(whole)


def test_where_a_trials_folder_cannot_be_made_it_stops_and_says_so(
    tmp_path: Path, armed: object
) -> None:
    coordinator = open_sweep(make(SMALL, search="grid", trials=None), tmp_path)
    armed("full:text.before:1+")  # type: ignore[operator]
    assert coordinator.ask() is None
    assert coordinator.stop is not None
    assert coordinator.stop.cause is Cause.NO_SUGGESTION
    assert "No space left" in str(coordinator.stop)


def test_rows_for_the_eye_may_be_lost(tmp_path: Path) -> None:
    append_lines(tmp_path / "metrics.jsonl", [{"step": 1}])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_the_witness_counts_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_injection, "_witness", lambda: str(tmp_path / "witness"))
    fault_injection.witness("key", 3, 1)
    fault_injection.witness("key", 4, 1)
    assert (tmp_path / "witness").read_text() == "key 3 1\nkey 4 1\n"
