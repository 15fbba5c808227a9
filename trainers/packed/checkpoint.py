"""Writes and reads a lane's checkpoint: the files of SFTTrainer, for both engines to go on from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from trainers.packed.compatibility import log_every
from trainers.packed.lane import Lane
from trainers.trial import checkpoint


def commit(lane: Lane) -> None:
    """Write a checkpoint of the lane at its step, and report it.

    Raises:
        DivergedError: a number since the last check was not finite.
        StaleAttemptError, DiskFullError: see `trainers.trial.checkpoint`.
    """
    lane.read()
    draft = lane.record.draft()
    with checkpoint.writing(draft):
        lane.adapter.save(lane.slot.weights, draft)
        torch.save(lane.stepping.state_dict(), draft / "optimizer.pt")
        torch.save(lane.stepping.schedule.state_dict(), draft / "scheduler.pt")
        torch.save(_random_states(lane), draft / "rng_state.pth")
        (draft / "trainer_state.json").write_text(json.dumps(_trainer_state(lane)))
        lane.record.commit(draft)


def restore(lane: Lane, folder: Path) -> None:
    """Load optimizer and schedule as either engine saved them; the adapter is loaded already."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    lane.stepping.load_state_dict(torch.load(folder / "optimizer.pt", **options))
    lane.stepping.schedule.load_state_dict(torch.load(folder / "scheduler.pt", **options))
    lane.record.state_bytes = lane.stepping.state_bytes


def random_state(folder: Path, device_type: str) -> torch.Tensor | None:
    """Read dropout's random state; None if the checkpoint is of another type of device."""
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        states = torch.load(folder / "rng_state.pth", weights_only=True)
    state: torch.Tensor | list[torch.Tensor] | None = states.get(device_type)
    # A trial on several GPUs saves the states of all GPUs; the first is rank 0's.
    return state[0] if isinstance(state, list) else state


def history(folder: Path) -> list[dict[str, float]]:
    """Read the rows that were logged so far."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return list(state.get("log_history") or [])


def first_state(seed: int) -> torch.Tensor:
    """The CPU's random state at a solo run's first dropout: its loader of rows has drawn once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        iter(DataLoader([0]))  # type: ignore[arg-type]
        return torch.random.get_rng_state()


def _random_states(lane: Lane) -> dict[str, Any]:
    seed = lane.task.train.seed
    states: dict[str, Any] = {
        "python": random.Random(seed).getstate(),
        "numpy": np.random.RandomState(seed).get_state(),
        "cpu": first_state(seed),
    }
    return states | {lane.stream.device_type: lane.stream.state}


def _trainer_state(lane: Lane) -> dict[str, Any]:
    return {
        "global_step": lane.record.step,
        "max_steps": lane.steps,
        "num_train_epochs": 1,
        "epoch": lane.record.examples / lane.task.examples,
        "logging_steps": log_every(lane.chosen, lane.steps),
        "train_batch_size": lane.task.train.batch_size,
        "log_history": lane.history,
    }
