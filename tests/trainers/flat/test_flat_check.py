"""Which models may have their rows one after another in one sequence, and which are padded."""

from __future__ import annotations

from typing import Any

import pytest
from support.tiny_archs import ARCHITECTURES, tiny
from transformers import MistralConfig

from sweeps.config.spec import ModelSpec
from trainers.flat import attention as flat_attention
from trainers.flat import check as flat_check
from trainers.model.loading import load_base

# State-space layers, linear attention, convolutions; attention that is not transformers' interface;
# Doge picks the keys of a row longer than its window by what all keys are.
PADDED = {
    *("qwen3_next", "qwen3_next_dense", "qwen3_5_text", "qwen3_5_moe_text", "falcon_h1"),
    *("granitemoehybrid", "bamba", "jamba", "zamba2", "lfm2", "lfm2_moe", "nemotron_h"),
    *("minimax", "olmo_hybrid", "recurrent_gemma", "recurrent_gemma_cap30", "mamba", "mamba2"),
    *("falcon_mamba", "rwkv", "xlstm"),
    *("gpt_neo", "gptj", "codegen", "falcon", "falcon_alibi", "bloom", "mpt", "mpt_scale", "xglm"),
    *("llama4_text", "doge"),
}
QUICK = ("llama_untied", "gemma2", "mistral_sw", "gpt_oss", "falcon_h1", "gptj", "lfm2")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES],
)
def test_models_that_mix_positions_in_attention_alone_need_no_padding(name: str) -> None:
    spec = tiny(name)
    model = load_base(spec, "cpu")
    before = model.config._attn_implementation
    is_padded = bool(flat_check.settle(model, spec))
    assert is_padded == (name in PADDED)
    now = model.config._attn_implementation
    assert now == (before if is_padded else flat_attention.NAME)


def test_a_small_model_shows_what_short_rows_of_the_model_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Its windows are of 8 tokens, where the model's own are far longer than what is tried."""
    config = MistralConfig(num_attention_heads=32, num_key_value_heads=8, sliding_window=4096)
    config.save_pretrained(str(tmp_path))
    assert flat_check.obstacle(ModelSpec(path=str(tmp_path))) == ""
    whole = flat_attention._attend_rows

    def without_windows(*given: Any) -> Any:
        *others, options = given
        return whole(*others, options | {"sliding_window": None})

    monkeypatch.setattr(flat_attention, "_attend_rows", without_windows)
    again = ModelSpec(path=str(tmp_path), revision="again")
    assert flat_check.obstacle(again) == "its layers mix the rows of a sequence"


def test_int8_is_padded() -> None:
    spec = ModelSpec(path="tiny", quantization="int8")
    assert flat_check.obstacle(spec).startswith("int8 quantizes by")
