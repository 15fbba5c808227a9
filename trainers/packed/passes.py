"""Micro-steps of many lanes, in as few passes through the base as memory allows."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trainers.guards import free_memory, is_device_lost, is_out_of_memory
from trainers.packed.base import Base
from trainers.packed.lane import Lane
from trainers.packed.rows import MicroBatch

log = logging.getLogger(__name__)


class Passes:
    """Once memory was too small for all lanes at once, smaller groups of them pass, until one has
    left: it may have been the one that took so much."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._most: int | None = None  # lanes of a pass

    def lane_left(self) -> None:
        """Try again with all lanes at once. Where one came, that would fail as before."""
        self._most = None

    def run(
        self, lanes: Sequence[Lane], batches: Sequence[MicroBatch]
    ) -> list[tuple[Lane, Exception]]:
        """Pass a micro-batch of each lane, neighbours in the pack; those that fail even alone.

        Raises:
            What the device was lost by: no lane can be saved then.
        """
        size = self._most or len(lanes)
        failed = []
        for start in range(0, len(lanes), size):
            failed += self._group(lanes[start : start + size], batches[start : start + size])
        return failed

    def _group(
        self, lanes: Sequence[Lane], batches: Sequence[MicroBatch]
    ) -> list[tuple[Lane, Exception]]:
        error = self._attempt(lanes, batches)
        if error is None:
            return []
        if len(lanes) == 1:
            return [(lanes[0], error)]
        size = 1  # one of them fails: each alone shows which
        if is_out_of_memory(error):
            size = (len(lanes) + 1) // 2
            self._most = size
            log.warning("out of memory: until one leaves, at most %d trials pass at once", size)
        del error
        free_memory()
        failed = []
        for start in range(0, len(lanes), size):
            failed += self._group(lanes[start : start + size], batches[start : start + size])
        return failed

    def _attempt(self, lanes: Sequence[Lane], batches: Sequence[MicroBatch]) -> Exception | None:
        """One pass; if it fails, its lanes are as they were."""
        before = [lane.slot.grads.clone() if lane.in_window else None for lane in lanes]
        for lane in lanes:
            lane.stream.begin()
        try:
            losses, hits = self._base.train_pass(lanes, batches)
        except Exception as error:
            if is_device_lost(error, str(self._base.device)):
                raise
            for lane, grads in zip(lanes, before, strict=True):
                lane.stream.undo()
                lane.slot.grads.zero_() if grads is None else lane.slot.grads.copy_(grads)
            return error.with_traceback(None)  # which would hold all that the pass allocated
        for place, lane in enumerate(lanes):
            lane.add(losses[place], hits[place])
        return None
