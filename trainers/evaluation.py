"""`eval_loss`, measured in one way by every engine.

    eval_loss = sum of -log p(label) over all labelled evaluation tokens / number of those tokens

in nats; tokens with label -100 (prompts, padding) are left out. SFTTrainer's own eval_loss is a
mean of batch means and moves with the batch size; this one does not.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from sweeps.spec import ModelSpec
from trainers.ranks import Ranks
from trainers.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

_LOGIT_BYTES = 2**29  # of one batch's float32 logits and their copies
_CACHE_BYTES = 2**23  # of the logits that a CPU looks at together
_FEWEST_POSITIONS = 256  # however large the vocabulary
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

    def __init__(
        self,
        dataset: Dataset,
        *,
        pad_token_id: int,
        vocab_size: int,
        most_tokens: int = _MOST_TOKENS,
    ) -> None:
        rows = sorted(
            ((row["input_ids"], row["labels"]) for row in dataset), key=lambda row: len(row[0])
        )
        self.most_tokens = max(1, min(most_tokens, _LOGIT_BYTES // (8 * vocab_size)))  # of a pass
        self.batches = [_pad(batch, pad_token_id) for batch in _batches(rows, self.most_tokens)]
        self.tokens = sum(int((labels[:, 1:] != IGNORED).sum()) for _, _, labels in self.batches)

    @torch.no_grad()
    def measure(self, model: torch.nn.Module, ranks: Ranks | None = None) -> Measured:
        """The loss of `model` over these rows; its training mode is left as it was.

        Args:
            ranks: processes that hold the same model, and measure a share of the rows each.
        """
        with precision(model):
            return self._measure(model, ranks or Ranks())

    def _measure(self, model: torch.nn.Module, ranks: Ranks) -> Measured:
        device = next(model.parameters()).device
        total = torch.zeros((), dtype=torch.float64, device=device)
        was_training = model.training
        model.eval()
        try:
            for first in range(0, len(self.batches), ranks.world):
                # Ranks that share out the weights need each other for each pass: where there are
                # fewer batches than ranks left, one is measured more than once, and counted once.
                ours = first + ranks.rank
                ids, mask, labels = self.batches[min(ours, len(self.batches) - 1)]
                targets = labels[:, 1:]  # [rows, tokens - 1]
                logits = labelled_logits(model, ids.to(device), mask.to(device), targets)
                if ours < len(self.batches):
                    total += loss_sum(logits, targets.to(logits.device))
        finally:
            model.train(was_training)
        loss = ranks.sum(total.item()) / max(1, self.tokens)
        return Measured(loss=loss, tokens=self.tokens)


def labelled_logits(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Logits of the positions that have a target, [targets, vocabulary].

    The others, prompts and padding, never reach the model's head: with small models and large
    vocabularies the head is most of the work and of the memory.
    """
    wanted = F.pad(targets != IGNORED, (0, 1))  # the last position of a row predicts nothing
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    chosen = False

    def choose(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal chosen
        if not given or given[0].shape[:-1] != wanted.shape:
            return None
        chosen = True
        return given[0][wanted.to(given[0].device)][None], *given[1:]

    hook = head.register_forward_pre_hook(choose) if head is not None else None
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits[0] if chosen else logits[wanted.to(logits.device)]


def loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of -log p over all targets, float64; `logits`, of those that are not ignored, are written
    over."""
    aims = targets[targets != IGNORED]
    size = positions_at_once(logits.shape[-1], logits.device)
    pairs = zip(logits.split(size), aims.split(size), strict=True)
    losses = torch.cat([minus_log_p(some, few) for some, few in pairs])
    return losses.sum(dtype=torch.float64)


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
    """Positions whose float32 logits are looked at together.

    On a CPU what its cache holds, but enough for the head's weights to be worth a read; on a GPU
    what memory is worth.
    """
    if device.type == "cpu":
        return max(_FEWEST_POSITIONS, _CACHE_BYTES // (4 * vocab_size))
    return max(1, _LOGIT_BYTES // (4 * vocab_size))


def rows_for(dataset: Dataset, model: Any, spec: ModelSpec) -> Rows:
    """The rows of `dataset`, ready to be measured on `model` and on what is trained from it."""
    return _rows(dataset, spec, model.config.get_text_config().vocab_size, _MOST_TOKENS)


@functools.lru_cache(maxsize=2)  # the evaluation and test rows, which all trials of a worker share
def _rows(dataset: Dataset, spec: ModelSpec, vocab_size: int, most_tokens: int) -> Rows:
    tokenizer = load_tokenizer(spec)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return Rows(dataset, pad_token_id=int(pad or 0), vocab_size=vocab_size, most_tokens=most_tokens)


def precision(model: torch.nn.Module) -> torch.autocast:
    """The autocast that the Trainer puts around a half-precision model on a GPU.

    It does so once training begins, and not for a model that was loaded again: without this the two
    would differ by the rounding of every adapter.
    """
    dtype = autocast_dtype(model)
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=dtype, enabled=dtype is not None)


def autocast_dtype(model: torch.nn.Module) -> torch.dtype | None:
    """What that autocast computes in; None where there is none."""
    weight = next(model.parameters())
    is_half = weight.dtype in (torch.bfloat16, torch.float16)
    return weight.dtype if is_half and weight.device.type in _AUTOCAST_DEVICES else None


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
