"""Builds a lane's optimizer and schedule as the Trainer does, on the lane's place in a bank."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from trainers.packed.adapter_bank import Shape, Slot
from trainers.packed.compatibility import schedule_arguments
from trainers.packed.optimizer_layout import StackedAdafactor, cut, joined, pieces
from trainers.sft.lr_schedule import WATCHING
from trainers.sft.optimizers import class_and_kwargs, state_bytes


class Stepping:
    """Steps one lane; saves and loads states in SFTTrainer's numbering of the weights.

    One AdamW step over [lanes, numel] with a column of rates would differ in the last digits, and
    was not faster on a CPU (16 lanes of 61,440 weights: 12 calls of torch a lane, or 13 in all).
    """

    def __init__(
        self, chosen: SimpleNamespace, shape: Shape, slot: Slot, decays: list[bool], steps: int
    ) -> None:
        self._chosen, self._shape, self._slot = chosen, shape, slot
        optimizer_class, kwargs = class_and_kwargs(chosen.optim, None, vars(chosen))
        if "is_paged" in kwargs:
            # bitsandbytes never frees paged memory, and pages only matrices of 100,000 numbers and
            # more: few of LoRA's.
            kwargs["is_paged"] = False
        # Matrices without weight decay need a group of their own: then each is stepped alone.
        self._pieces = pieces(shape, chosen.optim, kwargs) if all(decays) else []
        if self._pieces:
            decays = [True] * len(self._pieces)
            optimizer_class = StackedAdafactor if chosen.optim == "adafactor" else optimizer_class
        self.parameters = [nn.Parameter(view) for view in self._views(slot.weights)]
        slot.moved = self._follow
        self._follow()
        pairs = list(zip(self.parameters, decays, strict=True))
        groups = [
            {"params": [p for p, d in pairs if d], "weight_decay": chosen.weight_decay},
            {"params": [p for p, d in pairs if not d], "weight_decay": 0.0},
        ]
        self.optimizer: torch.optim.Optimizer = optimizer_class(groups, **kwargs)
        self.schedule: Any = get_scheduler(
            optimizer=self.optimizer, **schedule_arguments(chosen, steps)
        )

    def _views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """View a lane's weights or gradients as the tensors that the optimizer steps."""
        return [piece.view(vector) for piece in self._pieces] or self._shape.split(vector)

    def _follow(self) -> None:
        views = self._views(self._slot.weights), self._views(self._slot.grads)
        for parameter, weight, grad in zip(self.parameters, *views, strict=True):
            parameter.data, parameter.grad = weight, grad

    def clip(self) -> torch.Tensor:
        """Clip the lane's gradient as torch.nn.utils.clip_grad_norm_ does; its norm before that."""
        most = self._chosen.max_grad_norm or math.inf
        grads = self._slot.grads
        if grads.dtype == torch.float32:
            norm = torch.linalg.vector_norm(grads)
        else:  # in half precision the norm of each matrix is rounded
            norm = nn.utils.get_total_norm(self._shape.split(grads))
        if not math.isinf(most):
            grads.mul_(torch.clamp(most / (norm + 1e-6), max=1.0))
        return norm

    def step(self) -> float:
        """Step weights and schedule, and clear the gradient; returns the rate that was used."""
        self.optimizer.step()
        watches = self._chosen.lr_scheduler_type in WATCHING
        rate = self.optimizer.param_groups[0]["lr"]
        rate = rate if watches else self.schedule.get_last_lr()[0]
        if not watches:
            self.schedule.step()
        self._slot.grads.zero_()
        return float(rate)

    def evaluated(self, eval_loss: float) -> None:
        """Let schedules that watch the loss act on it."""
        if self._chosen.lr_scheduler_type in WATCHING:
            self.schedule.step(eval_loss)

    @property
    def state_bytes(self) -> int:
        """Bytes of the optimizer's state, as if each matrix had a state of its own."""
        missing = 0  # tensors of which there is one for all matrices of a piece
        for piece, parameter in zip(self._pieces, self.parameters, strict=False):
            state = self.optimizer.state.get(parameter, {}).values()
            counts = [v for v in state if isinstance(v, torch.Tensor) and not v.dim()]
            missing += (len(piece.places) - 1) * sum(v.element_size() for v in counts)
        return state_bytes(self.optimizer) + missing

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state as SFTTrainer would save it."""
        saved = self.optimizer.state_dict()
        if not self._pieces:
            return saved
        states: dict[int, Any] = {}
        for number, state in saved["state"].items():
            piece = self._pieces[number]
            states |= zip(piece.places, cut(piece, state), strict=True)
        count = len(self._shape.weights)
        return saved | {"state": states, "param_groups": _of(range(count), saved)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load a state that SFTTrainer or `state_dict` saved."""
        if self._pieces:
            single = saved["state"]
            states = {
                number: joined(piece, [single[place] for place in piece.places])
                for number, piece in enumerate(self._pieces if single else [])
            }
            groups = _of(range(len(self._pieces)), saved)
            saved = saved | {"state": states, "param_groups": groups}
        self.optimizer.load_state_dict(saved)


def _of(numbers: Iterable[int], saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups of a saved state, with the weights `numbers`, which all decay."""
    first, second = saved["param_groups"]
    return [first | {"params": list(numbers)}, second | {"params": []}]
