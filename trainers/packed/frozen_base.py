"""Holds the frozen base model of a pack, and passes the rows of lanes through it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch

from sweeps.config.spec import Kernels, ModelSpec, TrainSpec
from trainers.flat import attention as flat_attention
from trainers.flat import check as flat_check
from trainers.model import kernels as model_kernels
from trainers.model.loading import choose_for, load_base
from trainers.model.tokenizer import IGNORED, pad_id
from trainers.packed.adapter_bank import Adapter, fresh
from trainers.packed.lane import Lane
from trainers.packed.layer import Part, Pass, Switch
from trainers.packed.lm_head import Head
from trainers.packed.micro_batches import Inputs, MicroBatch, Placing, sent_together
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

# On a CPU, what a lane of unlike length costs in each layer, in weights that one token is
# multiplied with: measured with `benchmarks/packing.py`. A row costs half of it, in attention.
_PIECE = 200_000

log = logging.getLogger(__name__)


class Base:
    """The frozen model of all lanes of a device.

    Attributes:
        is_flat: the rows of a pass may lie one after another, without padding.
        note: why it has not the kernels that were asked for; empty if it has.

    Args:
        pads: whether rows are padded to the longest of a pass, if the model can do without; None
            leaves it to what costs less.
        kernels: of the model's norms and gated layers, if they compute the same.
    """

    def __init__(
        self,
        train: TrainSpec,
        chosen: SimpleNamespace,
        device: str,
        *,
        pads: bool | None = None,
        kernels: Kernels = "torch",
    ) -> None:
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
        self.note = self._use_liger(train.model) if kernels == "liger" else ""
        self.is_flat = not pads and not self._padding(train.model)
        self._weighs = pads is None and self.device.type == "cpu"
        self._recompute()
        if self._again:
            self.model.enable_input_require_grads()
        self.model.train()

    def is_worth_it(self, lengths: Sequence[Sequence[int]], padded: int) -> bool:
        """Whether a pass is to be flat: it may be, and padding costs more than what it saves.

        Args:
            lengths: of the rows of each lane.
            padded: tokens of the padded pass.
        """
        if not self.is_flat or not self._weighs:
            return self.is_flat
        counts = [sum(own) for own in lengths]
        pieces = sum(map(len, lengths)) / 2 + (len(counts) if len(set(counts)) > 1 else 0)
        return (padded - sum(counts)) * self._weights > _PIECE * pieces

    @cached_property
    def _weights(self) -> float:
        """Weights of a linear layer, on average."""
        head = self.model.get_output_embeddings()
        layers = (each for each in self._modules.values() if hasattr(each, "in_features"))
        sizes = [each.in_features * each.out_features for each in layers if each is not head]
        return float(np.mean(sizes)) if sizes else math.inf

    def _padding(self, spec: ModelSpec) -> str:
        """Why the rows of this model are padded; empty if they need not be."""
        if found := flat_check.settle(self.model, spec):
            log.info("rows are padded to the longest of a pass: %s", found)
        return found

    def _use_liger(self, spec: ModelSpec) -> str:
        """Let liger-kernel compute the norms and gated layers, or say why it does not."""
        halves = (self.computes or self.model.dtype) != torch.float32
        with computing_in(self.computes, self.device):
            found = model_kernels.give(self.model, is_half=halves or spec.quantization != "none")
        if not found:
            return ""
        note = f"engine.kernels=liger is not used: {found}"
        log.warning(note)
        return note

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
    def passing(self, parts: list[Part], inputs: Inputs, *, trains: bool = False) -> Iterator[Pass]:
        """Within, the tokens of a pass belong to lanes as `parts` say."""
        self.switch.now = Pass(
            parts=parts,
            tokens=inputs.ids.numel(),
            computes=self.computes,
            trains=trains,
            again=trains and self._again,
        )
        layout = inputs.layout
        try:
            with flat_attention.laid_out(layout) if layout is not None else nullcontext():
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
        rows, tokens = (lane.bank.shape.rows for lane in lanes), max(b.tokens for b in batches)
        is_flat = self.is_worth_it([batch.lengths for batch in batches], sum(rows) * tokens)
        plan = _Plan(lanes, batches, self._pad, self.device, is_flat=is_flat)
        with self.passing(plan.parts, plan.inputs, trains=True) as now:
            losses, hits = self._forward(plan)
            now.goes_back = True
            losses.sum().backward()
        return losses.detach(), hits

    def _forward(self, plan: _Plan) -> tuple[torch.Tensor, torch.Tensor]:
        with computing_in(self.computes, self.device):
            hidden = self._hidden(plan.inputs, plan.index)
            loss, is_first = self._head.score(hidden, plan.targets)
        sums = torch.zeros_like(plan.window_labels)
        return (
            sums.index_add(0, plan.owner, loss) / plan.window_labels,
            sums.index_add(0, plan.owner, is_first.to(sums.dtype)) / plan.labels,
        )

    def losses(self, inputs: Inputs, index: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """-log p of each target, [targets]; `index` says which of all positions predicts it."""
        if self._measures_by_head:
            return self._head.losses(self._hidden(inputs, index), targets)
        batch = Batch(ids=inputs.ids, index=index, targets=targets)
        return minus_log_p(labelled_logits(self.model, batch, **inputs.options), targets)

    def _hidden(self, inputs: Inputs, index: torch.Tensor) -> torch.Tensor:
        """Compute the last hidden states of some positions of all rows, [positions, features].

        No mask is needed: attention is causal, and knows the rows of a flat pass; in a padded one
        rows are padded on the right.
        """
        found = self.model.base_model(input_ids=inputs.ids, use_cache=False, **inputs.options)
        hidden = found.last_hidden_state
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
    """The rows of lanes as one pass, built on the host and sent at once.

    Attributes:
        index, targets, owner: position, target and lane of each label.
        window_labels, labels: their numbers in each lane's window and micro-batch, at least 1.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        batches: Sequence[MicroBatch],
        pad: int,
        device: torch.device,
        *,
        is_flat: bool,
    ) -> None:
        held = [0 if is_flat else lane.bank.shape.rows for lane in lanes]
        padded = None if is_flat else (held, max(batch.tokens for batch in batches))
        placing = Placing([batch.lengths for batch in batches], device, padded)
        self.parts = parts_of(lanes, placing.counts)
        is_ragged = is_flat and device.type != "cpu"
        found = sent_together(
            [
                *_tokens(batches, placing, pad),
                *(
                    batch.kept if is_flat and lane.stream.probability else None
                    for lane, batch in zip(lanes, batches, strict=True)
                ),
                *(np.cumsum(part.counts) if is_ragged else None for part in self.parts),
                *placing.arrays(),
            ],
            device,
        )
        ids, self.index, self.targets, self.owner = (next(found) for _ in range(4))
        kept = [next(found) for _ in batches]
        first = 0
        for part in self.parts:
            some = slice(first, first + part.lanes)
            part.streams = [lane.stream for lane in lanes[some]]
            part.shapes = [(len(batch.rows), batch.tokens) for batch in batches[some]]
            part.kept, part.rows = kept[some], held[first]
            if not any(stream.probability for stream in part.streams):
                part.streams = None
            ends = next(found)
            part.ends = None if ends is None else ends.to(torch.int32)
            first += part.lanes
        self.inputs = placing.inputs(ids, list(found))
        counts = [[batch.window_labels for batch in batches], [batch.labels for batch in batches]]
        self.window_labels, self.labels = sent(
            torch.from_numpy(np.maximum(np.array(counts, dtype=np.float32), 1)), device
        )


