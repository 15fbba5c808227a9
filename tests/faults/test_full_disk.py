"""The disk is full: what was written stays whole, the message says what to do, and it goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.real_sweeps import of
from support.witnessed import GRID, Witnessed, has_losses_of, judge

from trainers.trial.checkpoint import verify

pytestmark = pytest.mark.faults

Make = Callable[..., Witnessed]
Note = Callable[[str, object], None]


@pytest.mark.parametrize("point", ["checkpoint.middle", "checkpoint.before"])
def test_full_for_a_moment_costs_a_retry(
    point: str, engine: str, make: Make, whole: Make, note: Note
) -> None:
    command = make(engine, GRID)
    command.arm("full", point, 3)
    assert command.run() == 0, command.output
    assert command.fired
    (retry,) = of(command.events(), "retry")
    assert "the disk is full: a checkpoint takes about" in retry["reason"]
    assert "MB are free" in retry["reason"]
    command.kills = 1
    verdict = judge(command, whole(engine, GRID))
    note(f"disk full for a moment at {point}", verdict)
    assert verdict.is_good, verdict


@pytest.mark.parametrize(
    ("point", "number"),
    [("checkpoint.middle", "3+"), ("ledger.middle", "20+"), ("text.middle", "4+")],
)
def test_full_for_good_it_stops_and_goes_on_when_there_is_room(
    point: str, number: str, engine: str, make: Make, whole: Make, note: Note
) -> None:
    command = make(engine, GRID, "sweep.max_retries=0")
    command.arm("full", point, number, once=False)
    code = command.run()
    assert code in (1, 4), command.output
    assert "No space left" in command.output or "disk is full" in command.output
    assert "Traceback" not in command.output
    for folder in command.run_dir.glob("trials/*/checkpoints/step-*"):
        verify(folder)
    stopped = command.events()
    assert not of(stopped, "end") or all(e["state"] == "completed" for e in of(stopped, "end"))
    command.fault = ""
    assert command.run() == 0, command.output
    command.kills = 1
    verdict = judge(command, whole(engine, GRID))
    note(f"disk full for good at {point}, exit {code}, then room", verdict)
    assert verdict.is_good, verdict
    assert command.events()[: len(stopped)] == stopped


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB, where that is allowed."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here; the injected ENOSPC stands for it")
    yield place
    subprocess.run(["umount", str(place)], check=False, capture_output=True)


def fill(disk: Path, leave_mb: float) -> Path:
    """Take up all but so much room, whatever else is written or removed meanwhile."""
    path, block = disk / "filler", 2**16
    with open(path, "wb", buffering=0) as file:
        while shutil.disk_usage(disk).free > leave_mb * 2**20 + block:
            with suppress(OSError):
                file.write(b"x" * block)
    return path


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    engine: str, make: Make, small_disk: Path, note: Note
) -> None:
    fill(small_disk, leave_mb=3)
    command = make(engine, GRID)
    command.start(f"run_dir={small_disk / 'run'}")
    assert command.wait() == 1, command.output
    assert "MB are free. Free some room" in command.output
    assert "Traceback" not in command.output
    note("a disk of 3 MB", "refused before the start, with what it takes")


def test_a_disk_that_fills_up_and_then_has_room_again(
    engine: str, make: Make, whole: Make, small_disk: Path, note: Note
) -> None:
    command = make(engine, GRID, "sweep.max_concurrent=2")
    command.folder = small_disk / "run"
    command.start()
    command.wait_until(lambda events: of(events, "checkpoint"))
    filler = fill(small_disk, leave_mb=0.3)
    code = command.wait()
    assert code == 1, command.output
    assert "No space left" in command.output or "disk is full" in command.output
    assert "go on with the same command" in command.output
    assert "Traceback" not in command.output
    for folder in command.run_dir.glob("trials/*/checkpoints/step-*"):
        verify(folder)
    filler.unlink()
    assert command.run() == 0, command.output
    assert has_losses_of(command, whole(engine, GRID))
    note("a disk that fills up, and has room again", "stopped, went on, losses equal")
