"""Shares out a trial's weights among its devices: FSDP2, by way of SFTConfig's own fields.

Each rank keeps a part of every weight, gradient and optimizer state, and has a layer whole only
while it computes with it. What reaches the disk is whole and plain, as one device writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

from sweeps.config.spec import TrainSpec
from sweeps.core.errors import Problem, SweepError
from trainers.sft import optimizers

KEY = "trainer.strategy"
_LEAVE_OUT = f"does not go with {KEY}=fsdp: leave it out."
# config key -> whether a value cannot be sharded, and why
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model.quantization": (
        lambda value: value != "none",
        f"quantized weights cannot be shared out by {KEY}=fsdp: set it to none.",
    ),
    "model.dtype": (
        lambda value: value == "float16",
        f"{KEY}=fsdp trains in bfloat16 or float32.",
    ),
    "trainer.optim": (
        lambda value: value in optimizers.names() and value not in optimizers.SHARDED,
        f"does not work on weights that {KEY}=fsdp shares out: take one of "
        f"{', '.join(optimizers.SHARDED)}.",
    ),
    "trainer.torch_compile": (bool, f"is not tried with {KEY}=fsdp: set it to false."),
    "peft.modules_to_save": (bool, _LEAVE_OUT),
    "peft.target_parameters": (bool, _LEAVE_OUT),
}


def fields() -> dict[str, Any]:
    """SFTConfig's fields for FSDP2, which is torch's fully_shard."""
    config = {
        "version": 2,
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_ram_efficient_loading": False,
    }
    return {"fsdp": True, "fsdp_config": config}


def problems(train: TrainSpec, searched: Mapping[str, Sequence[Any]]) -> list[Problem]:
    """What a trial asks for that does not work with trainer.strategy=fsdp.

    Args:
        searched: config key -> the values that some trial has.
    """
    sections = {"model": vars(train.model), "trainer": train.trainer, "peft": train.peft}
    found: list[Problem] = []
    for key, (is_refused, reason) in _REFUSED.items():
        section, _, name = key.partition(".")
        for value in searched.get(key, [sections[section].get(name)]):
            message = f"{reason} Or leave {KEY}=ddp: each device then holds the whole model."
            problem = Problem(key=key, value=value, message=message)
            if is_refused(value) and problem not in found:
                found.append(problem)
    return found


def building() -> AbstractContextManager[None]:
    """Restore the environment once a sharded trial's trainer was built within.

    Its variables would reach the next model that this process loads.
    """
    from accelerate.utils import patch_environment

    names = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    restored: AbstractContextManager[None] = patch_environment(**dict.fromkeys(names, "false"))
    return restored


def admit_cpus() -> None:
    """Let accelerate shard on CPUs, which torch can do and accelerate refuses.

    It turns FSDP on for a list of kinds of devices, from which CPUs are missing, and asks for the
    kind nowhere else afterwards. Call it after SFTConfig, which finds the kind out, and before the
    trainer, which reads it. If the ranks are not CPUs, nothing is changed.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    shared = PartialState._shared_state
    if shared.get("distributed_type") is DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU


def require(trainer: Any) -> None:
    """Check that the trainer will share out its model.

    Raises:
        SweepError: accelerate knows no FSDP on this device, and says nothing of it itself.
    """
    if not trainer.is_fsdp_enabled:
        raise SweepError(
            f"{KEY}=fsdp: the installed accelerate does not share out a model on "
            f"{trainer.args.device}, and would keep all of it on each. Take the version that "
            f"requirements.lock names, or {KEY}=ddp."
        )


def shard(model: Any, device: str) -> Any:
    """Share out `model`, a base model in main memory, to measure it; every rank must call this.

    Accelerate shares out a trainer's model, together with its optimizer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.partition(":")[0], (dist.get_world_size(),))
    # transformers has no public name for the classes of a model's layers.
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole_weights(model: torch.nn.Module, *, trained_only: bool) -> dict[str, torch.Tensor]:
    """Gather the whole weights in main memory on rank 0; every rank must call this.

    Args:
        trained_only: leave out weights that are not trained, those of an adapter's base.
    """
    state = model.state_dict()  # each weight a part again, also of a layer that was left whole
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}
    # Tied weights stand in `state` under each of their names, in `named_parameters` under one. The
    # full_state_dict of torch.distributed.checkpoint has all names, and gathers all of them.
    names = [
        n
        for n in state
        if trained.get(n, False) or (not trained_only and (n in trained or n in buffers))
    ]
    return _on_rank_0({name: state[name] for name in names})


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give each rank its part of `weights`, named as `whole_weights` or PEFT's file names them.

    Raises:
        KeyError: the names are not those of the weights that are trained.
    """
    state = model.state_dict()
    trained = {n: state[n] for n, weight in model.named_parameters() if weight.requires_grad}
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        trained = get_peft_model_state_dict(model, state_dict=trained)
    if missing := trained.keys() - weights.keys():
        raise KeyError(f"the checkpoint lacks {', '.join(sorted(missing)[:3])}")
    with torch.no_grad():
        for name, part in trained.items():
            part.copy_(_part_of(weights[name], part))


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gather `optimizer.state_dict()` whole on rank 0; every rank must call this."""
    state: dict[str, Any] = optimizer.state_dict()
    return {**state, "state": {i: _on_rank_0(held) for i, held in state["state"].items()}}


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give each rank its part of a state that `whole_state` or a single device has saved."""
    ours = optimizer.state_dict()["param_groups"]
    parameters = {
        index: parameter
        for group, numbered in zip(optimizer.param_groups, ours, strict=True)
        for parameter, index in zip(group["params"], numbered["params"], strict=True)
    }
    parts = {
        index: {name: _part_of(value, parameters[index]) for name, value in held.items()}
        for index, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _on_rank_0(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Gather each tensor whole in main memory on rank 0; empty on the other ranks."""
    from torch.distributed.tensor import DTensor

    whole: dict[str, Any] = {}
    for name, value in tensors.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if dist.get_rank() == 0:
            whole[name] = full.detach().cpu() if isinstance(full, torch.Tensor) else full
    return whole


def _part_of(value: Any, like: torch.Tensor) -> Any:
    """This rank's part of `value` if `value` is shared out as `like` is; else `value` itself."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(value, torch.Tensor) or not isinstance(like, DTensor):
        return value
    if value.shape != like.shape:  # a count of steps, say
        return value
    mesh = like.device_mesh
    whole = value.to(like.device)
    # Every rank has read the same file: nothing is to be sent. A part that is a view, and no copy,
    # would keep the whole in memory.
    return distribute_tensor(whole, mesh, like.placements, src_data_rank=None).clone()
