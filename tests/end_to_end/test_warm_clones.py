"""A clone that begins with its parent's weights, in a whole sweep of each engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.real_sweeps import LR, SMALL, Command, clearing_up
from support.witnessed import winner

from orchestrator.cli import main
from sweeps.ledger.history import read_history
from sweeps.results.ranking import best

pytestmark = pytest.mark.long

SPACE = f"sweep.space={{{LR}: choice(1e-3, 1e-2)}}"
STILL = f"{LR}=1e-30"  # so small that no weight moves


@pytest.mark.parametrize("engine", ["solo", "packed"])
def test_a_warm_clone_begins_where_its_parent_was_best(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command((*SMALL, SPACE, "tracking=off", f"engine={engine}"), tmp_path)
    with clearing_up([command]):
        assert command.run() == 0, command.output
        before = read_history(command.run_dir / "ledger.jsonl")
        found = best(before)
        assert found is not None
        parent = found.record
        first = winner(command)
        number = str(parent.number)
        assert main(["clone", str(command.run_dir), number, STILL, "--warm"]) == 1
        assert "once the command that reopens it is run" in capsys.readouterr().err
        assert command.run() == 0, command.output
    history = read_history(command.run_dir / "ledger.jsonl")
    (clone,) = (record for record in history.trials.values() if record.warm is not None)
    assert clone.warm == {"trial": parent.key, "step": first[1]}
    losses = [report.metrics["eval_loss"] for _, report in sorted(clone.reports.items())]
    assert losses == pytest.approx([before.value(parent)] * 4, rel=1e-5)
    (row,) = (row for row in command.rows() if row["key"] == clone.key)
    assert (row["status"], row["rank"]) == ("completed", "")
    assert row["origin"] == f"clone of {number}, warm"
    assert winner(command) == first
