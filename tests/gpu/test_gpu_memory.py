"""Memory that does not suffice, devices that are lost, and who else is on the card."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cards import CUDA, child, llama, rows_of, stranger
from support.packs import pack, small, task

from benchmarks.packing import Silent
from orchestrator.workers.packed import Pack as Lanes
from sweeps.config.spec import TrainSpec
from trainers.packed.compatibility import shared

pytestmark = pytest.mark.gpu

LANES = 8
_CONTEXT_MB = 600  # of another process


def trial(seed: int) -> TrainSpec:
    return small(model=llama(), seed=seed, learning_rate=3e-4, gradient_accumulation_steps=1)


@pytest.fixture
def whole_card() -> Iterator[None]:
    """Whatever a test takes away is given back."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    torch.cuda.empty_cache()


def test_where_memory_is_short_passes_are_split_and_the_losses_stay(
    tmp_path: Path, whole_card: None, caplog: pytest.LogCaptureFixture
) -> None:
    data = rows_of([500] * 64, [60] * 8)
    specs = [trial(seed) for seed in range(LANES)]
    first = pack(tmp_path / "first", specs, data=data, device=CUDA)
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    first.finish()
    peak = torch.cuda.max_memory_allocated()
    losses = [seen.losses for seen in first.seen]
    del first
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()

    second = pack(tmp_path / "second", specs, data=data, device=CUDA)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((base + 0.6 * (peak - base)) / total)
    second.finish()
    assert "out of memory" in caplog.text
    for place, seen in enumerate(second.seen):
        assert second.state(place) == "completed"
        assert seen.losses == pytest.approx(losses[place], abs=5e-3)
    del second, seen
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + 2**20


# Printed: what it is, and whether the device still answers.
_JUDGE = """
import torch
from trainers.trial.failures import is_device_lost, is_out_of_memory
try:
    {act}
    torch.cuda.synchronize()
except Exception as error:
    print(type(error).__name__, is_out_of_memory(error), is_device_lost(error, "cuda"))
else:
    print("nothing happened")
"""


def judged(act: str) -> list[str]:
    done = child(_JUDGE.format(act=act))
    assert done.stdout, done.stderr
    return done.stdout.split()[-2:]


def test_a_request_beyond_the_card_is_out_of_memory() -> None:
    assert judged("torch.empty(2**50, dtype=torch.uint8, device='cuda')") == ["True", "False"]


def test_on_a_card_that_another_has_filled_the_first_call_is_out_of_memory() -> None:
    free, _ = torch.cuda.mem_get_info()
    with stranger(free / 2**20 - _CONTEXT_MB - 200):
        # Its own context has no room, or what it asks for then has none.
        found = judged("torch.empty(2**30, dtype=torch.uint8, device='cuda')")
    assert found == ["True", "False"]


@pytest.mark.parametrize(
    "act",
    [
        "torch.nn.functional.embedding(torch.tensor([9], device='cuda'), "
        "torch.ones(2, 2, device='cuda'))",  # a token id beyond the vocabulary
        "torch.ones(4, device='cuda')[torch.tensor([7], device='cuda')]",
    ],
)
def test_after_a_device_side_assert_the_device_is_lost_to_that_process(act: str) -> None:
    assert judged(act) == ["False", "True"]
    assert float(torch.ones(1, device=CUDA)) == 1  # and to no other


def test_an_error_of_the_host_loses_nothing() -> None:
    act = "torch.ones(2, 3, device='cuda') @ torch.ones(2, 3, device='cuda')"
    assert judged(act) == ["False", "False"]


def test_there_is_no_room_for_a_lane_in_memory_that_a_stranger_holds(
    tmp_path: Path, whole_card: None
) -> None:
    spec = small(
        model=llama(layers=4, hidden=1024),
        evaluations=1,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
    )
    lanes = Lanes(shared(spec), spec, rows_of([500] * 256, [60] * 8), CUDA)
    line: Any = Silent()
    lanes.attach(task(tmp_path, spec, 0, 10**6, CUDA), line)
    for _ in range(8):
        lanes.advance()
    a_lane_mb = torch.cuda.max_memory_allocated() / 2**20 - lanes._base_mb
    assert a_lane_mb > 1024, "too little for the context of a stranger not to matter"
    assert lanes.room(100, gpus=1, lane_mb=0) == 2  # twice as many at most
    free, _ = torch.cuda.mem_get_info()
    with stranger(free / 2**20 - 0.5 * a_lane_mb - _CONTEXT_MB):
        assert lanes.room(100, gpus=1, lane_mb=0) == 1
