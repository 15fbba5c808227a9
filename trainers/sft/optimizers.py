"""Tells which of transformers' optimizers run on this machine, and the size of their state."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from sweeps.core.errors import Problem, SweepError, nearest
from trainers.model.precision import lacks_bfloat16

# What is known of the optimizers beside whether they run here:
# - Steps each number by itself: one vector of all weights gives what single matrices would.
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
# - Tried as lanes of the packed engine.
PACKED = (
    *ELEMENTWISE,
    "adafactor",
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
)
# - Tried with trainer.strategy=fsdp. The others do not see that a tensor is a part of one: they
#   factor it (adafactor), quantize it in kernels of their own (bitsandbytes), or make their state
#   before the weights are shared out (adagrad).
SHARDED = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")
# - Needs trainer.optim_target_modules.
_PROJECTING = ("galore_", "apollo_")
# - Steps inside the backward pass.
_IN_BACKWARD = ("lomo", "adalomo")
# - bitsandbytes' 32-bit kernels for a GPU that do not take bfloat16 gradients. That they step
#   small matrices for rmsprop_bnb_8bit is seen only in a trial.
_NO_BFLOAT16 = ("rmsprop_bnb", "rmsprop_bnb_32bit")
_SIDE = 64  # a 64 x 64 weight: 4,096 elements: from there bitsandbytes quantizes its state
_PROBE_VALUES = ("0.125", "1", "true")  # no optimizer has all of them as its default
_PROBE_NUMBER = 0.12345  # no field's default


def names() -> list[str]:
    """Every name that `trainer.optim` knows, whether it runs here or not."""
    return [name.value for name in OptimizerNames]


def available(device: str = "cpu", dtype: str = "float32") -> list[str]:
    """The optimizers that run on `device` here; see `unavailable`."""
    return [name for name in names() if unavailable(name, device, dtype=dtype) is None]


def trained_type(method: object, quantization: object, dtype: object, device: str) -> str:
    """The number type of the weights that a trial's optimizer steps on `device`.

    Args:
        method: peft.method.
        quantization, dtype: the model's.
    """
    if method == "full":
        return "bfloat16" if dtype == "bfloat16" else "float32"
    # Under float16 autocast adapters are float32: see `trainers.model.lora.in_training_type`.
    in_float16 = dtype == "float16" or (dtype == "auto" and lacks_bfloat16(device))
    return "bfloat16" if quantization in ("nf4", "int8") and not in_float16 else "float32"


def unavailable(
    name: str, device: str = "cpu", optim_args: str | None = None, dtype: str = "float32"
) -> str | None:
    """Why `name` cannot train weights of `dtype` on `device` ("cpu", "cuda", "cuda:1"), or None.

    The optimizer is built as the Trainer builds it, and steps a 64 x 64 weight once on a CPU. For
    "cuda" it is only built, which finds missing packages: a step would leave a CUDA context in the
    driver, and its memory on a GPU of the workers. A worker takes the step, see `step_each`.
    """
    if name not in names():
        return "is not an optimizer that transformers knows"
    if name in _IN_BACKWARD or name.endswith("_layerwise"):
        return (
            "steps inside the backward pass: gradients are neither accumulated nor checked to be "
            "finite before they are used"
        )
    kind = device.partition(":")[0]
    if kind == "cuda" and dtype == "bfloat16" and name in _NO_BFLOAT16:
        return (
            "has no kernel for a GPU that steps bfloat16 weights, as adapters on a quantized base "
            "are; rmsprop has"
        )
    return _trial_step(name, kind, optim_args, dtype, kind == "cpu")


def step_each(chosen: Sequence[str], device: str, dtype: str) -> None:
    """Take one step with each of the `chosen`, on the device that trials train on.

    Raises:
        SweepError: one cannot; with the library's words.
    """
    for name in chosen:
        if reason := _trial_step(name, device.partition(":")[0], None, dtype, True):
            raise SweepError(f"trainer.optim = {name}: {reason}; take it out of sweep.space")


@functools.cache
def _trial_step(
    name: str, device: str, optim_args: str | None, dtype: str, steps: bool
) -> str | None:
    place = device if steps else "cpu"
    settings = {"optim_args": optim_args, "optim_target_modules": "all-linear"}
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            model = _weight(place, getattr(torch, dtype))
            optimizer = _build(name, model, settings)
            if steps:
                model[0].weight.grad = torch.ones_like(model[0].weight)
                optimizer.step()
    except Exception as error:  # a third-party package may raise anything
        return " ".join(f"cannot run here: {error}".split()).rstrip(".")
    return None


def _weight(device: str, dtype: torch.dtype) -> torch.nn.Sequential:
    """A model of one 64 x 64 weight; it draws nothing from the global random state."""
    meta = torch.nn.Linear(_SIDE, _SIDE, bias=False, device="meta", dtype=dtype)
    linear = meta.to_empty(device=device)
    torch.nn.init.zeros_(linear.weight)
    return torch.nn.Sequential(linear)


def _build(name: str, model: torch.nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    cls, kwargs = class_and_kwargs(name, model, settings)
    parameters = kwargs.pop("params", None) or list(model.parameters())
    optimizer: torch.optim.Optimizer = cls(parameters, **kwargs)
    return optimizer


def class_and_kwargs(
    name: str, model: torch.nn.Module | None, settings: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The class and the arguments that the Trainer chooses for an optimizer.

    A namespace carries the settings: building TrainingArguments resets accelerate's state, and with
    it any trainer of this process.
    """
    fields = dataclasses.fields(TrainingArguments)
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    arguments = SimpleNamespace(**defaults | dict(settings) | {"optim": OptimizerNames(name)})
    choose: Any = Trainer.get_optimizer_cls_and_kwargs
    cls, kwargs = choose(arguments, model)
    return cls, dict(kwargs)


