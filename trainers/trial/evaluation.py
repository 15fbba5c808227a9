"""Measures `eval_loss`, in one way for both engines.

    eval_loss = sum of -log p(label) over all labelled evaluation tokens / number of those tokens

in nats; tokens with label -100 (prompts, padding) are left out. SFTTrainer's own eval_loss is a
mean of batch means and moves with the batch size; this one does not.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from sweeps.config.spec import ModelSpec
from trainers.model.tokenizer import IGNORED, pad_id
from trainers.trial.ranks import Ranks

if TYPE_CHECKING:
    from datasets import Dataset

_LOGIT_BYTES = 2**29  # of one batch's float32 logits and their copies
_GPU_LOGIT_BYTES = 2**30  # of one batch's float32 logits, if every token has a label
_CACHE_BYTES = 2**23  # of the logits that a CPU looks at together
_FEWEST_POSITIONS = 256  # however large the vocabulary
_MOST_TOKENS = 4096  # in a batch, padding counted: on a CPU larger ones gain nothing
_GPU_PASS_TOKENS = 2**14  # of a pass of many lanes, whose logits are never held


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A loss and how many tokens it was measured over; not finite if any token's loss was not.

    Attributes:
        loss: nats per labelled token.
        rows: [2, rows] float32, in the order of the data: each row's sum of -log p, and its tokens.
    """

    loss: float
    tokens: int
    rows: np.ndarray[Any, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one pass, padded on the right.

    Attributes:
        ids: [rows, tokens].
        index: of each label, the position in `ids` that predicts it, counted through all rows.
        targets: of each label, its token id.
        lengths: tokens of each row.
        rows: of each label, the number of its row in the data; None if nobody asks.
    """

    ids: torch.Tensor
    index: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[int, ...] = ()
    rows: torch.Tensor | None = None

    def on(self, device: torch.device) -> Batch:
        """This batch on a device; the host does not wait for a GPU."""
        return Batch(
            ids=sent(self.ids, device),
            index=sent(self.index, device),
            targets=sent(self.targets, device),
            lengths=self.lengths,
            rows=None if self.rows is None else sent(self.rows, device),
        )


class Rows:
    """Evaluation rows in padded batches: sorted by length once, and measured many times.

    The batches depend only on the rows, the vocabulary and the kind of device, so every trial
    measures the same thing.

    Attributes:
        pass_tokens: tokens of a pass of many lanes at most, padding counted.
        tokens: labelled tokens of all rows.
        row_tokens: those of each row, in the order of the data.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        pad_token_id: int,
        vocab_size: int,
        most_tokens: int = _MOST_TOKENS,
        on_gpu: bool = False,
    ) -> None:
        rows = sorted(
            ((row["input_ids"], row["labels"], place) for place, row in enumerate(dataset)),
            key=lambda row: len(row[0]),
        )
        held = _GPU_LOGIT_BYTES // (4 * vocab_size) if on_gpu else _LOGIT_BYTES // (8 * vocab_size)
        budget = max(1, min(most_tokens, held))
        self.pass_tokens = max(budget, _GPU_PASS_TOKENS) if on_gpu else budget
        self.batches = [_pad(batch, pad_token_id) for batch in _batches(rows, budget)]
        self.tokens = sum(len(batch.targets) for batch in self.batches)
        numbers = [batch.rows for batch in self.batches if batch.rows is not None]
        counted = torch.bincount(torch.cat(numbers), minlength=len(rows))
        self.row_tokens = counted.numpy().astype(np.float32)

    @torch.no_grad()
    def measure(
        self,
        model: torch.nn.Module,
        ranks: Ranks | None = None,
        *,
        autocast: torch.dtype | None = None,
    ) -> Measured:
        """Measure the loss of `model` over these rows; its training mode is left as it was.

        Args:
            ranks: the processes that hold the model; each measures a share of the rows.
            autocast: the type that the model is trained in (`trainers.model.precision.Runtime`).
        """
        device = next(model.parameters()).device
        with computing_in(autocast, device):
            return self._measure(model, ranks or Ranks(), device)

    def _measure(self, model: torch.nn.Module, ranks: Ranks, device: torch.device) -> Measured:
        total = torch.zeros((), dtype=torch.float64, device=device)
        rows = torch.zeros(len(self.row_tokens), dtype=torch.float64, device=device)
        was_training = model.training
        model.eval()
        try:
            for first in range(0, len(self.batches), ranks.world):
                # Ranks that share out the weights need each other for each pass: if there are
                # fewer batches than ranks left, one is measured more than once, and counted once.
                ours = first + ranks.rank
                batch = self.batches[min(ours, len(self.batches) - 1)].on(device)
                logits = labelled_logits(model, batch)
                if ours < len(self.batches):
                    losses = token_losses(logits, batch.targets)
                    total += losses.sum(dtype=torch.float64)
                    assert batch.rows is not None
                    rows.index_add_(0, batch.rows, losses.double())
        finally:
            model.train(was_training)
        return self.measured(ranks.sum(total.item()), ranks.sum_of_each(rows.cpu().numpy()))

    def measured(self, total: float, rows: np.ndarray[Any, Any]) -> Measured:
        """The result of sums of -log p: over all labels, and [rows] over those of each row."""
        return Measured(
            loss=total / max(1, self.tokens),
            tokens=self.tokens,
            rows=np.stack([rows.astype(np.float32), self.row_tokens]),
        )


