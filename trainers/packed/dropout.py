"""A lane's dropout: the draws of its solo run, whoever its neighbours are."""

from __future__ import annotations

import torch


class Stream:
    """Masks from a random state of the lane's own, drawn at the shape without neighbours' padding.

    On a CPU `bernoulli_` draws what `F.dropout` does. On a GPU the draws are those of the kernel
    that `F.dropout` calls, under the lane's state.
    """

    def __init__(self, probability: float, state: torch.Tensor, device: torch.device) -> None:
        self.probability = probability
        self._device = device
        self._generator = torch.Generator(device=device)
        self._generator.set_state(state)
        self._before = state
        self._drawn: dict[str, torch.Tensor] = {}  # module -> the state before its draw

    @property
    def device_type(self) -> str:
        return self._device.type

    @property
    def state(self) -> torch.Tensor:
        return self._generator.get_state()

    def begin(self) -> None:
        """A micro-batch begins."""
        if self.probability:
            self._before = self.state
            self._drawn.clear()

    def undo(self) -> None:
        """The micro-batch begins anew."""
        if self.probability:
            self._generator.set_state(self._before)
            self._drawn.clear()

    def noise(
        self, module: str, shape: tuple[int, int, int], dtype: torch.dtype, *, again: bool
    ) -> torch.Tensor:
        """Zeros, and 1 / (1 - p) where an activation is kept, [rows, tokens, features].

        Args:
            again: passes are computed twice (activation checkpointing): the second time a module
                asks, it is given what it was given first.
        """
        now: torch.Tensor | None = None
        if again:
            now = self.state
            if module in self._drawn:
                self._generator.set_state(self._drawn[module])
            else:
                self._drawn[module], now = now, None
        noise = self._draw(shape, dtype)
        if now is not None:
            self._generator.set_state(now)
        return noise

    def _draw(self, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
        if self._device.type != "cuda":
            noise = torch.empty(shape, dtype=dtype)
            keep = 1 - self.probability
            return noise.bernoulli_(keep, generator=self._generator).div_(keep)
        outer = torch.cuda.get_rng_state(self._device)
        torch.cuda.set_rng_state(self._generator.get_state(), self._device)
        ones = torch.ones(shape, dtype=dtype, device=self._device)
        noise, _ = torch.native_dropout(ones, self.probability, True)
        self._generator.set_state(torch.cuda.get_rng_state(self._device))
        torch.cuda.set_rng_state(outer, self._device)
        return noise
