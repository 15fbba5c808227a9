"""What a trial's config costs alone: its own numbers, or parts that were measured afterwards."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from support.sweep_events import PARTS, Sweep

from sweeps.core.cost import Parts
from sweeps.ledger.events import Ask, Cost, End, Known, Retry, Start
from sweeps.ledger.history import History
from sweeps.results.cost import Costs, settings
from sweeps.results.trials_csv import ranked

LR, OPTIM, RANK = "trainer.learning_rate", "trainer.optim", "peft.r"
BATCH, ACCUMULATION = "trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"
TOTALS = {"tokens_per_second": 111.0, "peak_memory_mb": 900.0, "optimizer_state_mb": 8.0}


class Packed(Sweep):
    """A sweep whose trials end together; each was a lane."""

    def lanes(self, *configs: dict[str, Any], lane: bool | None = True, **start: Any) -> list[str]:
        keys = []
        for config in configs:
            keys.append(self.trial(config, state=None, start=False))
            begun = {"worker": "box:1", "device": "cpu", **start}
            self.add(Start(trial=keys[-1], attempt=1, step=0, lane=lane, **begun))
        for number, key in enumerate(keys):
            self.add(self._report(key, 1, 1.0 + number, number))
            self.end(key, "completed", totals=TOTALS)
        return keys

    def measured(self, key: str, parts: Parts | None = PARTS, reason: str = "") -> None:
        micro, update = settings(self.history().trials[key])
        self.add(
            Cost(
                trial=key,
                device="cpu",
                micro=micro,
                update=update,
                parts=asdict(parts) if parts else None,
                reason=reason or None,
            )
        )


def speeds(history: History) -> dict[int, float | None]:
    return {row.number: row.tokens_per_second for row in ranked(history)}


def to_measure(sweep: Sweep) -> int | None:
    found = Costs(sweep.history()).next_to_measure()
    return None if found is None else found.number


def test_a_trial_that_had_its_device_to_itself_is_its_own_measurement() -> None:
    sweep = Packed()
    sweep.lanes({LR: 1e-3}, lane=False)
    sweep.lanes({LR: 1e-4}, lane=False)
    assert speeds(sweep.history()) == {0: 111.0, 1: 111.0}
    assert to_measure(sweep) is None


def test_the_speed_and_memory_of_a_pack_are_nobodys_cost() -> None:
    sweep = Packed()
    sweep.lanes({LR: 1e-3}, {LR: 1e-4})
    for row in ranked(sweep.history()):
        assert (row.tokens_per_second, row.peak_memory_mb) == (None, None)
        assert row.optimizer_state_mb == 8.0  # a lane has its own
    sweep.measured(f"{0:010x}")
    for row in ranked(sweep.history()):  # a learning rate costs nothing
        assert row.tokens_per_second == pytest.approx(300 / 0.03)
        assert row.peak_memory_mb == 508.0
    assert to_measure(sweep) is None


def test_even_a_pack_of_one_is_measured_as_it_would_train_alone() -> None:
    sweep = Packed()
    sweep.lanes({LR: 1e-3})
    assert speeds(sweep.history()) == {0: None}
    assert to_measure(sweep) == 0


@pytest.mark.parametrize(
    ("start", "alone"),
    [
        ({"worker": "box:2", "device": "cpu"}, False),  # shares the memory's bandwidth
        ({"worker": "hut:2", "device": "cpu"}, True),
        ({"worker": "box:2", "device": "cuda"}, True),  # has a GPU of its own
    ],
)
def test_who_shares_a_cpu_has_not_its_device_to_itself(start: dict[str, str], alone: bool) -> None:
    sweep = Packed()
    first = sweep.trial({LR: 1e-3}, state=None, start=False)
    where = {**start, "worker": "box:1"} if start["worker"].startswith("box") else start
    where = {**where, "worker": "box:1"}
    sweep.add(Start(trial=first, attempt=1, step=0, lane=False, **where))
    sweep.lanes({LR: 1e-4}, lane=False, **start)
    sweep.end(first, "completed", totals=TOTALS)
    expected = 111.0 if alone else None
    assert speeds(sweep.history()) == {0: expected, 1: expected}
    memory = {row.peak_memory_mb for row in ranked(sweep.history())}
    assert memory == {900.0}  # each has a process of its own


def test_a_config_is_put_together_from_parts_that_were_measured_with_others() -> None:
    sweep = Packed()
    keys = sweep.lanes(
        {BATCH: 8, ACCUMULATION: 1, OPTIM: "sgd"},
        {BATCH: 8, ACCUMULATION: 4, OPTIM: "adamw_torch"},
        {BATCH: 2, ACCUMULATION: 4, OPTIM: "adamw_torch"},
        {BATCH: 2, ACCUMULATION: 16, OPTIM: "sgd"},
    )
    sweep.measured(keys[0], replace(PARTS, state_mb=0.0))
    assert to_measure(sweep) == 2  # one more says both that are missing
    small = replace(PARTS, micro_s=0.005, tokens=75.0, passes_mb=460.0, update_s=0.03)
    sweep.measured(keys[2], small)
    assert to_measure(sweep) is None
    assert speeds(sweep.history()) == pytest.approx(
        {
            0: 300 / (0.02 + 0.01),
            1: 300 / (0.02 + 0.03 / 4),
            2: 75 / (0.005 + 0.03 / 4),
            3: 75 / (0.005 + 0.01 / 16),
        }
    )
    memory = {row.number: row.peak_memory_mb for row in ranked(sweep.history())}
    assert memory == {0: 500.0, 1: 508.0, 2: 478.0, 3: 470.0}


def test_the_accumulation_is_the_bases_if_it_is_not_searched() -> None:
    sweep = Packed()
    sweep.spec["trainer"] |= {ACCUMULATION.partition(".")[2]: 2}
    (key,) = sweep.lanes({LR: 1e-3})
    sweep.measured(key)
    assert speeds(sweep.history()) == {0: pytest.approx(300 / 0.025)}


def test_a_trial_that_went_on_with_half_the_micro_batch_costs_what_the_half_does() -> None:
    sweep = Packed()
    (key,) = sweep.lanes({BATCH: 8, ACCUMULATION: 1})
    other = sweep.trial({BATCH: 8, ACCUMULATION: 1}, state=None)
    sweep.add(Retry(trial=other, attempt=1, kind="oom", reason="out of memory"))
    sweep.add(Start(trial=other, attempt=2, step=0, lane=True, worker="box:1", device="cpu"))
    sweep.add(self_report(sweep, other))
    sweep.add(End(trial=other, attempt=2, state="completed", totals=TOTALS))
    sweep.measured(key)
    history = sweep.history()
    assert Costs(history).sizes(history.trials[other]) == (4, 2)
    assert to_measure(sweep) == 1
    assert speeds(history)[1] is None


def self_report(sweep: Sweep, key: str) -> Any:
    return sweep._report(key, 1, 2.0, 1)


def test_what_is_not_ranked_is_measured_last() -> None:
    """A clone that began with its parent's weights is no rival, and has a cost all the same."""
    sweep = Packed()
    (parent,) = sweep.lanes({OPTIM: "sgd"})
    (warm,) = sweep.lanes({OPTIM: "adafactor"})
    (place,) = (i for i, e in enumerate(sweep.events) if isinstance(e, Ask) and e.trial == warm)
    asked = sweep.events[place]
    sweep.events[place] = replace(asked, origin="clone", parent=parent, warm=16)
    assert to_measure(sweep) == 0
    sweep.measured(parent)
    assert to_measure(sweep) == 1
    sweep.measured(warm)
    assert to_measure(sweep) is None


