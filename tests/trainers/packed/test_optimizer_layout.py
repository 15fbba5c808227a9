"""How a lane's matrices are stepped: as single matrices would be, with few launches."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.packed.adapter_bank import Bank, Shape, Slot, Weight
from trainers.packed.compatibility import settings
from trainers.packed.optimizer import Stepping
from trainers.packed.optimizer_layout import pieces
from trainers.sft.optimizers import available, class_and_kwargs, state_bytes

RATE = 1e-2
MODULES = {"q_proj": (32, 32), "v_proj": (32, 16), "down_proj": (64, 32)}  # in, out
RANKS = {"small": 4, "in blocks": 256}
TYPES = [torch.float32, torch.bfloat16]


def shape(layers: int, rank: int, dtype: torch.dtype, odd: int | None = None) -> Shape:
    """Of a lane with `layers` layers, whose `odd` one has another rank in one module."""
    weights = []
    for layer in range(layers):
        for name, (columns, rows) in MODULES.items():
            own = rank + 1 if (layer, name) == (odd, "q_proj") else rank
            module = f"model.layers.{layer}.{name}"
            weights += [Weight(module, "A", (own, columns)), Weight(module, "B", (rows, own))]
    return Shape(tuple(weights), 1, dtype)


def chosen(optim: str, **more: Any) -> SimpleNamespace:
    spec = SimpleNamespace(trainer={"optim": optim, "learning_rate": RATE, "weight_decay": 0.1})
    spec.trainer |= {"lr_scheduler_type": "constant"} | more
    return settings(spec)  # type: ignore[arg-type]


class Lane:
    """A lane of a bank of two, stepped by `Stepping`."""

    def __init__(self, of: Shape, fields: SimpleNamespace) -> None:
        self.shape, self.slot = of, Slot()
        bank = Bank(of, torch.device("cpu"))
        bank.add(Slot(), torch.zeros(of.numel))
        bank.add(self.slot, values(of))
        self.stepping = Stepping(fields, of, self.slot, [True] * len(of.weights), 100)
        bank.add(Slot(), torch.zeros(of.numel))  # its storage moves

    def step(self, number: int) -> float:
        self.slot.grads.copy_(gradient(self.shape, number))
        norm = self.stepping.clip()
        self.stepping.step()
        return float(norm)

    @property
    def weights(self) -> torch.Tensor:
        return self.slot.weights


class Alone:
    """The same matrices by themselves, as SFTTrainer's optimizer has them."""

    def __init__(self, of: Shape, fields: SimpleNamespace) -> None:
        self.shape, self._most = of, fields.max_grad_norm
        self.parameters = [nn.Parameter(view.clone()) for view in of.split(values(of))]
        cls, kwargs = class_and_kwargs(fields.optim, None, vars(fields))
        groups = [
            {"params": self.parameters, "weight_decay": fields.weight_decay},
            {"params": [], "weight_decay": 0.0},
        ]
        self.optimizer = cls(groups, **kwargs)
        self.load_state_dict = self.optimizer.load_state_dict

    def set(self, weights: torch.Tensor) -> None:
        for parameter, view in zip(self.parameters, self.shape.split(weights), strict=True):
            parameter.data.copy_(view)

    def step(self, number: int) -> float:
        parts = self.shape.split(gradient(self.shape, number))
        for parameter, grad in zip(self.parameters, parts, strict=True):
            parameter.grad = grad.clone()
        norm = nn.utils.clip_grad_norm_(self.parameters, self._most)
        self.optimizer.step()
        return float(norm)

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])


def values(of: Shape) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(of.numel, generator=generator).mul(0.1).to(of.dtype)


