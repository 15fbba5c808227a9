"""Two hundred short trials in one sweep: nothing of them stays, while it runs and afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.real_sweeps import LR, Events, of
from support.witnessed import Witnessed

pytestmark = pytest.mark.faults

TRIALS = 200
EARLY, LATE = 40, 190  # trials ended, at which the sweep is looked at
RATES = ",".join(f"{number + 1}e-6" for number in range(TRIALS))
SPACE = f"sweep.space={{{LR}: 'choice({RATES})'}}"
SHORT = ("sweep.evaluations=1", "trainer.lr_scheduler_type=constant", "data.eval_limit=5")
SLACK = 4  # handles and threads that come and go
GONE_S = 20.0


@dataclass(frozen=True)
class Look:
    """What one process holds."""

    threads: int
    handles: int


def processes(mark: str) -> dict[int, str]:
    """Every living process with these words in its environment, whoever its parent is, by name."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "comm").read_text().strip()
        except OSError:
            continue
    return found


def looks(pids: dict[int, str]) -> dict[int, Look]:
    found = {}
    for pid in pids:
        try:
            handles = len(os.listdir(f"/proc/{pid}/fd"))
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            continue
        found[pid] = Look(threads=threads, handles=handles)
    return found


def ended(count: int) -> Callable[[Events], bool]:
    return lambda events: len(of(events, "end")) >= count


def test_two_hundred_trials_leave_nothing_behind(
    engine: str,
    make: Callable[..., Witnessed],
    note: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    command = make(engine, SPACE, *SHORT, examples=8)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    # Unix sockets have short names only, so Ray's folder is not below pytest's.
    command.environment.update(TMPDIR=str(scratch), RAY_TMPDIR="/tmp")
    command.environment["SWEEPS_TEST_MARK"] = str(tmp_path)
    shared_before, ray_before = set(os.listdir("/dev/shm")), sessions()
    command.start()
    command.wait_until(ended(EARLY))
    early = looks(processes(str(tmp_path)))
    command.wait_until(ended(LATE))
    late = looks(processes(str(tmp_path)))
    assert command.process is not None
    assert command.process.wait(120) == 0, command.output
    assert len(command.rows()) == TRIALS
    assert {row["status"] for row in command.rows()} == {"completed"}

    assert set(late) <= set(early), "processes were added as trials came and went"
    grown = {
        pid: (early[pid], late[pid])
        for pid in late
        if late[pid].threads > early[pid].threads + SLACK
        or late[pid].handles > early[pid].handles + SLACK
    }
    assert grown == {}
    deadline = time.monotonic() + GONE_S
    while (left := processes(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == {}
    assert set(os.listdir("/dev/shm")) - shared_before == set()
    # What libraries make themselves as they are imported: torch a folder for caches, one for each
    # user; W&B, which TRL imports, two empty ones, which stay since Ray ends workers at once.
    made = [path for path in scratch.rglob("*") if not path.name.startswith("torchinductor_")]
    assert len(made) <= 4, "more than two for each of two workers"
    for path in made:
        assert path.name.endswith(("wandb-media", "wandb-artifacts"))
        assert not list(path.iterdir())
    ours = f"_{command.process.pid}"  # other sweeps on this machine have theirs
    assert [name for name in sessions() - ray_before if name.endswith(ours)] == []
    assert {path.name for path in command.run_dir.iterdir()} == {
        *("best", "data", "ledger.jsonl", "lock", "report.html", "study.db"),
        *("sweep.yaml", "trials", "trials.csv"),
    }
    most = max(late.values(), key=lambda look: look.handles)
    note(
        f"{TRIALS} trials in one sweep",
        f"{len(late)} processes from trial {EARLY} to {LATE}, at most {most.handles} handles and "
        f"{max(look.threads for look in late.values())} threads in one; afterwards none, nothing "
        "in /dev/shm, no temporary folder but two empty ones of W&B for each worker",
    )


def sessions() -> set[str]:
    """Ray's own folders."""
    place = Path("/tmp/ray")
    names = os.listdir(place) if place.is_dir() else []
    return {name for name in names if name.startswith("session_20")}
