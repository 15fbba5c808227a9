"""Loads the base model's weights, in the right number type on the right device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.config.spec import ModelSpec, TrainSpec
from sweeps.core.errors import ConfigError, Problem, SweepError
from trainers.model import attention, hub
from trainers.model.lora import adapt
from trainers.model.lora_targets import missing_targets
from trainers.model.precision import Runtime, runtime
from trainers.model.source import folder_hash, load_config, reading, resolve_path, source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose(
    spec: ModelSpec, device: str, *, trains_base: bool = False, bf16: bool | None = None
) -> Runtime:
    """Choose number types and attention for `spec` on `device` (`cpu`, `cuda`, `cuda:1`, ...).

    Args:
        trains_base: the base weights themselves are trained (peft.method=full).
        bf16: trainer.bf16; None leaves it to the device.

    Raises:
        ConfigError: the device, the model or the installed packages cannot do what `spec` asks.
    """
    return runtime(spec, load_config(spec), device, trains_base=trains_base, bf16=bf16)


def choose_for(train: TrainSpec, device: str) -> Runtime:
    """Choose for a trial; raises what `choose` does."""
    return choose(
        train.model,
        device,
        trains_base=train.trains_base,
        bf16=train.trainer.get("bf16"),
    )


def load_base(
    spec: ModelSpec, device: str, *, trains_base: bool = False, place: str | None = None
) -> PreTrainedModel:
    """Load the base model on `device`, quantized if `spec` says so.

    Reads only safetensors: other weight files are pickles, and can run code when opened.

    Args:
        place: the device of the weights, if not `device`.

    Raises:
        ConfigError, SweepError: see `choose` and `load_config`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    attention.register()
    chosen = choose(spec, device, trains_base=trains_base)
    options: dict[str, Any] = {}
    if spec.quantization != "none":
        options["quantization_config"] = chosen.quantization_config(spec.quantization)
    place = place or device
    if place == "cuda":
        # Weights are read by a pool of threads, each of which takes "cuda" for the first GPU.
        place = f"cuda:{torch.cuda.current_device()}"
    if spec.quantization != "none" or place.startswith("cuda"):
        options["device_map"] = {"": place}  # straight to the device, without a copy in memory
    with reading(spec) as path, no_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=chosen.dtype,
            attn_implementation=chosen.attn_implementation,
            use_safetensors=True,
            **source(spec),
            **options,
        )
    if device == "cpu":
        _keep_4bit_layout(model)
    return model if "device_map" in options else model.to(torch.device(place))  # type: ignore[arg-type]


def _keep_4bit_layout(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation.

    It does so on CPUs with AVX512-BF16. Packed weights pass no gradient on to the layers below, and
    lose precision each time they are packed and, for a checkpoint, unpacked.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def fingerprint_base(spec: ModelSpec) -> str:
    """Identify the base weights, whatever their folder; for checkpoints' manifests.

    A Hub model is identified by its id and commit, a folder by its content (see `folder_hash`).

    Raises:
        SweepError: the model is neither on disk nor reachable.
    """
    path = resolve_path(spec.path)
    if hub.is_local(path):
        return folder_hash(Path(path))
    # transformers has no public name for the commit that a config was read from.
    commit = getattr(load_config(spec), "_commit_hash", None) or spec.revision or "main"
    return f"{path}@{commit}"


def target_problems(
    spec: ModelSpec,
    peft: Mapping[str, Any],
    searched: Mapping[str, Sequence[Any]] | None = None,
) -> list[Problem]:
    """Find modules and layers that the model lacks, from its config alone: no weight is loaded.

    Args:
        searched: config key -> its searched values; those of `peft.*` are checked, too.
    """
    names = [name for name, _ in skeleton(spec).named_modules() if name]
    return missing_targets(peft, names, searched)


def adapter_refusal(spec: ModelSpec, peft: Mapping[str, Any]) -> str | None:
    """Why PEFT refuses to make this adapter for the model, or None; no weight is loaded."""
    import torch

    try:
        with torch.device("meta"):
            adapt(skeleton(spec), {**peft, "init_lora_weights": False})
    except (SweepError, ConfigError) as error:
        return str(error)
    return None


def skeleton(spec: ModelSpec) -> Any:
    """Build the model on torch's meta device: all modules and shapes, no weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            load_config(spec), trust_remote_code=spec.trust_remote_code
        )


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide transformers' progress bars within."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
