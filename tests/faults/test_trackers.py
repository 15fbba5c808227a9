"""W&B's server refuses, hangs or dies: the sweep goes on, and every metric is in the files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.real_sweeps import losses, of
from support.tracked_sweep import CANARY, history, records
from support.wandb_stub import WandbStub
from support.witnessed import GRID, Witnessed, has_losses_of

from sweeps.storage.run_folder import RunFolder

pytestmark = pytest.mark.faults


def turn_bad(server: WandbStub, manner: str, command: Witnessed) -> None:
    """After the first trial's end."""
    while not of(command.events(), "end"):
        time.sleep(0.1)
    server.turn(manner)


@pytest.mark.parametrize("when", ["at once", "in the middle"])
@pytest.mark.parametrize("manner", ["refuses", "hangs", "dies"])
def test_a_server_of_no_use_costs_no_metric(
    manner: str,
    when: str,
    engine: str,
    make: Callable[..., Witnessed],
    whole: Callable[..., Witnessed],
    note: Callable[[str, object], None],
) -> None:
    command = make(engine, GRID, "tracking=wandb")
    server = WandbStub().__enter__()
    try:
        command.environment.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=CANARY)
        if when == "at once":
            server.turn(manner)
        else:
            threading.Thread(target=turn_bad, args=(server, manner, command), daemon=True).start()
        assert command.run() == 0, command.output
    finally:
        server.die()
    assert "Traceback" not in command.output
    assert "python -m orchestrator sync" in command.output
    assert has_losses_of(command, whole(engine, GRID))
    expected = losses(command.events())
    found = logged(command.run_dir)
    assert found == {key: sorted(values) for key, values in expected.items()}
    note(f"W&B {manner} {when}", "exit 0, losses equal, every evaluation in the files")


def logged(run_dir: Path) -> dict[str, list[float]]:
    """Trial -> the evaluation losses in W&B's files, whichever run folder they are in."""
    found: dict[str, Any] = {}
    for run_id, lines in records(RunFolder(run_dir)).items():
        key = run_id.rpartition("-")[2]
        if key != "sweep":
            found.setdefault(key, set()).update(value for _, value in history(lines, "eval/loss"))
    return {key: sorted(values) for key, values in found.items()}
