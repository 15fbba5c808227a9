"""The table of benchmarks.cost_alone, of trials.csv rows."""

from __future__ import annotations

import pytest

from benchmarks.cost_alone import compared


def rows(speed: float) -> dict[str, dict[str, str]]:
    one = {"number": "0", "trainer.optim": "sgd", "trainer.learning_rate": "0.1"}
    costs = {"peak_memory_mb": "500.0", "optimizer_state_mb": "0.0"}
    return {"a": {**one, **costs, "tokens_per_second": str(speed)}}


def test_how_far_apart_the_ways_are_is_the_largest_ratio_of_one_cost() -> None:
    lines, worst = compared([rows(1000.0), rows(1100.0), rows(1050.0)])
    assert worst == pytest.approx(1.1)
    assert lines[1] == (
        "optim=sgd",
        "tokens_per_second",
        "1,000.00",
        "1,100.00",
        "1,050.00",
        "1.10",
    )
    assert [line[-1] for line in lines[1:]] == ["1.10", "1.00", "1.00"]
