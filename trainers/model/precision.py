"""Chooses the number types and the attention with which a base model runs on a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sweeps.config.spec import ModelSpec
from sweeps.core.errors import ConfigError, Problem, nearest
from trainers.model import attention

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

ATTENTION = (
    *("auto", attention.NAME, "sdpa", "eager"),
    *("flash_attention_2", "flash_attention_3", "flex_attention"),
)
_FLAGS = {"sdpa": "_supports_sdpa", "flex_attention": "_supports_flex_attn"}
_FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The number types and the attention of a model on a device.

    Attributes:
        dtype: of the base weights; of the computation if these are quantized.
        autocast: what torch.autocast computes in; None without it.
        attn_implementation: as transformers names it.
        why: the choice in words.
    """

    dtype: torch.dtype
    autocast: torch.dtype | None
    attn_implementation: str
    why: str

    def quantization_config(self, quantization: Literal["nf4", "int8"]) -> Any:
        """bitsandbytes' settings: QLoRA's own for nf4 (arXiv 2305.14314), LLM.int8() for int8."""
        from transformers.utils.quantization_config import BitsAndBytesConfig

        if quantization == "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=self.dtype,
        )

    @property
    def is_half(self) -> bool:
        """Whether weights or sums are rounded to bfloat16 or float16."""
        import torch

        return self.autocast is not None or self.dtype != torch.float32


def runtime(
    spec: ModelSpec,
    config: PretrainedConfig,
    device: str,
    *,
    trains_base: bool,
    bf16: bool | None = None,
) -> Runtime:
    """Choose for a model with the config `config`; see `trainers.model.loading.choose`."""
    dtype_name, dtype_why = _dtype(spec, device, trains_base=trains_base)
    problems = [
        *_dtype_problems(dtype_name, device),
        *_bf16_problems(bf16, dtype_name, device),
        *_quantization_problems(spec, config),
    ]
    autocast = _autocast(spec, dtype_name, device, trains_base=trains_base, bf16=bf16)
    implementation, attention_why = _attention(spec, config, device, dtype_name)
    problems += _attention_problems(spec, config, device, dtype_name)
    if problems:
        raise ConfigError(problems)
    import torch

    mixed = f", autocast to {autocast}" if autocast else ""
    return Runtime(
        dtype=getattr(torch, dtype_name),
        autocast=getattr(torch, autocast) if autocast else None,
        attn_implementation=implementation,
        why=f"{dtype_name} ({dtype_why}){mixed}, {implementation} attention ({attention_why})",
    )


def _dtype(spec: ModelSpec, device: str, *, trains_base: bool) -> tuple[str, str]:
    if spec.dtype != "auto":
        return spec.dtype, "as asked for"
    if not device.startswith("cuda"):
        return "float32", f"what a {device.upper()} computes fastest in"
    if trains_base:
        # In bfloat16 an update below 1/256 of its weight is rounded away: at usual learning rates
        # most are. Autocast computes in bfloat16 all the same (`_autocast`).
        return "float32", "weights that are trained need its precision"
    if not _has_gpu():  # a worker on another node decides for itself, when it loads the model
        return "bfloat16", "as long as the GPUs, of which this machine has none, compute in it"
    if _has_bfloat16():
        return "bfloat16", "this GPU computes in it"
    if spec.quantization != "none":
        return "float16", "this GPU has no bfloat16"
    return "float32", "this GPU has no bfloat16, and float16 overflows in training"


def _autocast(
    spec: ModelSpec, dtype_name: str, device: str, *, trains_base: bool, bf16: bool | None
) -> str | None:
    """The type of torch.autocast: as trainer.bf16 says, by default bfloat16 on a GPU that has it.

    model.dtype=float32 alone means float32; with trainer.bf16 set, autocast to bfloat16.
    """
    if bf16:
        return "bfloat16"
    if not device.startswith("cuda"):
        return None
    if dtype_name == "float16":
        return "float16"
    if bf16 is None and (dtype_name == "bfloat16" or (trains_base and spec.dtype == "auto")):
        return None if lacks_bfloat16(device) else "bfloat16"
    return None


def _bf16_problems(bf16: bool | None, dtype_name: str, device: str) -> Iterator[Problem]:
    key = "trainer.bf16"
    if not bf16:
        return
    if dtype_name == "float16":
        message = "does not go with model.dtype=float16: leave one of the two out."
        yield Problem(key=key, value=bf16, message=message)
    elif lacks_bfloat16(device):
        message = "this GPU does not compute in bfloat16: leave it out."
        yield Problem(key=key, value=bf16, message=message)


