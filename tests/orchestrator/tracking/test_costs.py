"""What trackers are told of a trial that shared its passes: the cost of its config alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from support.sweep_events import PARTS, Sweep
from support.tracked_sweep import Driver, history, no_account, one, records, summary

from orchestrator.tracking.chart_metrics import outcome, without_shared
from sweeps.ledger.events import Cost, Report, Start

__all__ = ["no_account"]

METRICS = {"eval_loss": 1.0, "tokens_per_second": 9.0, "peak_memory_mb": 12.5}
MEASURED = Cost(trial="a", device="cpu", micro={}, update={}, parts=asdict(PARTS))


@pytest.mark.parametrize("lane", [True, False])
def test_a_lanes_speed_and_memory_are_not_sent_its_costs_are(lane: bool) -> None:
    sweep = Sweep()
    key = sweep.trial({}, state=None, start=False)
    begun = {"attempt": 1, "worker": "box:1", "device": "cpu", "step": 0}
    sweep.add(Start(trial=key, lane=lane, **begun))
    record = sweep.history().trials[key]
    kept = {"eval_loss"} if lane else set(METRICS)
    assert set(without_shared(record, METRICS)) == kept
    told = {"attempt": 1, "index": 1, "step": 4, "examples": 16, "tokens": 320}
    sweep.add(Report(trial=key, metrics=METRICS, decision="continue", **told))
    sweep.end(key, "completed", totals={"seconds": 2.0, **METRICS})
    sweep.add(MEASURED)
    past = sweep.history()
    shown = outcome(past, past.trials[key])
    assert shown["tokens_per_second"] == pytest.approx(300 / 0.03 if lane else 9.0)
    assert shown["peak_memory_mb"] == (508.0 if lane else 12.5)


@pytest.mark.slow
def test_costs_that_are_measured_after_the_trials_reach_their_runs(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "run")
    driver.ask("a")
    begun = {"attempt": 1, "worker": "box:1", "device": "cpu", "step": 0}
    driver.tell(Start(trial="a", lane=True, **begun))
    driver.rows("a", range(1, 5))
    driver.report("a", 1, 4, 1.0)
    driver.end("a")
    driver.tell(MEASURED)
    driver.finish()
    found = one(records(driver.folder), "-a")
    assert history(found, "eval/loss") == [(4, 1.0)]
    assert history(found, "peak_memory_mb") == []
    shown = summary(found)
    assert shown["tokens_per_second"] == pytest.approx(300 / 0.03)
    assert shown["peak_memory_mb"] == 508.0
