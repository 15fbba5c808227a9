"""Measures the eval_loss of lanes that are due at once, over the same rows, in shared passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainers.packed.frozen_base import Base, Groups, parts_of
from trainers.packed.lane import Lane
from trainers.packed.micro_batches import Placing, sent_together
from trainers.trial.evaluation import Batch, Measured, Rows, computing_in


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
        sums = self._sums(lanes).cpu().numpy()  # the one wait for the device
        return [
            self._rows.measured(float(total), rows)
            for total, rows in zip(sums[:, 0], sums[:, 1:], strict=True)
        ]

    def _sums(self, lanes: Sequence[Lane]) -> torch.Tensor:
        """Sums of -log p over all labels and over those of each row, [lanes, 1 + rows], float64."""
        width = 1 + len(self._rows.row_tokens)
        sums = torch.zeros(len(lanes), width, dtype=torch.float64, device=self._base.device)
        for batch in self._rows.batches:
            is_flat = self._base.is_worth_it([batch.lengths], batch.ids.numel())
            tokens = sum(batch.lengths) if is_flat else batch.ids.numel()
            size = max(1, self._rows.pass_tokens // tokens)
            for start in range(0, len(lanes), size):
                some = lanes[start : start + size]
                losses, rows = self._losses_of(some, batch, is_flat)
                for place, own in enumerate(losses.chunk(len(some)), start):
                    sums[place, 0] += own.sum(dtype=torch.float64)
                    sums[place, 1:].index_add_(0, rows, own.double())
        return sums

    def _losses_of(
        self, lanes: Sequence[Lane], batch: Batch, is_flat: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-log p of each target of a batch, lane after lane; and each target's row, of one lane."""
        device, many = self._base.device, len(lanes)
        rows, tokens = batch.ids.shape
        padded = None if is_flat else ([rows] * many, tokens)
        placing = Placing([batch.lengths] * many, device, padded)
        ids = np.zeros(placing.total, dtype=np.int64)
        own = batch.ids.numpy()
        if padded is None:
            own = own[np.arange(tokens) < np.array(batch.lengths)[:, None]]
        ids[: many * own.size] = np.tile(own.ravel(), many)
        row, place = np.divmod(batch.index.numpy(), tokens)
        index = placing.starts.reshape(many, rows)[:, row] + place
        targets = np.tile(batch.targets.numpy(), many)
        assert batch.rows is not None
        found = sent_together(
            [ids, index.ravel(), targets, batch.rows.numpy(), *placing.arrays()], device
        )
        ids_there, index_there, targets_there, rows_there = (next(found) for _ in range(4))
        inputs = placing.inputs(ids_there, list(found))
        with self._base.passing(parts_of(lanes, placing.counts), inputs):
            return self._base.losses(inputs, index_there, targets_there), rows_there