def _dtype_problems(dtype_name: str, device: str) -> list[Problem]:
    key = "model.dtype"
    if device == "cpu" and dtype_name == "float16":
        message = "on a CPU, training in float16 loses small gradients; float32 or bfloat16"
        return [Problem(key=key, value=dtype_name, message=message)]
    if dtype_name == "bfloat16" and lacks_bfloat16(device):
        message = "this GPU does not compute in bfloat16; float16 or float32"
        return [Problem(key=key, value=dtype_name, message=message)]
    return []


def lacks_bfloat16(device: str) -> bool:
    """Whether trials train on a GPU, and the GPU of this machine does not compute in bfloat16."""
    return device.startswith("cuda") and _has_gpu() and not _has_bfloat16()


def _has_gpu() -> bool:
    """Whether this machine has a GPU: the driver may run on a node without one."""
    import torch

    return torch.cuda.is_available()


def _has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def _quantization_problems(spec: ModelSpec, config: PretrainedConfig) -> list[Problem]:
    key, value = "model.quantization", spec.quantization
    if value == "none":
        return []
    if getattr(config, "quantization_config", None) is not None:
        message = f"{spec.path} is quantized already; set it to none"
        return [Problem(key=key, value=value, message=message)]
    if importlib.util.find_spec("bitsandbytes") is None:
        message = "needs bitsandbytes: pip install bitsandbytes, or set it to none"
        return [Problem(key=key, value=value, message=message)]
    return []


def _attention(
    spec: ModelSpec, config: PretrainedConfig, device: str, dtype_name: str
) -> tuple[str, str]:
    if spec.attn_implementation != "auto":
        return spec.attn_implementation, "as asked for"
    flash = "flash_attention_2"
    if not _flash_obstacle(flash, config, device, dtype_name):
        return flash, "installed, and the fastest here"
    if _has_plain_attention(config):
        return attention.NAME, "PyTorch's own, without masks"
    if _supports(config, "_supports_sdpa"):
        return "sdpa", "PyTorch's own"
    return "eager", "the only one that this model has"


def _attention_problems(
    spec: ModelSpec, config: PretrainedConfig, device: str, dtype_name: str
) -> list[Problem]:
    key, value = "model.attn_implementation", spec.attn_implementation
    usable = "sdpa or eager" if _supports(config, "_supports_sdpa") else "eager"
    message, hint = "", None
    if value in _FLASH_PACKAGES:
        message = _flash_obstacle(value, config, device, dtype_name)
    elif value == attention.NAME and not _has_plain_attention(config):
        message = "is for models whose layers all attend to every earlier token"
    elif value in _FLAGS and not _supports(config, _FLAGS[value]):
        message = "this model does not have it"
    elif value not in ATTENTION and "/" not in value:  # owner/name is a kernel of the Hub
        message, hint = f"must be one of {', '.join(ATTENTION)}", nearest(value, ATTENTION)
    if not message:
        return []
    text = f"{message}." if hint else f"{message}; {usable} would work"
    return [Problem(key=key, value=value, message=text, nearest=hint)]


def _has_plain_attention(config: PretrainedConfig) -> bool:
    return attention.is_plain(config) and all(_supports(config, flag) for flag in attention.NEEDS)


def _flash_obstacle(name: str, config: PretrainedConfig, device: str, dtype_name: str) -> str:
    """Why flash attention cannot be used here; empty if it can."""
    if not device.startswith("cuda"):
        return f"needs a CUDA device, and this is a {device.upper()}"
    if importlib.util.find_spec(_FLASH_PACKAGES[name]) is None:
        return f"needs the package {_FLASH_PACKAGES[name]}, which is not installed"
    if dtype_name == "float32":
        return "computes in bfloat16 or float16, not in float32"
    return "" if _supports(config, "_supports_flash_attn") else "this model does not have it"


def _supports(config: PretrainedConfig, flag: str) -> bool:
    """Whether the config's model class has the flag of an attention; False for code of the Hub."""
    from transformers import AutoModelForCausalLM

    # The only public way to the class is to build the model.
    mapping = AutoModelForCausalLM._model_mapping
    return type(config) in mapping and bool(getattr(mapping[type(config)], flag, False))