def labelled_logits(model: Any, batch: Batch, **options: Any) -> torch.Tensor:
    """Compute the logits of the positions that have a target, [targets, vocabulary].

    Other positions, of prompts and padding, never reach the model's head: with small models and
    large vocabularies the head is most of the work and of the memory. No mask is needed: rows are
    padded on the right, and a token sees those before it.

    Args:
        options: what the model takes beside token ids.
    """
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    chosen = False

    def choose(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal chosen
        if not given or given[0].shape[:-1] != batch.ids.shape:
            return None
        chosen = True
        return _of_labels(given[0], batch)[None], *given[1:]

    hook = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        logits = model(input_ids=batch.ids, use_cache=False, **options).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits[0] if chosen else _of_labels(logits, batch)


def _of_labels(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Select the positions of [rows, tokens, features] that predict a label, [labels, features]."""
    return values.reshape(-1, values.shape[-1]).index_select(0, batch.index.to(values.device))


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p of each target, [targets] float32; `logits` are written over."""
    size = positions_at_once(logits.shape[-1], logits.device)
    pairs = zip(logits.split(size), targets.to(logits.device).split(size), strict=True)
    return torch.cat([minus_log_p(some, few) for some, few in pairs])


def minus_log_p(logits: torch.Tensor, aims: torch.Tensor) -> torch.Tensor:
    """-log p of `aims` [positions], float32; `logits` [positions, vocabulary] are written over.

    In place: a pass over fresh memory costs more than the exponentials do.
    """
    logits = logits.float()
    highest = logits.amax(-1, keepdim=True)
    aimed = logits.gather(1, aims[:, None])
    total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    return (total.log() - (aimed - highest))[:, 0]


def positions_at_once(vocab_size: int, device: torch.device) -> int:
    """How many positions' float32 logits are computed together.

    On a CPU as many as its cache holds, but enough to be worth reading the head's weights; on a GPU
    as many as `_LOGIT_BYTES` hold.
    """
    if device.type == "cpu":
        return max(_FEWEST_POSITIONS, _CACHE_BYTES // (4 * vocab_size))
    return max(1, _LOGIT_BYTES // (4 * vocab_size))


def rows_for(dataset: Dataset, model: Any, spec: ModelSpec) -> Rows:
    """Batch the rows of `dataset`, to measure `model` and what is trained from it on them."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    vocab_size = model.config.get_text_config().vocab_size
    return _rows(dataset, spec, vocab_size, _MOST_TOKENS, on_gpu)


@functools.lru_cache(maxsize=2)  # the evaluation and test rows, which all trials of a worker share
def _rows(
    dataset: Dataset, spec: ModelSpec, vocab_size: int, most_tokens: int, on_gpu: bool
) -> Rows:
    return Rows(
        dataset,
        pad_token_id=pad_id(spec),
        vocab_size=vocab_size,
        most_tokens=most_tokens,
        on_gpu=on_gpu,
    )


def computing_in(
    dtype: torch.dtype | None, device: torch.device
) -> contextlib.AbstractContextManager[Any]:
    """The autocast that the Trainer puts around a model; none if `dtype` is None.

    The Trainer adds it once training begins, but not to a model that was loaded again: without this
    the two would differ by the rounding of every adapter.
    """
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to `device`; the host does not wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


Row = tuple[list[int], list[int], int]  # token ids, labels, its number in the data


def _batches(rows: list[Row], budget: int) -> list[list[Row]]:
    """Group rows in their order, so that rows x longest row stays within `budget` tokens."""
    batches: list[list[Row]] = []
    for row in rows:  # ascending, so the newest row is the longest
        if not batches or (len(batches[-1]) + 1) * len(row[0]) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def _pad(rows: list[Row], pad_token_id: int) -> Batch:
    longest = max(len(ids) for ids, *_ in rows)
    ids = torch.full((len(rows), longest), pad_token_id)
    labels = torch.full((len(rows), longest), IGNORED)
    for place, (row_ids, row_labels, _) in enumerate(rows):
        ids[place, : len(row_ids)] = torch.tensor(row_ids)
        labels[place, : len(row_labels)] = torch.tensor(row_labels)
    is_next = F.pad(labels[:, 1:] != IGNORED, (0, 1))  # a row's last position predicts nothing
    index = is_next.flatten().nonzero()[:, 0]
    return Batch(
        ids=ids,
        index=index,
        targets=labels[:, 1:][is_next[:, :-1]],
        lengths=tuple(len(ids) for ids, *_ in rows),
        rows=torch.tensor([number for *_, number in rows])[index // longest],
    )
