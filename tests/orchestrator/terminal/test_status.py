"""`status RUN_DIR`: any folder, running or not, read and never touched."""

from __future__ import annotations

import json
import os
import re
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from support.sweep_events import Sweep

from orchestrator.terminal.status import lock_holder, status
from sweeps.core.errors import LedgerDamagedError, SweepError
from sweeps.ledger.events import Interrupt
from sweeps.ledger.history import read_history
from sweeps.storage.lock import Lock
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"


def shown(run_dir: Path, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    assert status(run_dir, console) == 0
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def half_done() -> Sweep:
    sweep = Sweep({LR: "choice(1e-4, 1e-3, 1e-2)"})
    sweep.base(3.0)
    sweep.trial({LR: 1e-3}, [2.5, 2.0, 2.1, 2.2])
    sweep.trial({LR: 1e-4}, [2.9], state=None)
    return sweep


@pytest.mark.slow
def test_a_running_sweep_names_its_driver_and_the_progress_of_its_trials(tmp_path: Path) -> None:
    folder = RunFolder(half_done().write(tmp_path / "run"))
    metrics = folder.metrics(f"{1:010x}")
    metrics.parent.mkdir(parents=True)
    row = {"step": 8, "loss": 2.8123, "examples": 32, "tokens_per_second": 4321.0, "seconds": 10.0}
    metrics.write_text(
        json.dumps({**row, "step": 4}) + "\n" + json.dumps(row) + '\n{"step": 9, "lo'
    )
    lock = Lock(folder.lock)
    try:
        text = shown(folder.root)
    finally:
        lock.release()
    assert re.search(rf"Running: \S+, pid {os.getpid()}; 1 of 3 trials ended", text)
    assert re.search(r"1  lr=1e-4 .* 50%\s+8/16\s+2\.9000\s+2\.8123\s+4\.32k\s+0:10", text)
    assert re.search(r"1\s+0\s+1e-3\s+2\.0000\s+\+1\.0000", text)


def test_a_sweep_without_a_driver_is_stopped_and_nothing_runs(tmp_path: Path) -> None:
    folder = RunFolder(half_done().write(tmp_path / "run"))
    text = shown(folder.root)
    assert "Stopped: the driver is gone with 1 of 3 trials ended. The same command goes on" in text
    assert "running" not in text
    assert "1 waiting" in text
    last = text.strip().splitlines()[-2:]
    assert last[0].startswith("Best: trial 0 (lr=1e-3), eval_loss 2.0000 at step 8")
    assert f"{folder.checkpoint(f'{0:010x}', 8)}/ (so far" in last[1]


def test_an_interrupted_sweep_says_so(tmp_path: Path) -> None:
    sweep = half_done()
    sweep.add(Interrupt(reason="SIGINT"))
    assert "the driver was interrupted" in shown(sweep.write(tmp_path))


def test_a_finished_sweep_ends_with_best(tmp_path: Path) -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3)"})
    for rate, loss in ((1e-4, 2.0), (1e-3, 1.0)):
        sweep.trial({LR: rate}, [loss] * 4)
    folder = RunFolder(sweep.write(tmp_path / "run"))
    sweep.best(folder, 1, 4)
    text = shown(folder.root)
    assert "Finished" in text
    assert f"{LR}: the best value, 0.001, is the highest that was tried." in text
    assert f"  {LR}=0.0001,0.001,0.01\n" in text
    assert text.strip().endswith(f"{folder.best}/")


def test_a_sweep_that_goes_on_is_told_of_no_edge_yet(tmp_path: Path) -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3, 1e-2)"})
    for rate, loss in ((1e-4, 2.0), (1e-3, 1.0)):
        sweep.trial({LR: rate}, [loss] * 4)
    assert "that was tried" not in shown(sweep.write(tmp_path / "run"))


def test_a_finished_sweep_whose_best_was_not_made_does_not_name_it(tmp_path: Path) -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3)"})
    for rate, loss in ((1e-4, 2.0), (1e-3, 1.0)):
        sweep.trial({LR: rate}, [loss] * 4)
    folder = RunFolder(sweep.write(tmp_path / "run"))
    sweep.best(folder, 0, 8)
    *_, held, last = shown(folder.root).strip().splitlines()
    assert held == f"{folder.best}/ holds trial 0, step 8, which was the best of an earlier start."
    assert last.startswith(f"{folder.checkpoint(f'{1:010x}', 4)}/ (so far")


