"""Which trial wins, and what trials.csv says of the others."""

from __future__ import annotations

import csv
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sweep_events import Sweep, history_of

from sweeps.ledger.events import Ask, Event, TrialEvent
from sweeps.ledger.history import History
from sweeps.results.ranking import best, spread
from sweeps.results.significance import margin
from sweeps.results.trials_csv import columns, ranked, write_table
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"
SCHEDULER = "trainer.lr_scheduler_type"


def order(sweep: Sweep) -> list[int]:
    return [row.number for row in ranked(sweep.history())]


def test_a_trial_is_ranked_by_its_best_report_not_its_last() -> None:
    sweep = Sweep()
    sweep.trial({}, [3.0, 1.0, 2.5, 2.9])
    sweep.trial({}, [2.0, 2.0, 2.0, 2.0])
    first, second = ranked(sweep.history())
    assert (first.number, first.rank, first.value, first.best_step) == (0, 1, 1.0, 8)
    assert (first.steps, first.examples, first.tokens) == (16, 64, 1280)
    assert (second.number, second.rank) == (1, 2)


def test_a_pruned_trial_with_the_best_value_of_all_stands_below_every_completed_one() -> None:
    sweep = Sweep()
    sweep.trial({}, [0.1], "pruned")
    sweep.trial({}, [9.0] * 4)
    rows = ranked(sweep.history())
    assert [(row.number, row.rank, row.value) for row in rows] == [(1, 1, 9.0), (0, None, 0.1)]
    winner = best(sweep.history())
    assert winner is not None
    assert winner.record.number == 1


def test_the_sections_follow_in_order_and_pruned_trials_go_further_first() -> None:
    sweep = Sweep()
    sweep.trial({}, [1.0], "failed", kind="oom", reason="CUDA out of memory\n  tried 2 GiB")  # 0
    sweep.trial({}, [1.0], "diverged", kind="diverged", reason="non-finite loss")  # 1
    sweep.trial({}, [1.0], "pruned")  # 2
    sweep.trial({}, [5.0, 5.0], "pruned")  # 3
    sweep.trial({}, [4.0, 4.0], "pruned")  # 4
    sweep.trial({}, state=None, start=False)  # 5
    sweep.trial({}, [2.0], state=None)  # 6
    sweep.trial({}, [8.0] * 4)  # 7
    rows = ranked(sweep.history())
    assert [row.number for row in rows] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [row.value for row in rows] == [8.0, 2.0, None, 4.0, 5.0, 1.0, None, None]
    assert rows[-1].error == "oom: CUDA out of memory tried 2 GiB"
    assert rows[-2].error == "non-finite loss"


def test_maximize_turns_the_order_round() -> None:
    sweep = Sweep(metric="accuracy", direction="maximize")
    sweep.trial({}, [0.2, 0.9, 0.3, 0.3])
    sweep.trial({}, [0.8] * 4)
    first, second = ranked(sweep.history())
    assert (first.number, first.value, second.value) == (0, 0.9, 0.8)


def test_equal_values_go_to_the_lower_number() -> None:
    sweep = Sweep()
    for number in (2, 0, 1):
        sweep.trial({}, [1.0] * 4, number=number)
    assert order(sweep) == [0, 1, 2]


def test_repeats_share_the_rank_of_their_mean_and_stand_together() -> None:
    sweep = Sweep(repeats=2)
    sweep.trial({}, [1.0] * 4, config=0)  # 0: the best single trial of a worse config
    sweep.trial({}, [2.0] * 4, config=1)  # 1
    sweep.trial({}, [2.2] * 4, config=1, repeat=1)  # 2
    sweep.trial({}, [5.0] * 4, config=0, repeat=1)  # 3
    history = sweep.history()
    assert [(row.number, row.rank) for row in ranked(history)] == [(1, 1), (2, 1), (0, 2), (3, 2)]
    winner = best(history)
    assert winner is not None
    assert (winner.record.number, winner.mean) == (1, pytest.approx(2.1))
    assert winner.spread == pytest.approx(spread(history, 1)) == pytest.approx(0.1 * math.sqrt(2))


def test_a_config_that_lacks_a_repeat_does_not_win_by_luck() -> None:
    sweep = Sweep(repeats=2)
    sweep.trial({}, [1.0] * 4, config=0)
    sweep.trial({}, [], "diverged", config=0, repeat=1)
    sweep.trial({}, [3.0] * 4, config=1)
    sweep.trial({}, [3.0] * 4, config=1, repeat=1)
    history = sweep.history()
    assert [(row.number, row.rank) for row in ranked(history)] == [
        (2, 1),
        (3, 1),
        (0, 2),
        (1, None),
    ]
    assert spread(history, 0) is None


def test_nothing_completed_means_no_best() -> None:
    sweep = Sweep()
    sweep.trial({}, [1.0], "pruned")
    assert best(sweep.history()) is None
    assert best(History()) is None
    assert ranked(History()) == []


def test_measures_come_from_the_totals_where_a_trial_ended_with_some() -> None:
    sweep = Sweep()
    totals = {"steps": 17, "examples": 68, "tokens": 999, "seconds": 12.5, "peak_memory_mb": 80.25}
    sweep.trial({}, [1.0] * 4, totals=totals)
    (row,) = ranked(sweep.history())
    assert (row.steps, row.examples, row.tokens, row.seconds) == (17, 68, 999, 12.5)
    assert row.peak_memory_mb == 80.25
    assert row.tokens_per_second == 1000.0  # the last report's


