"""The states of Python's, NumPy's and torch's random generators, to go back to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class RandomStates:
    """What the generators of this process hold; `gpu` is the current GPU's, None on a CPU."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    gpu: torch.Tensor | None

    @classmethod
    def now(cls, device: str) -> RandomStates:
        """The states as they are; `device` is what is trained on."""
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),
            cpu=torch.get_rng_state(),
            gpu=torch.cuda.get_rng_state() if device.startswith("cuda") else None,
        )

    def restore(self) -> None:
        """Let the generators go on from these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)


@contextmanager
def untouched_random_states(device: str) -> Iterator[None]:
    """Give back, on leaving, the states that the generators have now."""
    before = RandomStates.now(device)
    try:
        yield
    finally:
        before.restore()
