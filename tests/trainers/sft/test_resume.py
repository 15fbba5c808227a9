"""Killed inside an accumulation window and gone on with: every optimizer and scheduler.

As the engine it began in, and as the other one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.packs import EXAMPLES, alone, alone_once, key, pack, short_rows, small, task
from support.training import Recorder

from sweeps.config.spec import TrainSpec
from sweeps.core import fault_injection
from sweeps.storage.run_folder import RunFolder
from trainers.packed.compatibility import obstacle
from trainers.packed.engine import Engine
from trainers.sft.lr_schedule import names
from trainers.sft.optimizers import available

pytestmark = pytest.mark.slow

# Six steps of two micro-batches, checkpoints at 2, 4 and 6. Killed before the second micro-batch of
# step 4, a trial goes on from step 2.
WINDOW, BATCHES, KEPT, LAST = 4, 7, 2, 6
SCHEDULES: dict[str, dict[str, Any]] = {
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 0.5}},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    # Every evaluation counts as no better.
    "reduce_lr_on_plateau": {"lr_scheduler_kwargs": {"patience": 0, "threshold": 0.9}},
    "greedy": {"lr_scheduler_kwargs": {"patience": 0, "threshold": 0.9}},
}
RATES = {"sgd": 0.05, "adagrad": 5e-3}


def trial(place: int, optimizer: str, schedule: str) -> TrainSpec:
    return small(
        optim=optimizer,
        lr_scheduler_type=schedule,
        warmup_steps=1,
        weight_decay=0.01,
        learning_rate=RATES.get(optimizer, 2e-3),
        seed=place,
        peft={"r": 16, "lora_alpha": 16, "lora_dropout": 0.1},
        **SCHEDULES.get(schedule, {}),
    )


def matrix() -> list[TrainSpec]:
    """Each optimizer and each scheduler that runs here, in pairs."""
    optimizers, schedules = available("cpu"), names()
    return [
        trial(
            place, optimizers[place % len(optimizers)], schedules[(place * 5 + 1) % len(schedules)]
        )
        for place in range(max(len(optimizers), len(schedules)))
    ]


@dataclass
class Killed:
    """All trials of the matrix, killed inside a window."""

    specs: list[TrainSpec]
    alone: Path
    lanes: Path

    def copy(self, of: str, root: Path) -> Path:
        """A folder to go on in."""
        return Path(shutil.copytree(getattr(self, of), root / of))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    roots = [tmp_path_factory.mktemp(name) for name in ("alone", "lanes")]
    found = Killed(matrix(), *roots)
    for name in ("optim", "lr_scheduler_type"):
        everything = set(available("cpu") if name == "optim" else names())
        assert {spec.trainer[name] for spec in found.specs} == everything
    for place, spec in enumerate(found.specs):
        with pytest.MonkeyPatch.context() as patch:
            fault = fault_injection.parse(f"oom:batch:{2 * WINDOW}")
            patch.setattr(fault_injection, "_armed", lambda fault=fault: (fault,))
            with pytest.raises(MemoryError):
                alone(found.alone, spec, place=place)
        assert fault.passed == 2 * WINDOW
    assert not [reason for spec in found.specs if (reason := obstacle(spec))]
    made = pack(found.lanes, found.specs)
    made.advance(BATCHES)  # and then it is heard of no more
    assert all(len(seen.rows) == WINDOW - 1 for seen in made.seen)
    for root in roots:
        for place in range(len(found.specs)):
            folder = RunFolder(root).checkpoints(key(place))
            assert [path.name for path in folder.glob("step-*")] == [f"step-{KEPT:06d}"]
    return found


def whole(spec: TrainSpec) -> Recorder:
    """By SFTTrainer, from its first step to its last."""
    return alone_once(spec)[1]


def off(ours: Recorder, spec: TrainSpec) -> float:
    """The largest relative difference of what was measured after the kill."""
    assert ours.step == KEPT
    theirs = whole(spec)
    rows = [row["loss"] for row in ours.trained], [row["loss"] for row in theirs.trained[KEPT:]]
    reports = [r[2] for r in ours.measured], [r[2] for r in theirs.measured[1:]]
    assert len(rows[0]) == LAST - KEPT
    pairs = [*zip(*rows, strict=True), *zip(*reports, strict=True)]
    return max(abs(one / other - 1) for one, other in pairs)


def named(spec: TrainSpec) -> str:
    return f"{spec.trainer['optim']}, {spec.trainer['lr_scheduler_type']}"


@pytest.mark.long
def test_alone_it_goes_on_to_the_last_bit(killed: Killed, tmp_path: Path) -> None:
    root = killed.copy("alone", tmp_path)
    for place, spec in enumerate(killed.specs):
        ours = alone(root, spec, Recorder(attempt=2), place=place)
        assert ours.step == KEPT
        assert ours.trained == whole(spec).trained[KEPT:], named(spec)
        assert ours.measured == whole(spec).measured[1:], named(spec)
        last = RunFolder(root).checkpoint(key(place), LAST)
        never = RunFolder(alone_once(spec)[0]).checkpoint(key(0), LAST)
        name = "adapter_model.safetensors"
        assert (last / name).read_bytes() == (never / name).read_bytes(), named(spec)


@pytest.mark.long
def test_a_lane_goes_on_as_a_lane(killed: Killed, tmp_path: Path) -> None:
    root = killed.copy("lanes", tmp_path)
    places = range(len(killed.specs))
    seen = lanes(root, killed.specs, [place for place in places if place % 3])
    seen |= lanes(root, killed.specs, places[::3])  # beside others than before
    worst = {named(spec): off(seen[place], spec) for place, spec in enumerate(killed.specs)}
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.long
def test_a_trial_goes_on_as_a_lane(killed: Killed, tmp_path: Path) -> None:
    root = killed.copy("alone", tmp_path)
    seen = lanes(root, killed.specs, range(len(killed.specs)))
    worst = {named(spec): off(seen[place], spec) for place, spec in enumerate(killed.specs)}
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.long
def test_a_lane_goes_on_alone(killed: Killed, tmp_path: Path) -> None:
    root = killed.copy("lanes", tmp_path)
    worst = {}
    for place, spec in enumerate(killed.specs):
        worst[named(spec)] = off(alone(root, spec, Recorder(attempt=2), place=place), spec)
    assert max(worst.values()) < 1e-5, worst


def lanes(root: Path, specs: Sequence[TrainSpec], places: Sequence[int]) -> dict[int, Recorder]:
    """Go on with the trials of these places as lanes of one pack."""
    engine = Engine(specs[0], short_rows(), device="cpu")
    seen = {place: Recorder(attempt=2) for place in places}
    for place in places:
        engine.attach(task(root, specs[place], place, EXAMPLES), seen[place])
    while engine.keys:
        for ended in engine.advance():
            assert ended.error is None, ended.error
    return seen
