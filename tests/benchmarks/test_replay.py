"""Replays over tables of results: how tables are read, and what `quick` finds at which cost."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from support.sweep_events import Sweep

from benchmarks import own_table
from benchmarks.replay import (
    CLOSE,
    CURVES,
    DATA,
    EVALUATIONS,
    PUBLIC,
    Contender,
    contenders,
    pruned,
    replay,
)
from benchmarks.result_tables import RANK, RATE, read_panels, with_curves

TABLE = """model,learning_rate,lora_rank,repeat,status,test_nll
one,1e-4,8,0,completed,1.5
one,1e-3,8,0,completed,1.4
one,1e-3,8,1,completed,1.2
one,1e-2,8,0,diverged,
one,1e-4,16,0,completed,1.1
one,1e-3,16,0,not_listed,
one,1e-2,16,0,diverged,
"""


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def contender(name: str) -> Contender:
    return next(each for each in contenders() if each.name == name)


def test_a_table_is_read_with_its_repeats_gaps_and_diverged_runs(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    (panel,) = read_panels(path)
    losses = {tuple(dict(setting).values()): cell.losses for setting, cell in panel.cells.items()}
    assert losses.pop((1e-3, 8)) == pytest.approx((1.3,))
    assert losses == {(1e-4, 8): (1.5,), (1e-2, 8): (), (1e-4, 16): (1.1,), (1e-2, 16): ()}
    assert dict(panel.nearest({RATE: 4e-4, RANK: 8})) == {RATE: 1e-3, RANK: 8}
    assert dict(panel.nearest({RATE: 2e-3})) == {RATE: 1e-2, RANK: 16}


def test_the_grid_finds_its_best_and_quick_what_it_may(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    (panel,) = read_panels(path)
    whole = replay(contender("grid"), panel, 2, 0)
    assert (whole.regret, whole.trials, whole.examples) == (0.0, 1.0, 1.0)
    two = replay(contender("two prior rates alone"), panel, 2, 0)
    assert two.trials == pytest.approx(2 / 5)
    assert replay(contender("quick"), panel, 16, 0).regret == 0.0


def test_a_search_gets_as_many_trials_as_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    (panel,) = read_panels(path)
    (found,) = (each for each in contenders(3) if each.name == "random")
    assert replay(found, panel, 1, 0).trials == pytest.approx(3 / 5)


def test_our_own_table_is_a_whole_grid() -> None:
    (panel,) = read_panels(DATA / "embedded_grid.csv")
    counts = [len(panel.values(key)) for key in panel.keys]
    assert (sorted(counts), len(panel.cells)) == ([3, 4, 4, 4], math.prod(counts))
    assert {len(cell.losses) for cell in panel.cells.values()} == {EVALUATIONS}


@pytest.mark.slow
def test_quick_finds_the_best_of_the_public_grids_for_a_fifth_of_them() -> None:
    found = [replay(contender("quick"), panel, 4, 0) for panel in read_panels(PUBLIC)]
    assert sum(one.regret <= CLOSE for one in found) >= 0.95 * len(found)
    assert statistics.fmean(one.trials for one in found) <= 0.2


@pytest.mark.slow
def test_a_pruner_is_replayed_over_curves() -> None:
    panels = with_curves(read_panels(PUBLIC), CURVES, 8)
    panel = next(each for each in panels if each.model == "meta-llama/Llama-3.1-8B-Instruct")
    assert {len(cell.losses) for cell in panel.cells.values()} == {0, 8}
    none, asha = (replay(each, panel, 1, 0) for each in pruned()[:2])
    assert none.regret == 0.0
    assert asha.examples < none.examples < 1.0  # the diverged ones end early


def test_our_own_sweep_becomes_a_table_of_its_evaluations(tmp_path: Path) -> None:
    sweep = Sweep({RATE: "choice(1e-4, 1e-3)"})
    sweep.trial({RATE: 1e-4, "trainer.optim": "sgd"}, [3.0, 2.0])
    sweep.trial({RATE: 1e-3, "trainer.optim": "sgd"}, [4.0], "diverged")
    sweep.trial({RATE: 1e-3, "trainer.optim": "sgd"}, [4.0], "pruned")
    rows = list(own_table.lines(sweep.history()))
    path = tmp_path / "own.csv"
    head = ",".join(rows[0])
    path.write_text("\n".join([head, *(",".join(map(str, row.values())) for row in rows)]))
    (panel,) = read_panels(path)
    assert [cell.losses for cell in panel.cells.values()] == [(3.0, 2.0), ()]