def gradient(of: Shape, number: int) -> torch.Tensor:
    """Unlike in size from matrix to matrix, and large enough to be clipped."""
    generator = torch.Generator().manual_seed(10 + number)
    every = torch.randn(of.numel, generator=generator)
    for place, part in enumerate(of.split(every)):
        part.mul_(0.01 * (1 + place))
    return every.to(of.dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("optim", available("cpu"))
def test_steps_are_those_of_single_matrices(
    optim: str, rank: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """And so are the states that are saved: by either, for the other to go on from."""
    of, fields = shape(3, RANKS[rank], dtype), chosen(optim)
    lane, alone = Lane(of, fields), Alone(of, fields)
    for number in range(3):
        assert lane.step(number) == pytest.approx(alone.step(number), rel=1e-6)
    # The norm of all weights at once differs in its last bit; in 8 bits it may tip a state over.
    near = 1e-4 if dtype == torch.bfloat16 or "8bit" in optim else 1e-5
    assert apart(lane.weights, alone.weights) <= near
    assert lane.stepping.state_bytes == state_bytes(alone.optimizer)

    ours, theirs = lane.stepping.state_dict(), alone.optimizer.state_dict()
    for group in ours["param_groups"]:
        group.pop("initial_lr")  # the schedule's
    assert_alike(ours, theirs)
    torch.save(ours, tmp_path / "optimizer.pt")
    ours = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    whole, lane_again, alone_again = Alone(of, fields), Lane(of, fields), Alone(of, fields)
    for each, state in ((whole, theirs), (lane_again.stepping, theirs), (alone_again, ours)):
        each.load_state_dict(copy.deepcopy(state))
    lane_again.slot.weights.copy_(alone.weights)
    whole.set(alone.weights)
    alone_again.set(lane.weights)
    for number in range(3, 6):
        for going_on in (whole, lane_again, alone_again):
            going_on.step(number)
    assert apart(lane_again.weights, whole.weights) <= near
    assert apart(alone_again.weights, whole.weights) <= near


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def assert_alike(ours: Any, theirs: Any) -> None:
    """The same structure, names, shapes, types and, but for last bits, numbers."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_alike(ours[name], theirs[name])
    elif isinstance(ours, torch.Tensor) and ours.dtype != torch.uint8:
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=1e-6)
    elif isinstance(ours, torch.Tensor):
        assert ours.shape == theirs.shape
        assert ours.is_contiguous()
    elif isinstance(ours, list):
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other)
    else:
        assert ours == theirs


def test_clipping_in_half_precision_makes_no_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each matrix in each step, that is: milliseconds on a GPU's host."""
    lane = Lane(shape(2, 4, torch.bfloat16), chosen("adamw_torch"))
    lane.slot.grads.copy_(gradient(lane.shape, 0))
    monkeypatch.setattr(nn, "Parameter", None)
    lane.stepping.clip()


class Launches(TorchDispatchMode):
    """Counts the operators that compute: views and new names for a tensor launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.copies += func.overloadpacket is torch.ops.aten._to_copy
        self.count += not (func.is_view or func.overloadpacket is torch.ops.aten.detach)
        return func(*args, **(kwargs or {}))


def launches(optim: str, layers: int, rank: int, dtype: torch.dtype) -> int:
    """Of a lane's second step."""
    lane = Lane(shape(layers, rank, dtype), chosen(optim))
    lane.step(0)
    with Launches() as counted:
        lane.stepping.clip()
        lane.stepping.step()
    return counted.count


@pytest.mark.parametrize("optim", available("cpu"))
def test_what_a_step_launches_does_not_grow_with_the_layers(optim: str) -> None:
    few, many = (launches(optim, layers, 256, torch.float32) for layers in (2, 12))
    assert many == few
    if optim != "adafactor":
        assert many <= 32


def test_a_layer_of_another_rank_breaks_stacks_apart() -> None:
    """`rank_pattern` may set one: then the same matrices do not lie equally far apart."""
    of, fields = shape(6, 4, torch.float32, odd=2), chosen("adafactor")
    found = pieces(of, "adafactor", {})
    assert sorted(place for each in found for place in each.places) == [*range(len(of.weights))]
    sizes = sorted(len(each.places) for each in found)
    assert sizes[0] == 1  # the odd matrices
    assert len(sizes) < len(of.weights) / 2
    vector = torch.arange(of.numel)
    parts = of.split(vector)
    for each in found:
        for place, view in zip(each.places, each.view(vector), strict=True):
            assert torch.equal(view, parts[place])
    lane, alone = Lane(of, fields), Alone(of, fields)
    for number in range(3):
        lane.step(number)
        alone.step(number)
    assert apart(lane.weights, alone.weights) < 1e-6
    assert_alike(lane.stepping.state_dict()["state"], alone.optimizer.state_dict()["state"])


def test_matrices_with_and_without_weight_decay_are_stepped_one_by_one() -> None:
    of = shape(2, 4, torch.float32)
    slot = Slot()
    Bank(of, torch.device("cpu")).add(slot, values(of))
    decays = [place % 2 == 0 for place in range(len(of.weights))]
    stepping = Stepping(chosen("adamw_torch"), of, slot, decays, 100)
    assert [len(group["params"]) for group in stepping.optimizer.param_groups] == [6, 6]


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "adamw_8bit", "ademamix"])
def test_a_state_is_copied_to_main_memory_at_once(optim: str) -> None:
    """However many matrices there are: on a GPU each copy waits for the device."""

    def copies(layers: int) -> int:
        lane = Lane(shape(layers, 256, torch.float32), chosen(optim))
        lane.step(0)
        with Launches() as counted:
            lane.stepping.state_dict()
        return counted.copies

    assert copies(12) == copies(2) > 0
