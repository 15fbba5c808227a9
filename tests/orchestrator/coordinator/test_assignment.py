"""How trials are dealt to workers that train several at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.coordinator.assignment import Assigner, AssignmentRules
from sweeps.core.trial import Trial
from trainers.trial.task import DryRun


def source(count: int) -> Callable[[], Trial | None]:
    """What a Coordinator would give: trials 0, 1, 2, ..., then none."""
    trials = iter(range(count))

    def ask() -> Trial | None:
        number = next(trials, None)
        if number is None:
            return None
        return Trial(key=f"t{number}", number=number, seed=0, values={}, config={})

    return ask


def fill(assigner: Assigner, worker: str, *, room: int = 8, finished: int = 0) -> list[str]:
    """All that a worker is given before it begins to train."""
    keys = []
    while (trial := assigner.deal(worker, room=room, finished=finished)) is not None:
        keys.append(trial.key)
    return keys


@pytest.mark.parametrize(
    ("memory_mb", "step", "lanes"),
    [
        (10_000, None, 16),  # nobody measured
        (math.inf, {"peak_mb": 3000, "step_mb": 2000}, 16),
        (100_000, {"peak_mb": 3000, "step_mb": 2000}, 16),
        (10_000, {"peak_mb": 3000, "step_mb": 2000}, 3),  # 8,000 MB may be used
        (10_000, {"peak_mb": 9000, "step_mb": 8000}, 1),
    ],
)
def test_on_a_cpu_memory_bounds_the_lanes(
    memory_mb: float, step: dict[str, float] | None, lanes: int
) -> None:
    found = DryRun(rows=4, tokens=100, checkpoint_mb=1.0, seconds=0.1, **step) if step else None
    assert AssignmentRules(lanes=16, memory_mb=memory_mb).fitting(found) == lanes


def test_the_first_worker_to_come_leaves_half_for_the_second() -> None:
    assigner = Assigner(AssignmentRules(workers=2, planned=8), source(8))
    assert len(fill(assigner, "a")) == 4
    assert len(fill(assigner, "b")) == 4
    assert assigner.count == 8


def test_no_worker_takes_more_than_it_has_room_for() -> None:
    assigner = Assigner(AssignmentRules(workers=2, planned=100), source(100))
    assert len(fill(assigner, "a", room=8)) == 8


@pytest.mark.parametrize("order", ["ab", "ba", "abab"])
def test_in_turn_the_same_trials_share_a_device_whoever_comes_first(order: str) -> None:
    assigner = Assigner(AssignmentRules(workers=2, planned=8, in_turn=True), source(8))
    packs = defaultdict(list)
    for worker in order:
        packs[worker] += fill(assigner, worker)
    assert sorted(packs.values()) == [["t0", "t2", "t4", "t6"], ["t1", "t3", "t5", "t7"]]


def test_in_turn_a_trial_out_of_turn_is_better_than_an_idle_device() -> None:
    assigner = Assigner(AssignmentRules(workers=2, planned=4, in_turn=True), source(4))
    assert fill(assigner, "a") == ["t0", "t2"]  # the other worker never comes
    for key in ("t0", "t2"):
        assigner.release("a", key)
    assert fill(assigner, "a", finished=2) == ["t1"]


def test_at_once_counts_over_all_workers() -> None:
    assigner = Assigner(AssignmentRules(workers=2, at_once=3, planned=8), source(8))
    assert len(fill(assigner, "a")) == 3
    assert fill(assigner, "b") == []
    assigner.release("a", "t1")
    assert fill(assigner, "b") == ["t3"]


def test_what_a_dead_worker_held_is_told_and_its_seat_is_free() -> None:
    assigner = Assigner(AssignmentRules(workers=2, planned=8, in_turn=True), source(8))
    assert fill(assigner, "a") == ["t0", "t2", "t4", "t6"]
    assert assigner.worker_left("a") == ["t0", "t2", "t4", "t6"]
    assert assigner.count == 0
    assert assigner.worker_left("a") == []


@given(
    workers=st.integers(1, 4),
    room=st.integers(1, 6),
    at_once=st.integers(1, 10),
    count=st.integers(0, 30),
    in_turn=st.booleans(),
    steps=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=80),
)
def test_every_trial_is_dealt_once_and_all_are_in_the_end(
    workers: int,
    room: int,
    at_once: int,
    count: int,
    in_turn: bool,
    steps: list[tuple[int, bool]],
) -> None:
    rules = AssignmentRules(workers=workers, at_once=at_once, planned=count, in_turn=in_turn)
    assigner = Assigner(rules, source(count))
    held: dict[str, list[str]] = defaultdict(list)
    dealt: list[str] = []
    finished = 0
    for seat, asks in steps:
        worker = f"w{seat % workers}"
        if asks:
            trial = assigner.deal(worker, room=room, finished=finished)
            if trial is not None:
                held[worker].append(trial.key)
                dealt.append(trial.key)
        elif held[worker]:
            assigner.release(worker, held[worker].pop())
            finished += 1
        assert all(len(keys) <= room for keys in held.values())
        assert assigner.count == sum(len(keys) for keys in held.values()) <= at_once
    assert len(dealt) == len(set(dealt))
    while any(held.values()) or len(dealt) < count:
        before = (finished, len(dealt))
        for seat in range(workers):
            worker = f"w{seat}"
            trial = assigner.deal(worker, room=room, finished=finished)
            if trial is not None:
                held[worker].append(trial.key)
                dealt.append(trial.key)
            if held[worker]:
                assigner.release(worker, held[worker].pop())
                finished += 1
        assert before != (finished, len(dealt)), "nobody gets anything any more"
    assert sorted(dealt) == sorted(f"t{number}" for number in range(count))