def test_looking_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(half_done().write(tmp_path / "run"))
    Lock(folder.lock).release()
    with open(folder.ledger, "a") as file:
        file.write('{"event": "end", "tri')
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    shown(folder.root)
    assert folder.study.is_file()  # the one thing it writes: a view of the ledger for a dashboard
    folder.study.unlink()
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_the_lock_is_free_again_after_a_look(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock_holder(path) is None
    Lock(path).release()
    assert lock_holder(path) is None
    Lock(path).release()


def test_damage_in_the_middle_is_refused_by_line_number(tmp_path: Path) -> None:
    ledger = half_done().write(tmp_path) / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    lines[4] = lines[4][:20]
    ledger.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerDamagedError, match="line 5 is damaged"):
        status(tmp_path, Console(file=StringIO()))


def test_a_wrong_folder_names_the_sweeps_nearby(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("joint", "lr_grid"):
        half_done().write(tmp_path / "outputs" / name)
    with pytest.raises(SweepError, match=r"looked for outputs/lr_gird/ledger\.jsonl") as error:
        status(Path("outputs/lr_gird"))
    assert "the likeliest first: outputs/lr_grid, outputs/joint" in str(error.value)


def test_a_folder_of_run_folders_is_a_table_of_them(tmp_path: Path) -> None:
    half = half_done()
    lock = Lock(RunFolder(half.write(tmp_path / "running")).lock)
    half.now += 100
    half.trial({LR: 1e-4}, [1.5])
    half.trial({LR: 1e-2}, [], "failed", kind="bug", reason="boom")
    half.write(tmp_path / "later")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.jsonl").write_text("no\nledger\n")
    (tmp_path / "notes").mkdir()
    try:
        text = shown(tmp_path, width=140)
    finally:
        lock.release()
    assert "3 run folders, the latest first" in text
    assert re.search(r"running +running +1 of 3 +eval_loss +2\.0000 +lr=1e-3", text)
    assert re.search(r"later +stopped +3 of 4 +eval_loss +1\.5000 +lr=1e-4", text)
    assert re.search(r"broken +damaged", text)
    assert "notes" not in text
    assert text.index("broken ") < text.index("later ") < text.index("running ")


def test_steps_and_seeds_are_shown(tmp_path: Path) -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3)"}, repeats=2)
    sweep.trial({LR: 1e-3}, [2.5, 2.0], config=0)
    sweep.trial({LR: 1e-3}, [2.9], state=None, config=0, repeat=1)
    folder = RunFolder(sweep.write(tmp_path / "run"))
    lock = Lock(folder.lock)
    try:
        text = shown(folder.root, width=140)
    finally:
        lock.release()
    assert re.search(r"trial +config +seed +progress +step", text)
    assert re.search(r"lr=1e-3 +\d+ .* 4/16", text)


def test_a_folder_inside_a_run_folder_names_the_run_folder(tmp_path: Path) -> None:
    run = half_done().write(tmp_path / "run")
    (run / "trials").mkdir()
    with pytest.raises(SweepError, match=rf"Did you mean {re.escape(str(run))}\?"):
        status(run / "trials")


def test_no_sweep_anywhere_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SweepError, match="No run folder lies beside it"):
        status(tmp_path / "nothing")


def test_an_empty_ledger_is_a_sweep_that_has_not_begun(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").touch()
    assert "No trial has been asked for yet" in shown(tmp_path)


@pytest.mark.slow
def test_a_large_ledger_is_read_in_time(tmp_path: Path) -> None:
    def seconds(trials: int) -> float:
        sweep = Sweep({LR: "tag(log, interval(1e-5, 1e-2))"}, evaluations=20, repeats=2)
        for number in range(trials):
            losses = [3.0 - 0.01 * index - 1e-4 * number for index in range(20)]
            values = {LR: 1e-5 * (1 + number // 2)}
            sweep.trial(values, losses, config=number // 2, repeat=number % 2)
        run = sweep.write(tmp_path / str(trials))
        began = time.perf_counter()
        assert f"{trials} completed" in shown(run)
        return time.perf_counter() - began

    seconds(10)  # imports
    # 10,000 trials may take 5 s, these 0.5 s; the rest is for a busy machine
    assert seconds(1000) < 2.5
    assert len(read_history(tmp_path / "1000" / "ledger.jsonl").trials) == 1000
