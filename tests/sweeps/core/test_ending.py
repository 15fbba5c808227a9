"""Why a sweep stops, and its exit code: the table of docs/run-folder.md, row by row."""

from __future__ import annotations

import pickle
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.sweep_events import Sweep

from orchestrator.cli import main
from orchestrator.cluster.signals import SIGNAL_EXIT, Signals
from orchestrator.config.command import Command
from orchestrator.coordinator.job import SweepResult
from orchestrator.driver import Driver
from sweeps.core.ending import Cause, Stop, exit_code
from sweeps.storage.lock import Lock
from sweeps.storage.run_folder import RunFolder

PROOF = {"eval_loss": 1.0, "eval_tokens": 9.0}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "run-folder.md"
BUDGETS = (Cause.TIME_BUDGET, Cause.DEVICE_HOURS)
FAILURES = [cause for cause in Cause if cause.is_failure]


def refused(tmp_path: Path) -> int:
    return main(["sweep=nope", f"run_dir={tmp_path}"])


def held(tmp_path: Path) -> int:
    lock = Lock(RunFolder(tmp_path).lock)
    try:
        return main(["tracking=off", f"run_dir={tmp_path}"])
    finally:
        lock.release()


def stopped(cause: Cause) -> Stop:
    return Stop(cause=cause, details=("this", "that"))


def interrupted(number: signal.Signals) -> int:
    code = SIGNAL_EXIT[number]
    return exit_code(completed=1, failed=1, stop=stopped(Cause.SIGNAL), signal_code=code)


# What the page says of a code -> what shows that it is so; a table's row may say several.
SHOWN: dict[str, Callable[[Path], list[int]]] = {
    "every trial ended (pruned, stopped and diverged ones too) and there is a best": lambda _: [
        exit_code(completed=1, failed=0)
    ],
    "the time budget or the device-hours are spent": lambda _: [
        exit_code(completed=1, failed=0, stop=stopped(cause)) for cause in BUDGETS
    ],
    "`finish` has ended it, which the last lines say": lambda _: [
        exit_code(completed=1, failed=0, stop=stopped(Cause.FINISHED))
    ],
    "refused before training": lambda tmp_path: [refused(tmp_path)],
    "no usable trial": lambda _: [
        exit_code(completed=0, failed=failed, stop=stop)
        for failed in (0, 2)
        for stop in (None, *map(stopped, BUDGETS))
    ],
    "the best checkpoint could not be proven": lambda _: [
        exit_code(completed=2, failed=failed, is_proven=False) for failed in (0, 2)
    ],
    "the sweep could not go on, which the last lines say": lambda _: [
        exit_code(completed=5, failed=0, stop=stopped(cause)) for cause in FAILURES
    ],
    "another process holds the run folder": lambda tmp_path: [held(tmp_path)],
    "done, but at least one trial failed": lambda _: [exit_code(completed=1, failed=1)],
    "interrupted by Ctrl-C, by `cancel` or by SIGTERM; the same command goes on": lambda _: [
        exit_code(completed=1, failed=1, stop=stopped(Cause.CANCELLED)),
        interrupted(signal.SIGINT),
        interrupted(signal.SIGTERM),
    ],
}


def rows() -> list[tuple[list[int], str]]:
    """The codes of each row of the page's table, and each thing that it says of them."""
    table = PAGE.read_text(encoding="utf-8").partition("| exit code | meaning |")[2]
    cells = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", table.partition("\n\n")[0], re.MULTILINE)
    return [
        ([int(code) for code in codes.split(", ")], part)
        for codes, meaning in cells
        for part in re.split(r"[;,] or ", meaning)
    ]


def test_the_page_has_every_code() -> None:
    assert {code for codes, _ in rows() for code in codes} == {0, 1, 3, 4, 130, 143}


@pytest.mark.slow
@pytest.mark.parametrize(("codes", "part"), rows(), ids=lambda value: str(value))
def test_exit_codes_are_those_of_the_page(codes: list[int], part: str, tmp_path: Path) -> None:
    found = SHOWN[part](tmp_path)
    assert set(found) == set(codes)


@pytest.mark.parametrize("cause", FAILURES, ids=lambda cause: cause.name)
@pytest.mark.parametrize("signal_code", [0, 143])
def test_a_sweep_that_could_not_go_on_has_failed(cause: Cause, signal_code: int) -> None:
    stop = pickle.loads(pickle.dumps(stopped(cause)))  # as it comes from the Coordinator's process
    assert exit_code(completed=5, failed=0, stop=stop, signal_code=signal_code) == 1


def test_a_stop_says_its_cause_in_words_with_its_details() -> None:
    said = {str(stopped(cause)) for cause in Cause}
    assert len(said) == len(Cause)
    assert not any("{" in words for words in said)
    assert str(Stop(cause=Cause.SAME_ERROR, details=("3",))) == (
        "the first 3 trials failed with the same error"
    )
    assert str(Stop(cause=Cause.SIGNAL, details=("{0}{x}",))) == "{0}{x}"


class NoTracker:
    """What the driver asks of tracking at its end."""

    def finish(self, timeout_s: float) -> list[str]:
        return []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "code", "says"),
    [
        # The worker that proved it is elsewhere, and the store does not give its files back.
        ({"proof": PROOF}, 1, "its files did not arrive from the worker"),
        ({"proof_error": "SweepError: another loss"}, 1, "made ready: SweepError: another loss."),
        ({"stop": stopped(Cause.NO_ROOM)}, 1, "Stopped before the end: no node of the cluster"),
        ({"stop": stopped(Cause.TIME_BUDGET)}, 0, "Stopped before the end: the time budget"),
    ],
)
def test_what_the_coordinator_tells_at_the_end_decides(
    told: dict[str, Any],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = Command.read([f"run_dir={tmp_path}"])
    assert command.spec is not None
    sweep = Sweep()
    sweep.trial({"trainer.learning_rate": 1e-3}, [1.0])
    driver = Driver(command.spec, command.space, RunFolder(tmp_path), ["sweep=base"], Signals())
    driver._history = sweep.history()
    driver._tracker = NoTracker()
    assert driver._finish(SweepResult(**told)).exit_code == code
    said = " ".join(capsys.readouterr().out.split())
    assert says in said
    assert "orchestrator export" not in said
    assert "go on with the same command: python -m orchestrator sweep=base" in said
