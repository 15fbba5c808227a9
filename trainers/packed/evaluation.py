"""Measures the eval_loss of lanes that are due at once, over the same rows, in shared passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainers.packed.frozen_base import Base, Groups, parts_of
from trainers.packed.lane import Lane
from trainers.trial.evaluation import Measured, Rows, computing_in


class Evaluation:
    """Measures lanes as `Rows.measure` measures one model."""

    def __init__(self, rows: Rows, base: Base) -> None:
        self._rows = rows
        self._base = base
        self.groups = Groups(
            base.device, "out of memory in an evaluation: until one leaves %d trials at once"
        )

    def base_loss(self) -> Measured:
        """The loss of the base model, without any lane."""
        return self._rows.measure(self._base.model, autocast=self._base.computes)

    @torch.no_grad()
    def measure(self, lanes: Sequence[Lane]) -> list[Measured | Exception]:
        """The loss of each lane, neighbours in the pack; or why it could not be measured.

        Raises:
            What the device was lost by.
        """
        if not lanes:
            return []
        model = self._base.model
        was_training = model.training
        model.eval()
        try:
            with computing_in(self._base.computes, self._base.device):
                return self.groups.run(lanes, self._losses)
        finally:
            model.train(was_training)

    def _losses(self, lanes: Sequence[Lane]) -> list[Measured]:
        tokens = self._rows.tokens
        sums = self._sums(lanes).tolist()  # the one wait for the device
        return [Measured(loss=total / max(1, tokens), tokens=tokens) for total in sums]

    def _sums(self, lanes: Sequence[Lane]) -> torch.Tensor:
        """Sums of -log p, [lanes], float64."""
        device = self._base.device
        totals = torch.zeros(len(lanes), dtype=torch.float64, device=device)
        for each in self._rows.batches:
            batch = each.on(device)
            rows, tokens = batch.ids.shape
            size = max(1, self._rows.pass_tokens // (rows * tokens))
            for start in range(0, len(lanes), size):
                some = lanes[start : start + size]
                many = len(some)
                first = torch.arange(many, device=device)[:, None] * (rows * tokens)  # of a lane
                with self._base.passing(parts_of(some, rows=rows), tokens):
                    losses = self._base.losses(
                        batch.ids.repeat(many, 1),
                        (batch.index + first).flatten(),
                        batch.targets.repeat(many),
                    )
                for place, own in enumerate(losses.chunk(many)):
                    totals[start + place] += own.sum(dtype=torch.float64)
        return totals