def test_what_cannot_be_measured_is_not_tried_for_ever() -> None:
    sweep = Packed()
    keys = sweep.lanes({RANK: 8}, {RANK: 512})
    sweep.measured(keys[1], None, "OutOfMemoryError")
    assert to_measure(sweep) == 0
    sweep.measured(keys[0])
    assert to_measure(sweep) is None
    assert speeds(sweep.history())[1] is None
    assert Costs(sweep.history()).unknown() == 1


def test_trials_of_versions_that_did_not_say_how_they_trained_are_left_as_they_are() -> None:
    sweep = Packed()
    sweep.lanes({LR: 1e-3}, {LR: 1e-4}, lane=None)
    sweep.lanes({LR: 1e-5}, lane=None)
    assert speeds(sweep.history()) == {0: None, 1: None, 2: 111.0}  # two were seen to share
    assert to_measure(sweep) is None


def test_what_a_rate_or_a_schedule_changes_is_not_measured_again() -> None:
    sweep = Packed()
    keys = sweep.lanes(
        *(
            {LR: rate, "trainer.lr_scheduler_type": name, "peft.lora_dropout": dropout}
            for rate in (1e-3, 1e-4)
            for name in ("cosine", "linear")
            for dropout in (0.05, 0.1)
        )
    )
    sweep.measured(keys[0])
    assert to_measure(sweep) is None


def test_a_trial_that_was_taken_over_brings_its_cost_along() -> None:
    there = Packed()
    (key,) = there.lanes({LR: 1e-3})
    assert Costs(there.history()).measured(there.history().trials[key]) is None
    there.measured(key)
    past = there.history()
    cost = Costs(past).measured(past.trials[key])
    here = Packed()
    known = {"number": 0, "repeat": 0, "seed": 0, "config": 0, "choices": {}, "folder": "there"}
    reports = tuple(each.to_json() for each in past.trials[key].reports.values())
    taken = Known(
        trial=key, params={LR: 1e-3}, reports=reports, state="completed", lane=True, **known
    )
    here.add(taken)
    assert to_measure(here) == 0
    here.events.pop()
    here.add(replace(taken, cost=cost))
    assert to_measure(here) is None
    assert speeds(here.history()) == {0: pytest.approx(300 / 0.03)}


def test_a_group_on_several_devices_is_not_measured_afterwards() -> None:
    sweep = Packed()
    sweep.spec["engine"] = {"devices_per_trial": 2}
    sweep.lanes({LR: 1e-3}, {LR: 1e-4})
    assert to_measure(sweep) is None
