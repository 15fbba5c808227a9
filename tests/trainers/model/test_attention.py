"""Our attention: the numbers of transformers' own without a mask, for models that it fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from trainers.model import attention

SMALL = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("make", [LlamaConfig, Qwen3Config])
def test_rows_padded_on_the_right_need_no_mask(make: Any) -> None:
    attention.register()
    torch.manual_seed(0)
    ours = AutoModelForCausalLM.from_config(make(**SMALL), attn_implementation=attention.NAME)
    stock = AutoModelForCausalLM.from_config(make(**SMALL), attn_implementation="sdpa")
    stock.load_state_dict(ours.state_dict())
    ids = torch.randint(3, 60, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[2, 7:] = 0
    ours.eval(), stock.eval()
    mine, theirs = ours(input_ids=ids).logits, stock(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(mine[mask == 1], theirs[mask == 1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mine[mask == 0], theirs[mask == 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (LlamaConfig(**SMALL), True),
        (Qwen3Config(**SMALL), True),
        (Qwen2Config(**SMALL, sliding_window=4, use_sliding_window=False), True),
        (MistralConfig(**SMALL, sliding_window=None), True),
        (MistralConfig(**SMALL, sliding_window=4), False),
        (
            Qwen2Config(**SMALL, sliding_window=4, use_sliding_window=True, max_window_layers=1),
            False,
        ),
        (Gemma3TextConfig(**SMALL), False),
        (Llama4TextConfig(**SMALL), False),
    ],
)
def test_models_with_windows_or_chunks_keep_their_masks(config: Any, plain: bool) -> None:
    assert attention.is_plain(config) is plain


@pytest.mark.parametrize("asked", ["sliding_window", "softcap", "s_aux", "position_bias"])
def test_what_it_does_not_do_is_refused_not_left_out(asked: str) -> None:
    q = torch.ones(1, 2, 3, 4)
    with pytest.raises(ValueError, match=f"does not do {asked}; set it to eager or sdpa"):
        attention.attend(torch.nn.Module(), q, q, q, None, **{asked: 2})
    attention.attend(torch.nn.Module(), q, q, q, None, **{asked: None})


@pytest.mark.parametrize(
    ("is_cuda", "dtype", "head", "of_value", "kept"),
    [
        (False, torch.float32, 64, 64, False),
        (True, torch.bfloat16, 64, 64, False),
        (True, torch.float16, 256, 256, False),
        (True, torch.float32, 64, 64, True),
        (True, torch.bfloat16, 320, 320, True),
        (True, torch.bfloat16, 192, 128, True),
    ],
)
def test_on_cuda_grouped_queries_are_repeated_where_no_kernel_knows_them(
    is_cuda: bool, dtype: torch.dtype, head: int, of_value: int, kept: bool
) -> None:
    query: Any = SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 8, 5, head))
    value: Any = SimpleNamespace(shape=(1, 2, 5, of_value))
    assert attention._keeps_all_pairs(query, value) is kept


def test_repeated_keys_and_values_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    grouped, _ = attention.attend(torch.nn.Module(), q, k, v, None)
    monkeypatch.setattr(attention, "_keeps_all_pairs", lambda *_: True)
    repeated, _ = attention.attend(torch.nn.Module(), q, k, v, None)
    assert torch.allclose(grouped, repeated, atol=1e-6)


def test_cudnns_attention_is_left_out_since_it_plans_each_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    attention.register()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