@functools.cache
def _reads(name: str, argument: str) -> bool:
    """Whether the optimizer reads `argument` of trainer.optim_args; most ignore most of them."""
    return any(_tells(name, "optim_args", f"{argument}={value}") for value in _PROBE_VALUES)


@functools.cache
def reads_field(name: str, field: str) -> bool:
    """Whether the optimizer reads a field of its own in SFTConfig; a name that is none does."""
    if field == "optim_target_modules":
        return name not in names() or name.startswith(_PROJECTING)
    return name not in names() or _tells(name, field, _PROBE_NUMBER)


def _tells(name: str, field: str, value: object) -> bool:
    """Whether the Trainer makes another optimizer of it if `field` is `value`."""
    try:
        plain = class_and_kwargs(name, None, {})
        return class_and_kwargs(name, None, {field: value}) != plain
    except (ValueError, TypeError, AttributeError, ImportError):  # read, and the value refused
        return True


def problems(
    chosen: Sequence[str],
    *,
    device: str,
    dtype: str = "float32",
    optim_args: Sequence[str | None] = (None,),
    target_modules: object = None,
) -> list[Problem]:
    """What keeps the `chosen` optimizers from training on `device`.

    Args:
        dtype: of the weights, see `trained_type`.
        optim_args: what trainer.optim_args may be. Of several, an optimizer must run with one.
        target_modules: trainer.optim_target_modules.
    """
    options = list(optim_args) or [None]
    found = list(_name_problems(chosen, device, dtype, options, target_modules))
    return found if found else list(_argument_problems(chosen, options))


def _name_problems(
    chosen: Sequence[str],
    device: str,
    dtype: str,
    optim_args: Sequence[str | None],
    target_modules: object,
) -> Iterator[Problem]:
    told = False
    for name in dict.fromkeys(chosen):
        reason = unavailable(name, device, dtype=dtype)
        if reason is None and name.startswith(_PROJECTING) and target_modules is None:
            reason = "needs trainer.optim_target_modules, the weights that it projects"
        if reason is not None:
            near = None if name in names() else _nearest(name)
            works = "" if told else f" What would work here: {', '.join(available(device, dtype))}."
            told = True  # the list is long, and the same for all
            message = f"{reason}.{works}"
            yield Problem(key="trainer.optim", value=name, message=message, nearest=near)
            continue
        refusals = [unavailable(name, device, text, dtype) for text in optim_args]
        if None not in refusals:
            message = f"{name} {refusals[0]}."
            yield Problem(key="trainer.optim_args", value=optim_args[0], message=message)


def _argument_problems(
    chosen: Sequence[str], optim_args: Sequence[str | None]
) -> Iterator[Problem]:
    for text in optim_args:
        for part in (text or "").replace(" ", "").split(","):
            argument = part.partition("=")[0]
            if argument and not any(_reads(name, argument) for name in chosen):
                message = f"{', '.join(chosen)} would ignore {argument}."
                yield Problem(key="trainer.optim_args", value=text, message=message)


def _nearest(name: str) -> str | None:
    """The name that was meant: `adam` means adamw_torch, the first name that begins so."""
    begins = [known for known in names() if known.startswith(name)]
    return begins[0] if name and begins else nearest(name, names())


def notes(chosen: Sequence[str], device: str) -> list[str]:
    """Notes on the `chosen` optimizers that do not work as their names say."""
    paged = [name for name in chosen if name.startswith("paged_")] if device == "cpu" else []
    return [f"trainer.optim={name}: there is no paging on a CPU; it runs unpaged" for name in paged]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state; a tensor that parameters share counts once.

    AdamW in float32 holds 8 bytes a trained parameter, with 8-bit states about 2.
    """
    tensors = [leaf for state in optimizer.state.values() for leaf in _tensors(state)]
    sizes = {(leaf.device, leaf.data_ptr()): leaf.numel() * leaf.element_size() for leaf in tensors}
    return sum(sizes.values())


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """The plain tensors inside nested state, and inside tensors that wrap several (torchao)."""
    if isinstance(value, torch.Tensor):
        if not hasattr(value, "__tensor_flatten__"):
            yield value
            return
        parts = [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    elif isinstance(value, Mapping):
        parts = list(value.values())
    else:
        parts = list(value) if isinstance(value, list | tuple) else []
    for part in parts:
        yield from _tensors(part)