def _tokens(
    batches: Sequence[MicroBatch], placing: Placing, pad: int
) -> tuple[np.ndarray[Any, Any], ...]:
    """Token ids of a pass; position, target and lane of each label."""
    ids = np.full(placing.total, pad)
    index, targets, owner = [], [], []
    starts = iter(placing.starts)
    for place, batch in enumerate(batches):
        for row, labels in batch.rows:
            start = next(starts)
            ids[start : start + len(row)] = row
            where = np.flatnonzero(labels[1:] != IGNORED)
            index.append(where + start)
            targets.append(labels[1:][where])
            owner.append(np.full(len(where), place))
    return ids, *(np.concatenate(each) for each in (index, targets, owner))


def parts_of(lanes: Sequence[Lane], counts: Sequence[int]) -> list[Part]:
    """Group neighbouring lanes by bank; each has `counts` tokens of a pass."""
    parts: list[Part] = []
    begin = 0
    for lane, count in zip(lanes, counts, strict=True):
        bank = lane.bank
        slot = next(i for i, each in enumerate(bank.slots) if each is lane.slot)
        if not parts or parts[-1].bank is not bank or parts[-1].last != slot:
            parts.append(Part(bank=bank, first=slot, last=slot, begin=begin, counts=[]))
        parts[-1].last = slot + 1
        parts[-1].counts.append(count)
        begin += count
    return parts
