"""eval_loss of lanes that are due at once, over the same rows, in shared passes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from trainers.packed.frozen_base import Base, parts_of
from trainers.packed.lane import Lane
from trainers.trial.evaluation import Measured, Rows, computing_in
from trainers.trial.failures import is_device_lost, is_out_of_memory
from trainers.trial.meters import free_memory

log = logging.getLogger(__name__)


class Evaluation:
    """Measures lanes as `Rows.measure` measures one model."""

    def __init__(self, rows: Rows, base: Base) -> None:
        self._rows = rows
        self._base = base
        self._most: int | None = None  # lanes of a pass, once memory was too small for more

    def lane_left(self) -> None:
        """Try again with all lanes at once: see `Passes`."""
        self._most = None

    def base_loss(self) -> Measured:
        """Of the base, without any lane."""
        return self._rows.measure(self._base.model, autocast=self._base.computes)

    @torch.no_grad()
    def measure(self, lanes: Sequence[Lane]) -> list[Measured | Exception]:
        """The loss of each lane, neighbours in the pack; or why it could not be measured.

        Raises:
            What the device was lost by.
        """
        model = self._base.model
        was_training = model.training
        model.eval()
        try:
            with computing_in(self._base.computes, self._base.device):
                return self._in_groups(list(lanes))
        finally:
            model.train(was_training)

    def _in_groups(self, lanes: list[Lane]) -> list[Measured | Exception]:
        size = self._most or len(lanes)
        try:
            starts = range(0, len(lanes), size)
            sums = [self._sums(lanes[start : start + size]) for start in starts]
            totals = torch.cat(sums).tolist()
        except Exception as error:
            if is_device_lost(error, str(self._base.device)):
                raise
            if len(lanes) == 1:
                return [error]
            if is_out_of_memory(error):
                self._most = max(1, size // 2)
                words = "out of memory in an evaluation: until one leaves %d trials at once, not %d"
                log.warning(words, self._most, size)
            elif size == 1:
                return [each for lane in lanes for each in self._in_groups([lane])]
        else:
            tokens = self._rows.tokens
            return [Measured(loss=total / max(1, tokens), tokens=tokens) for total in totals]
        free_memory()
        if self._most is None or self._most == size:  # not memory: find out whose fault it is
            return [each for lane in lanes for each in self._in_groups([lane])]
        return self._in_groups(lanes)

    def _sums(self, lanes: list[Lane]) -> torch.Tensor:
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
