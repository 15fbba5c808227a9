"""`status RUN_DIR RUN_DIR`: the configs of several sweeps in one table."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.sweep_events import BOX, Sweep

from orchestrator.cli import main
from orchestrator.terminal.several import compare
from sweeps.core.errors import SweepError

LR, RANK = "trainer.learning_rate", "peft.r"


def ended(
    folder: Path, losses: dict[float, float], data: str = "d1", number: int = 0, **spec: Any
) -> Path:
    """A sweep; trials of one number are the same trial."""
    sweep = Sweep({LR: f"choice({', '.join(map(str, losses))})"})
    sweep.spec |= spec
    sweep.add(replace(BOX, data=data, base="b", spec=sweep.spec))
    sweep.base(3.0)
    for place, (rate, loss) in enumerate(losses.items(), start=number):
        sweep.trial({LR: rate}, [loss + 1, loss], number=place)
    return sweep.write(folder)


def lines(*folders: Path) -> list[str]:
    console = Console(file=StringIO(), width=120)
    assert compare(folders, console) == 0
    assert isinstance(console.file, StringIO)
    return [re.sub(r" +", " ", line.strip()) for line in console.file.getvalue().splitlines()]


def test_configs_of_both_are_ranked_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = ended(tmp_path / "one", {1e-4: 2.5, 1e-3: 1.5}, peft={"r": 8})
    two = ended(tmp_path / "two", {1e-3: 1.0, 1e-2: 2.0}, number=5, peft={"r": 16})
    text = lines(one, two)
    assert text[:2] == ["one: 2 of 2 trials ended", "two: 2 of 2 trials ended"]
    rows = [line for line in text if line[:1].isdigit()]
    assert rows == [
        "1 two 5 lr=1e-3 r=16 1.0000 +2.0000",
        "2 one 1 lr=1e-3 r=8 1.5000 +1.5000",
        "3 two 6 lr=0.01 r=16 2.0000 +1.0000",
        "4 one 0 lr=1e-4 r=8 2.5000 +0.5000",
    ]
    assert not any("budgets" in line for line in text)


def test_other_data_are_refused_and_other_budgets_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ended(tmp_path / "one", {1e-4: 2.5})
    other = ended(tmp_path / "other", {1e-4: 2.5}, data="d2")
    assert main(["status", str(one), str(other)]) == 1
    said = capsys.readouterr().err
    assert re.search(r"cannot stand in one table:\n.*other has another data than .*one", said)
    longer = Sweep({LR: "choice(1e-4)"}, budget={"examples": 999, "epochs": None})
    longer.add(replace(BOX, data="d1", base="b", spec=longer.spec))
    longer.trial({LR: 1e-4}, [1.0], number=7)
    assert any("budgets" in line for line in lines(one, longer.write(tmp_path / "longer")))
    with pytest.raises(SweepError, match="is no folder"):
        lines(one, tmp_path / "nowhere")


def test_a_trial_that_both_have_is_one_row(tmp_path: Path) -> None:
    one = ended(tmp_path / "one", {1e-4: 2.5})
    two = ended(tmp_path / "two", {1e-4: 2.5, 1e-3: 2.0})
    assert len([line for line in lines(one, two) if line[:1].isdigit()]) == 2
