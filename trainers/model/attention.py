"""Computes causal attention without masks, registered with transformers under its own name.

Rows are padded on the right and a token attends to earlier ones only, so no token that counts sees
padding: a mask would change no number. transformers makes no mask for an attention that has no mask
function, so the host never waits for the device to look at one, and PyTorch's flash attention can
be used, which takes no mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

NAME = "causal_sdpa"
NEEDS = ("_supports_sdpa", "_supports_attention_backend")  # flags of the model's class
# What layers may ask of an attention and this one does not do: then another one is chosen.
_FOREIGN = ("sliding_window", "softcap", "s_aux", "position_bias")
_FULL = "full_attention"


def is_plain(config: PretrainedConfig) -> bool:
    """Whether every layer attends to all earlier tokens, as far as the model's config says."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [_FULL])
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return kinds == {_FULL} and not any(windows)


def register() -> None:
    """Register this attention with transformers, and turn off cuDNN's attention in PyTorch.

    cuDNN plans each shape anew, 40 to 400 ms forward and backward, and a batch's shape is new
    whenever its longest row is. PyTorch 2.11 prefers it on an H100, though its own flash attention
    takes every shape that cuDNN's would.
    """
    import torch
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    torch.backends.cuda.enable_cudnn_sdp(False)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # [rows, heads, tokens, head_dim]
    key: torch.Tensor,  # [rows, key_value_heads, tokens, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to all earlier tokens of a row; [rows, tokens, heads, head_dim].

    Raises:
        ValueError: the layer asks for something that this attention does not do.
    """
    from torch.nn.functional import scaled_dot_product_attention

    if asked := [name for name in _FOREIGN if options.get(name) is not None]:
        raise ValueError(
            f"model.attn_implementation={NAME} does not do {asked[0]}; set it to eager or sdpa"
        )
    groups = query.shape[1] // key.shape[1]
    repeats = groups > 1 and _keeps_all_pairs(query, value)
    if repeats:
        key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    found = scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        scale=scaling,
        is_causal=True,
        enable_gqa=groups > 1 and not repeats,
    )
    return found.transpose(1, 2).contiguous(), None


def _keeps_all_pairs(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether grouped queries would keep the scores of all pairs of tokens for the backward pass.

    On CUDA flash attention alone knows groups; it has half precision and heads of at most 256.
    """
    import torch

    is_odd = query.shape[-1] != value.shape[-1] or query.shape[-1] > 256
    return query.is_cuda and (query.dtype == torch.float32 or is_odd)
