"""How many lanes a pack makes room for on a GPU: counted on a card that is only described."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.driving import LR, make
from support.sweep_events import BOX

from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.workers import packed
from orchestrator.workers.packed import Pack
from orchestrator.workers.trial_loop import TrialLoop
from orchestrator.workers.worker_config import WorkerConfig
from trainers.trial.task import DryRun

GB = 2**30
MOST = 64
BASE_GB = 2.0


class Card:
    """A GPU of which this process uses the base model and some for each lane; others hold a part.

    It stands in for the engine, too: lanes are names.
    """

    def __init__(self, total_gb: float, lane_gb: float) -> None:
        self.total_gb, self.lane_gb = total_gb, lane_gb
        self.others_gb = 0.0
        self.lanes: list[str] = []
        self.peak_gb = BASE_GB

    def attach(self, task: Any, _: Any) -> bool:
        self.lanes.append(task.key)
        return True

    def advance(self) -> list[Any]:
        self.peak_gb = max(self.peak_gb, BASE_GB + self.lane_gb * len(self.lanes))
        return []


class Lanes:
    """A pack on that card."""

    def __init__(self, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packed, "Engine", lambda *_, **__: card)
        monkeypatch.setattr(packed, "held_mb", lambda device: BASE_GB * 1024)
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "max_memory_allocated", lambda device: int(card.peak_gb * GB))
        monkeypatch.setattr(cuda, "memory_reserved", lambda device: int(card.peak_gb * GB))
        monkeypatch.setattr(cuda, "mem_get_info", lambda device: self._free_and_total())
        self._card = card
        self.pack = Pack(None, None, None, "cuda")  # type: ignore[arg-type]
        self._count = 0

    def _free_and_total(self) -> tuple[int, int]:
        free_gb = self._card.total_gb - self._card.others_gb - self._card.peak_gb
        return int(free_gb * GB), int(self._card.total_gb * GB)

    def room(self, *, gpus: float = 1.0, lane_mb: float = 0.0) -> int:
        return self.pack.room(MOST, gpus=gpus, lane_mb=lane_mb)

    def fill(self, **more: float) -> int:
        """Attach as many as there is room for."""
        while self.pack.count < self.room(**more):
            self._count += 1
            self.pack.attach(SimpleNamespace(key=str(self._count)), None)  # type: ignore[arg-type]
        return self.pack.count

    def advance(self, times: int = packed._SETTLED) -> None:
        for _ in range(times):
            self.pack.advance()

    def end(self, count: int) -> None:
        for _ in range(count):
            self.pack._observers.pop(self._card.lanes.pop())


def test_without_a_dry_run_lanes_double_once_they_have_shown_what_they_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lanes = Lanes(Card(24, 1), monkeypatch)
    counts = []
    for _ in range(6):
        counts.append(lanes.fill())
        lanes.advance(3)
        assert lanes.fill() == counts[-1], "they have not shown it yet"
        lanes.advance()
    assert counts == [1, 2, 4, 8, 16, 19]  # nine tenths of the card, without the base


def test_a_pack_begins_with_as_many_as_the_dry_run_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lanes = Lanes(Card(80, 1), monkeypatch)
    counts = []
    for _ in range(3):
        counts.append(lanes.fill(lane_mb=4096))  # the longest rows, of the largest micro-batch
        lanes.advance()
    assert counts == [17, 34, MOST]


def test_a_lane_larger_than_the_card_still_gets_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Lanes(Card(16, 1), monkeypatch).fill(lane_mb=99_999) == 1


def test_a_pack_that_emptied_is_filled_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid's trials end together. What they took is no measure for the first of the next."""
    lanes = Lanes(Card(80, 1), monkeypatch)
    for _ in range(6):
        lanes.fill()
        lanes.advance()
    assert lanes.fill() == MOST
    lanes.end(MOST - 1)
    assert lanes.room() == MOST
    lanes.end(1)
    assert lanes.fill() == MOST


@pytest.mark.parametrize(("gpus", "fit"), [(1.0, 34), (0.5, 16), (0.2, 5), (0.25, 7)])
def test_a_worker_with_a_share_of_a_gpu_counts_on_no_more(
    gpus: float, fit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However idle the others are, or however much of theirs they have taken."""
    lanes = Lanes(Card(40, 1), monkeypatch)
    assert lanes.fill(gpus=gpus, lane_mb=1024) == fit
    card = Card(40, 1)
    card.others_gb = 40 * (1 - gpus)
    beside = Lanes(card, monkeypatch)
    assert beside.fill(gpus=gpus, lane_mb=1024) == fit


def test_what_a_stranger_holds_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(40, 1)
    card.others_gb = 20
    assert Lanes(card, monkeypatch).fill(lane_mb=1024) == 16


def test_a_worker_asks_for_as_many_trials_as_its_share_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, space = make({LR: "interval(1e-4, 1e-3)"}, trials=50)
    coordinator = CoordinatorActor(spec, space, tmp_path)
    found = DryRun(
        rows=4, tokens=100, peak_mb=6144.0, checkpoint_mb=1.0, seconds=0.1, step_mb=4096.0
    )
    coordinator.begin(BOX, found)
    worker_config = WorkerConfig(
        root=tmp_path, examples=8, cpus=1, gpus=0.5, lanes=MOST, fits_unknown=True
    )
    worker = TrialLoop(coordinator, worker_config, "worker 0", "box:1", worker_config.files())
    worker._fill()
    assert len(worker._queue) == 1  # what kind of pack it wants is not known before
    waiting = worker._queue.popleft()
    assert waiting.group is not None
    worker._pack = Lanes(Card(40, 1), monkeypatch).pack
    worker._pack.group = waiting.group
    worker._attach(worker._pack, waiting)
    worker._fill()
    assert worker._pack.count == 4  # (0.9 x 20 GB - 2 GB) / 4 GB
