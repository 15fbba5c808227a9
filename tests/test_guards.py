"""Guards: numbers that are not finite, the clock of a trial, and the memory it takes."""

from __future__ import annotations

import contextlib
import gc
import math
import time
import weakref
from typing import Any

import pytest
import torch

from trainers.guards import (
    DivergedError,
    PeakMemory,
    Stopwatch,
    free_memory,
    held_mb,
    paged_mb,
    require_finite,
)

BLOCK_MB = 96


class Clock:
    """A time.perf_counter that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    with pytest.raises(DivergedError, match=f"^the training loss is {value} at step 7$"):
        require_finite("the training loss", value, 7)


def test_large_numbers_are_finite() -> None:
    require_finite("the training loss", 1e300, 7)


def test_a_pause_is_not_counted(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 2
    with watch.paused():
        clock.now += 100
        assert watch.seconds == 2
    clock.now += 3
    assert watch.seconds == 5


def test_earlier_attempts_count(clock: Clock) -> None:
    watch = Stopwatch(60.0)
    clock.now += 5
    assert watch.seconds == 65


def test_a_pause_within_a_pause_ends_with_the_outer_one(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 2
    with watch.paused():
        clock.now += 10
        with watch.paused():
            clock.now += 100
        clock.now += 1000
        assert watch.seconds == 2
    clock.now += 1
    assert watch.seconds == 3


def test_the_clock_runs_on_after_an_error_in_a_pause(clock: Clock) -> None:
    watch = Stopwatch()
    with contextlib.suppress(OSError), watch.paused():
        clock.now += 10
        raise OSError("disk full")
    clock.now += 1
    assert watch.seconds == 1


def test_the_peak_stays_when_the_memory_is_given_back() -> None:
    peak = PeakMemory("cpu")
    before = peak.mb
    block = torch.ones(BLOCK_MB * 2**20 // 4)  # ones, so that every page is touched
    del block
    assert peak.mb > before + 0.8 * BLOCK_MB


def test_a_new_trial_starts_with_a_peak_of_its_own() -> None:
    block = torch.ones(BLOCK_MB * 2**20 // 4)
    before = PeakMemory("cpu").mb
    del block
    free_memory()
    assert PeakMemory("cpu").mb < before - 0.8 * BLOCK_MB


def test_memory_that_is_held_is_seen_and_given_back() -> None:
    gc.collect()
    before = held_mb("cpu")
    ring: list[object] = [torch.ones(BLOCK_MB * 2**20 // 4)]
    ring.append(ring)  # only the collector can free it
    assert held_mb("cpu") > before + 0.8 * BLOCK_MB
    del ring
    free_memory()
    assert held_mb("cpu") < before + 0.2 * BLOCK_MB


def test_which_weight_was_wanted_in_32_bits_is_forgotten() -> None:
    """bitsandbytes goes by a weight's number: of all optimizers that this process makes later."""
    optim = pytest.importorskip("bitsandbytes.optim")
    embedding = torch.nn.Embedding(64, 64)
    watched = weakref.ref(embedding)
    manager = optim.GlobalOptimManager.get_instance()
    manager.register_module_override(embedding, "weight", {"optim_bits": 32})  # as the Trainer does
    assert state_type(optim.AdamW8bit, embedding.weight) == torch.float32
    del embedding
    free_memory()
    assert watched() is None
    other = torch.nn.Parameter(torch.zeros(64, 64))
    assert state_type(optim.AdamW8bit, other) == torch.uint8


def state_type(optimizer_class: Any, weight: torch.nn.Parameter) -> torch.dtype:
    """Of the first moment that an optimizer keeps of it."""
    optimizer = optimizer_class([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept: torch.dtype = optimizer.state[weight]["state1"].dtype
    return kept


def test_paged_states_count_as_held_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    pages = functional.GlobalPageManager.get_instance()
    before = paged_mb()
    monkeypatch.setattr(pages, "paged_tensors", [*pages.paged_tensors, torch.zeros(2**20)])
    assert paged_mb() == before + 4
    free_memory()
    assert paged_mb() == before + 4
