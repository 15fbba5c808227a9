"""`eval_loss`, measured in one way by every engine.

    eval_loss = sum of -log p(label) over all labelled evaluation tokens / number of those tokens

in nats; tokens with label -100 (prompts, padding) are left out. SFTTrainer's own eval_loss is a
mean of batch means and moves with the batch size; this one does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sweeps.spec import ModelSpec
from trainers.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

_LOGIT_BYTES = 2**29  # of one batch's float32 logits and their copies
_MOST_TOKENS = 4096  # in a batch, padding counted: larger ones gain nothing
_AUTOCAST_DEVICES = ("cuda",)
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A loss and what it was measured over. `loss` is not finite where any token's was not."""

    loss: float  # nats per labelled token
    tokens: int

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss)


class Rows:
    """Evaluation rows, sorted by length into padded batches once, and measured many times.

    Batches depend on the rows and the vocabulary alone, so every trial measures the same thing.
    """

    def __init__(self, dataset: Dataset, *, pad_token_id: int, vocab_size: int) -> None:
        rows = sorted(
            ((row["input_ids"], row["labels"]) for row in dataset), key=lambda row: len(row[0])
        )
        budget = max(1, min(_MOST_TOKENS, _LOGIT_BYTES // (8 * vocab_size)))
        self._batches = [_pad(batch, pad_token_id) for batch in _batches(rows, budget)]
        self.tokens = sum(int((labels[:, 1:] != IGNORED).sum()) for _, _, labels in self._batches)

    @torch.no_grad()
    def measure(self, model: torch.nn.Module) -> Measured:
        """The loss of `model` over these rows; its training mode is left as it was."""
        with _precision(model):
            return self._measure(model)

    def _measure(self, model: torch.nn.Module) -> Measured:
        device = next(model.parameters()).device
        total = torch.zeros((), dtype=torch.float64, device=device)
        was_training = model.training
        model.eval()
        try:
            for ids, mask, labels in self._batches:
                logits = model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
                ).logits  # [rows, tokens, vocabulary]
                total += F.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(),
                    labels[:, 1:].flatten().to(device),
                    ignore_index=IGNORED,
                    reduction="sum",
                )
        finally:
            model.train(was_training)
        return Measured(loss=total.item() / max(1, self.tokens), tokens=self.tokens)


def rows_for(dataset: Dataset, model: Any, spec: ModelSpec) -> Rows:
    """The rows of `dataset`, ready to be measured on `model` and on what is trained from it."""
    tokenizer = load_tokenizer(spec)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    vocabulary = model.config.get_text_config().vocab_size
    return Rows(dataset, pad_token_id=int(pad or 0), vocab_size=vocabulary)


def _precision(model: torch.nn.Module) -> torch.autocast:
    """The autocast that the Trainer puts around a half-precision model on a GPU.

    It does so once training begins, and not for a model that was loaded again: without this the two
    would differ by the rounding of every adapter.
    """
    weight = next(model.parameters())
    is_half = weight.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(
        weight.device.type,
        dtype=weight.dtype if is_half else None,
        enabled=is_half and weight.device.type in _AUTOCAST_DEVICES,
    )


Row = tuple[list[int], list[int]]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, attention mask, labels


def _batches(rows: list[Row], budget: int) -> list[list[Row]]:
    """Rows in order, cut so that rows x longest stays within `budget` tokens."""
    batches: list[list[Row]] = []
    for row in rows:  # ascending, so the newest row is the longest
        if not batches or (len(batches[-1]) + 1) * len(row[0]) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def _pad(rows: list[Row], pad_token_id: int) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad_token_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    for place, (row_ids, row_labels) in enumerate(rows):
        ids[place, : len(row_ids)] = torch.tensor(row_ids)
        mask[place, : len(row_ids)] = 1
        labels[place, : len(row_labels)] = torch.tensor(row_labels)
    return ids, mask, labels
