"""Holds the frozen base model of a pack, and passes the rows of lanes through it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch

from sweeps.config.spec import TrainSpec
from trainers.model.loading import choose_for, load_base
from trainers.model.tokenizer import IGNORED, pad_id
from trainers.packed.adapter_bank import Adapter, fresh
from trainers.packed.lane import Lane
from trainers.packed.layer import Part, Pass, Switch
from trainers.packed.lm_head import Head
from trainers.packed.micro_batches import MicroBatch
from trainers.sft.config import CHECKPOINTING
from trainers.trial.evaluation import (
    Batch,
    computing_in,
    labelled_logits,
    minus_log_p,
    sent,
)
from trainers.trial.failures import is_device_lost, is_out_of_memory
from trainers.trial.meters import free_memory

Value = TypeVar("Value")

log = logging.getLogger(__name__)


class Base:
    """The frozen model of all lanes of a device."""

    def __init__(self, train: TrainSpec, chosen: SimpleNamespace, device: str) -> None:
        self.device = torch.device(device)
        self.model: Any = load_base(train.model, device)
        self.model.requires_grad_(False)
        self.switch = Switch()
        self._modules = dict(self.model.named_modules())
        self._head = Head(self.model)
        self._measures_by_head = self._head.is_whole(self.model.eval())
        self.computes = choose_for(train, device).autocast
        assert self.computes != torch.float16, (
            "trainers.packed.compatibility.obstacle lets none come"
        )
        self._again = bool(getattr(chosen, CHECKPOINTING))
        self._pad = pad_id(train.model)
        self._options = getattr(chosen, f"{CHECKPOINTING}_kwargs")
        self._recompute()
        if self._again:
            self.model.enable_input_require_grads()
        self.model.train()

    def adapter(self, peft: Mapping[str, Any], seed: int) -> Adapter:
        """Make the adapter that SFTTrainer begins with; see `adapter_bank.fresh`."""
        if self._again:  # else PEFT adds a hook for it each time
            self.model.gradient_checkpointing_disable()
        try:
            return fresh(self.model, peft, seed)
        finally:
            self._recompute()

    def _recompute(self) -> None:
        if self._again:
            self.model.gradient_checkpointing_enable(self._options)

    def hook(self, names: Iterator[str]) -> None:
        """Let lanes add their adapters to the modules `names`."""
        for name in names:
            self.switch.hook(name, self._modules[name])

    @contextmanager
    def passing(self, parts: list[Part], tokens: int, *, trains: bool = False) -> Iterator[Pass]:
        """Within, the rows of the model's batch belong to lanes as `parts` say."""
        self.switch.now = Pass(
            parts=parts,
            tokens=tokens,
            computes=self.computes,
            trains=trains,
            again=trains and self._again,
        )
        try:
            yield self.switch.now
        finally:
            self.switch.now = None

    def train_pass(
        self, lanes: Sequence[Lane], batches: Sequence[MicroBatch]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of a micro-batch of each lane, neighbours in the pack, to the banks.

        Returns:
            For each lane its share of its window's loss, and the share of tokens predicted best.
        """
        parts = parts_of(lanes, batches=batches)
        plan = _Plan(lanes, batches, self._pad)
        with self.passing(parts, plan.tokens, trains=True) as now:
            losses, hits = self._forward(plan)
            now.goes_back = True
            losses.sum().backward()
        return losses.detach(), hits

    def _forward(self, plan: _Plan) -> tuple[torch.Tensor, torch.Tensor]:
        ids, index, targets, owner, window, own = plan.tensors(self.device)
        with computing_in(self.computes, self.device):
            loss, is_first = self._head.score(self._hidden(ids, index), targets)
        sums = torch.zeros_like(window)
        return (
            sums.index_add(0, owner, loss) / window,
            sums.index_add(0, owner, is_first.to(sums.dtype)) / own,
        )

    def losses(self, ids: torch.Tensor, index: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p of each target, [targets]; `index` says which of all positions predicts it."""
        if self._measures_by_head:
            return self._head.losses(self._hidden(ids, index), targets)
        logits = labelled_logits(self.model, Batch(ids=ids, index=index, targets=targets))
        return minus_log_p(logits, targets)

    def _hidden(self, ids: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Compute the last hidden states of some positions of all rows, [positions, features].

        Rows are padded on the right and attention is causal: no mask is needed.
        """
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)


class Groups:
    """Gives lanes to a pass together; after it ran out of memory, in smaller groups.

    The groups stay small until a lane leaves: it may have been the one that took so much.
    """

    def __init__(self, device: torch.device, warning: str) -> None:
        self._device = str(device)
        self._warning = warning  # logged with the number of lanes of the smaller groups
        self._most: int | None = None

    def lane_left(self) -> None:
        """Try all lanes at once again. After a lane came, that would fail as before."""
        self._most = None

    def run(
        self, lanes: Sequence[Lane], act: Callable[[Sequence[Lane]], Sequence[Value]]
    ) -> list[Value | Exception]:
        """What `act` gives for each lane, neighbours in the pack; or why it fails even alone.

        Raises:
            What the device was lost by: no lane can be saved then.
        """
        results: list[Value | Exception] = []
        while len(results) < len(lanes):
            rest = lanes[len(results) :]
            results += self._group(rest[: self._most or len(rest)], act)
        return results

    def _group(
        self, lanes: Sequence[Lane], act: Callable[[Sequence[Lane]], Sequence[Value]]
    ) -> list[Value | Exception]:
        try:
            return list(act(lanes))
        except Exception as error:
            if is_device_lost(error, self._device):
                raise
            failure = error.with_traceback(None)  # which would hold all that the pass allocated
        if len(lanes) == 1:
            return [failure]
        size = 1  # one of them fails: each alone shows which
        if is_out_of_memory(failure):
            self._most = size = (len(lanes) + 1) // 2
            log.warning(self._warning, size)
        del failure
        free_memory()
        starts = range(0, len(lanes), size)
        return [each for at in starts for each in self._group(lanes[at : at + size], act)]


class _Plan:
    """The rows of lanes as one batch, built on the host and sent at once."""

    def __init__(self, lanes: Sequence[Lane], batches: Sequence[MicroBatch], pad: int) -> None:
        self.tokens = max(batch.tokens for batch in batches)
        self._ids = np.full((sum(lane.bank.shape.rows for lane in lanes), self.tokens), pad)
        index, targets, owner = [], [], []
        row = 0
        for place, (lane, batch) in enumerate(zip(lanes, batches, strict=True)):
            for offset, (ids, labels) in enumerate(batch.rows):
                self._ids[row + offset, : len(ids)] = ids
                where = np.flatnonzero(labels[1:] != IGNORED)
                index.append(where + (row + offset) * self.tokens)
                targets.append(labels[1:][where])
                owner.append(np.full(len(where), place))
            row += lane.bank.shape.rows
        self._of_labels = np.stack([np.concatenate(each) for each in (index, targets, owner)])
        counts = [[batch.window_labels for batch in batches], [batch.labels for batch in batches]]
        self._counts = np.maximum(np.array(counts, dtype=np.float32), 1)

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Copy the plan to `device`.

        Returns:
            Token ids [rows, tokens]; position, target and lane of each label; numbers of labels of
            each lane's window and micro-batch.
        """
        arrays = (self._ids.astype(np.int64), self._of_labels.astype(np.int64), self._counts)
        ids, of_labels, counts = (sent(torch.from_numpy(array), device) for array in arrays)
        return ids, *of_labels, *counts


def parts_of(
    lanes: Sequence[Lane], *, batches: Sequence[MicroBatch] | None = None, rows: int | None = None
) -> list[Part]:
    """Group neighbouring lanes by bank, with their training micro-batches or `rows` rows each."""
    parts: list[Part] = []
    row = 0
    for place, lane in enumerate(lanes):
        bank = lane.bank
        slot = next(i for i, each in enumerate(bank.slots) if each is lane.slot)
        own = rows or bank.shape.rows
        if not parts or parts[-1].bank is not bank or parts[-1].last != slot:
            parts.append(Part(bank=bank, first=slot, last=slot, row=row, rows=own))
        parts[-1].last = slot + 1
        if batches is not None:
            shape = (len(batches[place].rows), batches[place].tokens)
            parts[-1].shapes = [*parts[-1].shapes, shape]
            parts[-1].streams = [*(parts[-1].streams or []), lane.stream]
        row += own
    for part in parts:
        if part.streams is not None and not any(each.probability for each in part.streams):
            part.streams = None
    return parts
