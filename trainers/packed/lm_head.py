"""Computes the loss of labelled positions through the base's own head, which no lane trains."""

from __future__ import annotations

from typing import Any

import torch

from trainers.trial.evaluation import Batch, labelled_logits, minus_log_p, positions_at_once

_ASKED_TOKENS = 8
_ALIKE = 0.02  # half precision may differ by less, another formula differs by more


class Head:
    """Scores hidden states; keeps their gradient, but never the logits.

    Scale and cap of the logits are read from the model's config as SFTTrainer's fused head does.
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self._layer = model.get_output_embeddings()
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._scale = _scale(config)
        weight = self._layer.weight
        self._chunk = positions_at_once(weight.shape[0], weight.device)

    @torch.no_grad()
    def is_whole(self, model: Any) -> bool:
        """Whether these logits are the model's own; some models do more to them than is read here.

        RecurrentGemma and xLSTM cap theirs under other names, ModernBERT's decoder has a layer
        before its head. `model` evaluates (`eval()`); it is asked for one row of a few tokens.
        """
        weight = self._layer.weight
        if weight.device.type == "meta":
            return True
        ids = torch.arange(3, 3 + _ASKED_TOKENS, device=weight.device) % weight.shape[0]
        index = torch.arange(_ASKED_TOKENS, device=weight.device)
        batch = Batch(ids=ids[None], index=index, targets=ids)
        hidden = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state[0]
        own = minus_log_p(labelled_logits(model, batch), ids)
        return bool(torch.allclose(self.losses(hidden, ids), own, rtol=_ALIKE, atol=_ALIKE))

    def score(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute -log p of each target, and whether it was the likeliest; both [positions]."""
        loss, is_first = _Score.apply(hidden, targets, self)
        return loss, is_first

    @torch.no_grad()
    def losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute -log p of each target, [positions], float32; without gradients."""
        found = []
        for some, aims in self.chunks(hidden, targets):
            logits = self.logits(some)
            if self._cap is not None:
                logits = torch.tanh(logits / self._cap) * self._cap
            found.append(minus_log_p(logits, aims))
        return torch.cat(found)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits [positions, vocabulary], float32, before the cap."""
        logits = torch.nn.functional.linear(hidden, self._layer.weight, self._layer.bias).float()
        return logits if self._scale == 1 else logits.mul_(self._scale)

    def chunks(self, hidden: torch.Tensor, targets: torch.Tensor) -> Any:
        return zip(hidden.split(self._chunk), targets.split(self._chunk), strict=True)


def _scale(config: Any) -> float:
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1 / float(divisor)


class _Score(torch.autograd.Function):
    """Computes -log p and its gradient together, so that the logits are freed at once."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: Head
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses, firsts, gradients = [], [], []
        for some, aims in head.chunks(hidden, targets):
            logits = head.logits(some)
            slope = None
            if head._cap is not None:
                bent = torch.tanh(logits / head._cap)
                slope, logits = 1 - bent * bent, bent * head._cap
            # In place: a pass over fresh memory costs more than the exponentials do.
            highest = logits.amax(-1, keepdim=True)
            aimed = logits.gather(1, aims[:, None])
            firsts.append((aimed == highest)[:, 0])
            weights = logits.sub_(highest).exp_()
            total = weights.sum(-1, keepdim=True)
            losses.append((total.log() - (aimed - highest))[:, 0])
            gradient = weights.div_(total)
            gradient.scatter_add_(1, aims[:, None], gradient.new_full((len(aims), 1), -1.0))
            if slope is not None:
                gradient *= slope
            if head._scale != 1:
                gradient *= head._scale
            weight = head._layer.weight
            gradients.append(gradient.to(weight.dtype) @ weight)
        ctx.save_for_backward(torch.cat(gradients).to(hidden.dtype))
        first = torch.cat(firsts)
        ctx.mark_non_differentiable(first)
        return torch.cat(losses), first

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        # Scaled in float32: 1 / labels in bfloat16 would be off by up to 0.4%, for a whole window.
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None