def read_table(sweep: Sweep, folder: Path) -> tuple[list[str], list[dict[str, str]]]:
    run = RunFolder(folder)
    write_table(sweep.history(), run)
    with open(run.table, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def test_the_table_has_a_column_for_each_searched_key_in_the_order_of_the_space(
    tmp_path: Path,
) -> None:
    pair = "choice({trainer.bs: 8, trainer.accum: 1}, {trainer.bs: 2, trainer.accum: 4})"
    space = {
        LR: "tag(log, interval(1e-5, 1e-2))",
        "batching": pair,
        "trainer.decay": "choice(0, 1)",
    }
    sweep = Sweep(space)
    sweep.trial({"trainer.bs": 2, "trainer.accum": 4, LR: 0.1 + 0.2}, [1 / 3] * 4)
    header, (row,) = read_table(sweep, tmp_path)
    assert header == [*columns("eval_loss"), LR, "trainer.bs", "trainer.accum", "trainer.decay"]
    assert float(row["eval_loss"]) == 1 / 3
    assert float(row[LR]) == 0.1 + 0.2
    assert (row["trainer.bs"], row["trainer.decay"], row["error"]) == ("2", "", "")
    assert (row["rank"], row["status"]) == ("1", "completed")


def test_the_table_writes_structures_as_json_and_rounds_what_varies_from_run_to_run(
    tmp_path: Path,
) -> None:
    sweep = Sweep()
    totals = {"seconds": 1.23456, "tokens_per_second": 9.87654, "optimizer_state_mb": 0.123456}
    values: dict[str, Any] = {
        "peft.target_modules": ["q", "v"],
        "peft.use_rslora": True,
        "a.b": None,
    }
    sweep.trial(values, [1.0] * 4, totals=totals)
    sweep.trial({"a.b": "with, comma"}, [2.0], "failed", reason='said "no"\nand left', kind="bug")
    _, (done, failed) = read_table(sweep, tmp_path)
    assert done["peft.target_modules"] == '["q","v"]'
    assert (done["peft.use_rslora"], done["a.b"]) == ("true", "null")
    assert (done["seconds"], done["tokens_per_second"]) == ("1.235", "9.9")
    assert done["optimizer_state_mb"] == "0.123"
    assert (failed["a.b"], failed["peft.use_rslora"]) == ("with, comma", "")
    assert (failed["rank"], failed["error"]) == ("", 'bug: said "no" and left')


def test_the_noise_of_repeats_decides_whether_the_winner_is_ahead() -> None:
    def two_configs(gap: float) -> History:
        sweep = Sweep(repeats=4)
        for config in range(2):
            for repeat, wobble in enumerate((-0.1, 0.1, -0.1, 0.1)):
                value = 2.0 + config * gap + wobble
                sweep.trial({}, [value] * 4, config=config, repeat=repeat)
        return sweep.history()

    near, far = margin(two_configs(0.05)), margin(two_configs(1.0))
    assert near is not None
    assert far is not None
    assert near.noise is not None
    assert far.noise is not None
    assert near.gap < near.noise
    assert far.gap > far.noise
    assert near.gap == pytest.approx(0.05)
    # variance 4/300 in both groups, 6 degrees of freedom: 2.4469 * sqrt(4/300 * (1/4 + 1/4))
    assert near.noise == pytest.approx(2.4469 * math.sqrt(4 / 300 / 2), rel=1e-4)


def test_single_seeds_leave_the_noise_open() -> None:
    sweep = Sweep()
    sweep.trial({}, [1.0] * 4)
    assert margin(sweep.history()) is None
    sweep.trial({}, [2.0] * 4)
    found = margin(sweep.history())
    assert found is not None
    assert (found.gap, found.noise, found.runner_up) == (1.0, None, 1)


STATES = ["completed", "pruned", "diverged", "failed", None]
TRIALS = st.lists(
    st.tuples(
        st.lists(st.floats(-10, 10), min_size=1, max_size=4),
        st.sampled_from(STATES),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=10,
)


def told(trials: list[tuple[list[float], str | None, int]], direction: str) -> Sweep:
    sweep = Sweep(direction=direction, repeats=2)
    for number, (losses, state, config) in enumerate(trials):
        sweep.trial({LR: number}, losses, state, config=config, repeat=number)
    return sweep


@settings(max_examples=60, deadline=None)
@given(TRIALS, st.sampled_from(["minimize", "maximize"]))
def test_completed_trials_come_first_and_their_ranks_have_no_gaps(
    trials: list[tuple[list[float], str | None, int]], direction: str
) -> None:
    rows = ranked(told(trials, direction).history())
    assert sorted(row.number for row in rows) == list(range(len(trials)))
    completed = sum(state == "completed" for _, state, _ in trials)
    ranks = [row.rank for row in rows[:completed]]
    assert None not in ranks
    assert all(row.rank is None for row in rows[completed:])
    assert ranks == sorted(ranks)
    assert set(ranks) == set(range(1, len(set(ranks)) + 1))
    assert all(row.value is None or math.isfinite(row.value) for row in rows)


@settings(max_examples=40, deadline=None)
@given(TRIALS, st.randoms(use_true_random=False))
def test_the_ranking_does_not_depend_on_which_trial_spoke_first(
    trials: list[tuple[list[float], str | None, int]], chance: random.Random
) -> None:
    sweep = told(trials, "minimize")
    stories: dict[str, list[Event]] = {}
    for event in sweep.events[2:]:
        assert isinstance(event, Ask | TrialEvent)
        stories.setdefault(event.trial, []).append(event)
    mixed = list(sweep.events[:2])
    while stories:
        key = chance.choice(sorted(stories))
        mixed.append(stories[key].pop(0))
        if not stories[key]:
            del stories[key]
    # Who trained beside whom decides what is known of the costs.
    unknown = {"tokens_per_second": None, "peak_memory_mb": None}
    rows, expected = ranked(history_of(mixed)), ranked(sweep.history())
    assert [replace(row, **unknown) for row in rows] == [replace(r, **unknown) for r in expected]
