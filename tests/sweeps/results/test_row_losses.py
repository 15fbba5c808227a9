"""The losses of each evaluation row: kept for a trial's best report, and trusted if they agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.driving import LR, begin, ending, make, open_sweep, report

from sweeps.core.errors import StaleAttemptError
from sweeps.core.trial import Report, State
from sweeps.results import row_losses
from sweeps.storage.run_folder import RunFolder

TOKENS = np.array([3, 1, 4], dtype=np.float32)
GRID = {LR: "choice(1e-3, 1e-4)"}


def measured(index: int, value: float, spread: float = 0.1) -> Report:
    """A report of `value`, whose rows have losses of their own around it."""
    sums = TOKENS * value + np.array([spread, 0.0, -spread], dtype=np.float32)
    return replace(report(index, value), row_losses=np.stack([sums, TOKENS]))


def test_the_rows_of_the_best_report_are_kept_and_survive_a_kill(tmp_path: Path) -> None:
    made = make(GRID, search="grid", trials=None)
    coordinator = open_sweep(made, tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    attempt = begin(coordinator, trial)
    for index, value in enumerate((3.0, 1.0, 2.0), start=1):
        coordinator.report(trial.key, attempt, measured(index, value))
    coordinator.close()

    again = open_sweep(made, tmp_path)  # its driver was killed; the last report is told once more
    assert again.ask() == trial
    attempt = begin(again, trial)
    again.report(trial.key, attempt, measured(3, 2.0))
    again.report(trial.key, attempt, measured(4, 2.5))
    again.end(ending(trial.key, attempt, State.COMPLETED))
    record = again.history.trials[trial.key]
    rows = row_losses.of_trial(RunFolder(tmp_path), again.history, record)
    assert rows is not None
    assert rows.sums == pytest.approx(TOKENS + np.array([0.1, 0.0, -0.1]))
    assert rows.loss == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(StaleAttemptError):
        again.report(trial.key, 1, measured(4, 0.1))
    assert row_losses.of_trial(RunFolder(tmp_path), again.history, record) is not None


def test_rows_that_a_store_lacked_are_kept_when_they_are_told_again(tmp_path: Path) -> None:
    made = make(GRID, search="grid", trials=None)
    coordinator = open_sweep(made, tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    coordinator.report(trial.key, begin(coordinator, trial), measured(1, 1.0))
    coordinator.close()
    file = RunFolder(tmp_path).row_losses(trial.key)
    file.unlink()

    again = open_sweep(made, tmp_path)
    assert again.ask() == trial
    again.report(trial.key, begin(again, trial), measured(1, 1.0))
    assert file.is_file()


def test_rows_of_another_checkpoint_and_damaged_ones_are_not_trusted(tmp_path: Path) -> None:
    coordinator = open_sweep(make(GRID, search="grid", trials=None), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    coordinator.report(trial.key, begin(coordinator, trial), measured(1, 1.0))
    record, folder = coordinator.history.trials[trial.key], RunFolder(tmp_path)
    file = folder.row_losses(trial.key)
    whole = file.read_bytes()
    assert row_losses.of_trial(folder, coordinator.history, record) is not None

    def is_known() -> bool:
        return row_losses.of_trial(folder, coordinator.history, record) is not None

    for other in (whole[:-8], b"", b"\x80\x04N."):  # cut short; empty; a pickle
        file.write_bytes(other)
        assert not is_known()
    row_losses.keep(folder, trial.key, np.stack([TOKENS * 2, TOKENS]))
    assert not is_known()
    file.unlink()  # an older version kept none
    assert not is_known()


def test_a_report_without_rows_keeps_none_and_its_json_has_none(tmp_path: Path) -> None:
    coordinator = open_sweep(make(GRID, search="grid", trials=None), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    coordinator.report(trial.key, begin(coordinator, trial), report(1, 1.0))
    assert not RunFolder(tmp_path).row_losses(trial.key).exists()
    assert Report.from_json(measured(1, 1.0).to_json()) == report(1, 1.0)
    assert "row_losses" not in (tmp_path / "ledger.jsonl").read_text()
