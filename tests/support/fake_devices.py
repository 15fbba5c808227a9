"""A device without hardware: `meta` tensors, watched for what a GPU would launch, mix or wait for.

`meta` tensors have shapes and no numbers. Alone they would let pass what a GPU refuses, such as a
matmul with a tensor of the host; `Watch` sees every operator and refuses it in the GPU's place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import Recorder, scratch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweeps.config.spec import ModelSpec, TrainSpec
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import PreparedData
from trainers.model.tokenizer import load_tokenizer
from trainers.packed import engine, frozen_base, micro_batches
from trainers.packed.dropout import Stream
from trainers.packed.engine import Engine
from trainers.trial import evaluation
from trainers.trial.task import Task

META = torch.device("meta")
# What needs an answer of the device: the host waits for all that was launched before.
_READS = (
    *("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor"),
)
_MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")
# Memory is given out, or a tensor is looked at in another way: no kernel runs.
_NO_KERNEL = (
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
    *("detach", "_unsafe_view"),
)


class HostReadError(AssertionError):
    """The host would wait for the device."""


class MixedDevicesError(AssertionError):
    """Tensors of two devices meet."""


class Watch(TorchDispatchMode):
    """Counts the operators that launch a kernel on the fake device.

    Tensors cross from the host within `sending` only. A number of the host, a tensor without
    dimensions, may take part in an operator, as on a GPU.

    Raises:
        HostReadError, MixedDevicesError: as they happen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.sent = 0
        self._is_sending = False

    @property
    def count(self) -> int:
        return self.launches.total()

    @contextmanager
    def sending(self) -> Iterator[None]:
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name, _, overload = func.__name__.partition(".")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        devices = {t.device.type for t in tensors}
        target = kwargs.get("device")
        crosses = name in ("_to_copy", "copy_") and (
            len(devices) == 2 or (target is not None and {torch.device(target).type} != devices)
        )
        if "meta" in devices:
            self._refuse_reads(name, overload, args)
        if crosses:
            self._cross(name, devices, target)
        elif "meta" in devices:
            strangers = [tuple(t.shape) for t in tensors if t.device != META and t.dim()]
            if strangers:
                raise MixedDevicesError(f"{name}: tensors {strangers} of the host")
        found = func(*args, **kwargs)
        if any(torch.is_tensor(t) and t.device == META for t in tree_leaves(found)) or (
            "meta" in devices
        ):
            self._note(func, name)
        return found

    def _refuse_reads(self, name: str, overload: str, args: Sequence[Any]) -> None:
        if name in _READS or f"{name}.{overload}" in _READS:
            raise HostReadError(f"{name} waits for the device")
        if name in _MASKED:
            places = [t for t in tree_leaves(args[1]) if torch.is_tensor(t)]
            if any(t.dtype in (torch.bool, torch.uint8) for t in places):
                raise HostReadError(f"{name} with a mask waits for the device")

    def _cross(self, name: str, devices: set[str], target: Any) -> None:
        leaves = devices == {"meta"} or (target is not None and torch.device(target).type == "cpu")
        if leaves:
            raise HostReadError(f"{name} to the host waits for the device")
        if not self._is_sending:
            raise MixedDevicesError(f"{name} of a tensor of the host, outside of `sent`")
        self.sent += 1

    def _note(self, func: Any, name: str) -> None:
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in _NO_KERNEL:
            self.launches[name] += 1


class _FakeStream(Stream):
    """Dropout whose generator is the host's: `meta` has none."""

    def __init__(self, train: TrainSpec) -> None:
        host = torch.Generator()
        super().__init__(train.peft.get("lora_dropout") or 0.0, host.get_state(), host.device)
        self._device = META


class _Attention(torch.autograd.Function):
    """A launch forward and one backward, as of a fused kernel, which `meta` has none of."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        ctx.save_for_backward(key, value)
        return query.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        key, value = ctx.saved_tensors
        return grads[0].clone(), torch.empty_like(key), torch.empty_like(value)


def _one_kernel(query: Any, key: Any, value: Any, **_: Any) -> torch.Tensor:
    found: torch.Tensor = _Attention.apply(query, key, value)
    return found


def model_without_weights(**shape: int) -> ModelSpec:
    """A Llama's config and a tokenizer, on disk."""
    from transformers import LlamaConfig

    folder = scratch()
    load_tokenizer(ModelSpec(path="tiny")).save_pretrained(str(folder))
    LlamaConfig(**shape, max_position_embeddings=2048, tie_word_embeddings=True).save_pretrained(
        str(folder)
    )
    return ModelSpec(path=str(folder))


def fake_engine(
    monkeypatch: pytest.MonkeyPatch,
    specs: Sequence[TrainSpec],
    data: PreparedData,
    watch: Watch,
    *,
    dtype: torch.dtype = torch.float32,
    pads: bool = False,
) -> Engine:
    """An engine on the fake device, with a lane for each trial.

    Args:
        pads: its passes are padded.
        dtype: of the base; in bfloat16 lanes compute in it, too, as under autocast.
    """

    def load(spec: ModelSpec, device: str) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        from trainers.model import attention

        attention.register()
        config = AutoConfig.from_pretrained(spec.path)
        with torch.device(META):
            return AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention.NAME
            )

    real = evaluation.sent

    def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        with watch.sending():
            return real(tensor, device)

    monkeypatch.setattr(frozen_base, "load_base", load)
    for module in (frozen_base, evaluation, micro_batches):
        monkeypatch.setattr(module, "sent", sent)
    # `meta` has no autocast; the base and what lanes compute with are of one type here anyway.
    for module in (frozen_base, evaluation):
        monkeypatch.setattr(module, "computing_in", lambda *_: nullcontext())
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _one_kernel)
    made_by, known = frozen_base.Base.adapter, dict[str, Any]()

    def adapter(self: frozen_base.Base, peft: Any, seed: int) -> Any:
        """Without numbers, adapters of one config are alike, and PEFT takes a second for each."""
        if repr(peft) not in known:
            known[repr(peft)] = made_by(self, peft, seed)
        return known[repr(peft)]

    monkeypatch.setattr(frozen_base.Base, "adapter", adapter)
    monkeypatch.setattr(engine, "fingerprint_base", lambda _: "")
    monkeypatch.setattr(engine.Builder, "_stream", lambda _, train, __: _FakeStream(train))
    made = Engine(specs[0], data, device="meta", pads=pads)
    made._base.computes = None if dtype == torch.float32 else dtype
    root = scratch()
    for place, spec in enumerate(specs):
        task = Task(
            key=f"{place:010x}",
            train=spec,
            examples=10**6,
            folder=RunFolder(Path(root)),
            device="meta",
        )
        made.attach(task, Recorder())
    return made
