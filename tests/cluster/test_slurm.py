"""The batch script under a real Slurm: told to go on later, put back by Slurm, cancelled."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.one_sweep import WORDS, Undisturbed, last_losses
from support.real_sweeps import PATIENCE_S, REPOSITORY, Events, of, under_way
from support.slurm import NODES, Slurm

pytestmark = pytest.mark.cluster

# What a user edits: the overrides.
_SMALL_JOB = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", "--time=20")


class Job:
    """The batch script, submitted with other overrides, on a run folder of its own."""

    def __init__(self, slurm: Slurm, root: Path, *options: str) -> None:
        self.slurm = slurm
        self.run_dir = root / "run"
        self._output = root / "output.txt"
        script = (REPOSITORY / "launch" / "sweep.sbatch").read_text()
        words = " ".join(f"'{word}'" for word in WORDS)
        edited, count = re.subn(r"^OVERRIDES=.*$", f"OVERRIDES=({words})", script, flags=re.M)
        assert count == 1
        (root / "sweep.sbatch").write_text(edited)
        self.number = slurm.ask(
            *("sbatch", "--parsable", *_SMALL_JOB, f"--output={self._output}", *options),
            str(root / "sweep.sbatch"),
            CHECKOUT=str(REPOSITORY),
            PYTHON=sys.executable,
            RUN_DIR=str(self.run_dir),
        ).strip()

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def events(self) -> Events:
        path = self.run_dir / "ledger.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def wait_until(self, condition: Callable[[Events], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := condition(self.events()):
                return found
            time.sleep(0.05)
        raise AssertionError(f"{self.output}\n{self.slurm.account_of(self.number)}")


def test_a_job_is_told_to_go_on_later_and_put_back(
    slurm: Slurm, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    job = Job(slurm, tmp_path)

    # Slurm's notice, as --signal=B:USR1@120 has it sent before the time is up.
    job.wait_until(under_way)
    slurm.ask("scancel", "--signal=USR1", "--batch", job.number)
    job.wait_until(lambda events: of(events, "interrupt"))
    slurm.start_again(job.number)
    assert "SIGTERM: trials commit a checkpoint and stop" in job.output
    first = job.events()
    assert not of(first, "retry")

    # A preemption without a notice: every process of the job is sent SIGTERM at once.
    job.wait_until(lambda events: len(of(events, "attempt")) == 2 and under_way(events))
    slurm.ask("scontrol", "requeue", job.number)
    slurm.start_again(job.number)

    assert slurm.wait_for_end(job.number) == 0, job.output
    events = job.events()
    assert len(of(events, "attempt")) == 3
    assert [e["state"] for e in of(events, "end")] == ["completed"] * 4
    assert last_losses(events) == undisturbed()
    assert "2 at once on 2 nodes of the cluster" in job.output
    assert len(NODES) == 2


def test_a_cancelled_job_is_not_put_back(slurm: Slurm, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path)
    job.wait_until(under_way)
    slurm.ask("scancel", job.number)
    slurm.wait_for_end(job.number)
    assert slurm.state(job.number) == "CANCELLED"
    assert "Nothing is lost; go on with the same command" in job.output, job.output
