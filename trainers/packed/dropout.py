"""Draws a lane's dropout as its solo run does, whatever its neighbours are."""

from __future__ import annotations

import torch


class Stream:
    """Draws masks from the lane's own random state, at the shape without neighbours' padding.

    On a CPU `bernoulli_` draws what `F.dropout` does. On a GPU the draws are those of the kernel
    that `F.dropout` calls, under the lane's state.
    """

    def __init__(self, probability: float, state: torch.Tensor, device: torch.device) -> None:
        self.probability = probability
        self._device = device
        self._generator = torch.Generator(device=device)
        self._generator.set_state(state)
        self._before = self._before_window = state
        self._drawn: dict[str, list[torch.Tensor]] = {}  # module -> the states before its draws

    @property
    def device_type(self) -> str:
        return self._device.type

    @property
    def state(self) -> torch.Tensor:
        return self._generator.get_state()

    def begin(self, *, in_window: bool) -> None:
        """Begin a micro-batch; `in_window`: of an accumulation that has begun already."""
        if self.probability:
            self._before = self.state
            self._before_window = self._before_window if in_window else self._before
            self._drawn.clear()

    def undo(self) -> None:
        """Begin the micro-batch again."""
        if self.probability:
            self._generator.set_state(self._before)
            self._drawn.clear()

    def undo_window(self) -> None:
        """Begin the accumulation again."""
        if self.probability:
            self._generator.set_state(self._before_window)

    def mask(
        self,
        module: str,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        *,
        again: bool = False,
        goes_back: bool = False,
        order: tuple[int, ...] = (0, 1, 2),
    ) -> torch.Tensor:
        """Draw 1 for each activation that is kept, else 0, [rows, tokens, features], uint8.

        Args:
            dtype: of what PEFT drops, which is the adapter's: a GPU's draws may depend on it.
            again: activations are computed anew in the backward pass (activation checkpointing).
            goes_back: this is that second time. A module that was asked for several masks in the
                forward pass gets them again, in their order.
            order: dimensions of `shape`, the slowest in memory first: draws follow memory.
        """
        if goes_back:
            now, states = self.state, self._drawn[module]
            self._generator.set_state(states[0])
            states.append(states.pop(0))
        elif again:
            self._drawn.setdefault(module, []).append(self.state)
        rows, tokens, features = (shape[dimension] for dimension in order)
        mask = self._draw((rows, tokens, features), dtype)
        if goes_back:
            self._generator.set_state(now)
        return mask.permute([order.index(dimension) for dimension in range(3)])

    def _draw(self, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
        keep = 1 - self.probability
        if self._device.type != "cuda":
            mask = torch.empty(shape, dtype=torch.uint8, device=self._device)
            return mask.bernoulli_(keep, generator=self._generator)
        # The kernel that F.dropout calls; there is no public way to give it a generator.
        ones = torch.ones(shape, dtype=dtype, device=self._device)
        return torch._fused_dropout(ones, keep, self._generator)[1]
