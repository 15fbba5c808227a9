"""A lane's optimizer and schedule: built as the Trainer builds them, on the lane's own storage."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from trainers.optimizers import class_and_kwargs, state_bytes
from trainers.packed.bank import Shape, Slot
from trainers.packed.settings import schedule_arguments
from trainers.schedule import WATCHING

# Each number is stepped by itself: one vector of all weights gives what single matrices would.
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


class Stepping:
    """Steps one lane. States are saved and loaded in SFTTrainer's numbering of the weights."""

    def __init__(
        self, chosen: SimpleNamespace, shape: Shape, slot: Slot, decays: list[bool], steps: int
    ) -> None:
        self._chosen, self._shape, self._slot = chosen, shape, slot
        self._is_flat = chosen.optim in ELEMENTWISE and all(decays)
        self.parameters: list[nn.Parameter] = [nn.Parameter(view) for view in self._views()[0]]
        slot.moved = self._follow
        self._follow()
        decays = [True] if self._is_flat else decays
        pairs = list(zip(self.parameters, decays, strict=True))
        groups = [
            {"params": [p for p, d in pairs if d], "weight_decay": chosen.weight_decay},
            {"params": [p for p, d in pairs if not d], "weight_decay": 0.0},
        ]
        optimizer_class, kwargs = class_and_kwargs(chosen.optim, None, vars(chosen))
        self.optimizer: torch.optim.Optimizer = optimizer_class(groups, **kwargs)
        self.schedule: Any = get_scheduler(
            optimizer=self.optimizer, **schedule_arguments(chosen, steps)
        )

    def _views(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        weights, grads = self._slot.weights, self._slot.grads
        if self._is_flat:
            return [weights], [grads]
        return self._shape.split(weights), self._shape.split(grads)

    def _follow(self) -> None:
        for parameter, weight, grad in zip(self.parameters, *self._views(), strict=True):
            parameter.data, parameter.grad = weight, grad

    def clip(self) -> torch.Tensor:
        """Clip the lane's gradient; its norm before that. As torch.nn.utils.clip_grad_norm_."""
        most = self._chosen.max_grad_norm or math.inf
        grads = self._slot.grads
        if grads.dtype != torch.float32:  # whose norm is rounded for each matrix
            views = [nn.Parameter(view) for view in self._shape.split(self._slot.weights)]
            for view, grad in zip(views, self._shape.split(grads), strict=True):
                view.grad = grad
            return nn.utils.clip_grad_norm_(views, most)
        norm = torch.linalg.vector_norm(grads)
        if not math.isinf(most):
            grads.mul_(torch.clamp(most / (norm + 1e-6), max=1.0))
        return norm

    def step(self) -> float:
        """Step weights and schedule, and begin a new gradient; the rate that was used."""
        self.optimizer.step()
        watches = self._chosen.lr_scheduler_type in WATCHING
        rate = self.optimizer.param_groups[0]["lr"]
        rate = rate if watches else self.schedule.get_last_lr()[0]
        if not watches:
            self.schedule.step()
        self._slot.grads.zero_()
        return float(rate)

    def evaluated(self, eval_loss: float) -> None:
        """Schedules that watch the loss act on it."""
        if self._chosen.lr_scheduler_type in WATCHING:
            self.schedule.step(eval_loss)

    def matrices(self) -> list[torch.Tensor]:
        return self._shape.split(self._slot.weights)

    @property
    def state_bytes(self) -> int:
        """Of the optimizer's state, as it would be with a state for each matrix."""
        if not self._is_flat:
            return state_bytes(self.optimizer)
        count = len(self._shape.weights)
        tensors = [v for v in self.optimizer.state[self.parameters[0]].values() if _is_tensor(v)]
        return sum(v.numel() * v.element_size() * (1 if v.dim() else count) for v in tensors)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state as SFTTrainer would save it."""
        saved = self.optimizer.state_dict()
        if not self._is_flat:
            return saved
        whole = saved["state"].get(0, {})
        count = len(self._shape.weights)
        cut = {name: self._cut(value) for name, value in whole.items()}
        states = {i: {name: values[i] for name, values in cut.items()} for i in range(count)}
        first, second = saved["param_groups"]
        groups = [first | {"params": list(range(count))}, second | {"params": []}]
        return {**saved, "state": states if whole else {}, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from such a state."""
        if self._is_flat:
            states = [saved["state"][i] for i in range(len(saved["state"]))]
            names = states[0] if states else {}
            joined = {name: _joined([state[name] for state in states]) for name in names}
            first, second = saved["param_groups"]
            groups = [first | {"params": [0]}, second | {"params": []}]
            state = {0: joined} if states else {}
            saved = {**saved, "state": state, "param_groups": groups}
        self.optimizer.load_state_dict(saved)

    def _cut(self, value: Any) -> list[Any]:
        if _is_tensor(value) and value.dim():
            return self._shape.split(value.clone())  # one piece of memory is one record of the file
        count = len(self._shape.weights)
        return [value.clone() if _is_tensor(value) else value for _ in range(count)]


def _joined(values: list[Any]) -> Any:
    if _is_tensor(values[0]) and values[0].dim():
        return torch.cat([value.flatten() for value in values])
    return values[0]


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
