"""Tiny random causal language models of real architectures, with the embedded model's tokenizer.

Hidden states have 64 features and there are two to four layers, so that each model is built and
trained for a few steps in a second. Windows and chunks are of 16 tokens, shorter than the rows.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from support.training import scratch

from sweeps.config.spec import ModelSpec
from trainers.model.tokenizer import load_tokenizer

_VOCABULARY = 4096

_IDS: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# The names that most configs use.
_COMMON: dict[str, Any] = _IDS | {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}

# model_type of the config, and what differs from _COMMON; None leaves a key out.
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_untied": ("llama", {"tie_word_embeddings": False}),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral_sw": ("mistral", {"sliding_window": 16}),
    "ministral": (
        "ministral",
        {
            "num_hidden_layers": 4,
            "sliding_window": 16,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
        },
    ),
    "ministral3": ("ministral3", {}),
    "qwen2": ("qwen2", {}),
    "qwen2_sw": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_experts": 4},
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            "num_hidden_layers": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "num_experts": 4,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "qwen3_next_dense": (
        "qwen3_next",
        {
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "num_experts": 0,
            "mlp_only_layers": [0, 1, 2, 3],
            "moe_intermediate_size": 48,
            "num_experts_per_tok": 1,
        },
    ),
    "qwen3_5_text": (
        "qwen3_5_text",
        {
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
        },
    ),
    "qwen3_5_moe_text": (
        "qwen3_5_moe_text",
        {
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_experts": 4,
            "shared_expert_intermediate_size": 48,
        },
    ),
    "gemma": ("gemma", {}),
    "gemma2": (
        "gemma2",
        {
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 10.0,
        },
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
        },
    ),
    "gemma3n_text": (
        "gemma3n_text",
        {
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "vocab_size_per_layer_input": 4096,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "sliding_window": 16,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma4_text": (
        "gemma4_text",
        {
            "num_hidden_layers": 4,
            "vocab_size_per_layer_input": 4096,
            "hidden_size_per_layer_input": 16,
            "global_head_dim": 16,
            "sliding_window": 16,
            "num_kv_shared_layers": 2,
            "layer_types": [
                "sliding_attention",
                "full_attention",
                "sliding_attention",
                "full_attention",
            ],
        },
    ),
    "vaultgemma": ("vaultgemma", {"query_pre_attn_scalar": 16, "sliding_window": 16}),
    "phi3": (
        "phi3",
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "original_max_position_embeddings": 512},
    ),
    "phi": (
        "phi",
        {
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
            "head_dim": None,
        },
    ),
    "phimoe": (
        "phimoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True},
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 2.0,
        },
    ),
    "starcoder2": (
        "starcoder2",
        {"residual_dropout": 0.0, "embedding_dropout": 0.0, "sliding_window": 16, "head_dim": None},
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.1,
        },
    ),
    "granitemoe": (
        "granitemoe",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "logits_scaling": 4.0,
            "embedding_multiplier": 6.0,
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_expand": 2,
            "mamba_chunk_size": 16,
            "logits_scaling": 4.0,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "olmo": ("olmo", {"clip_qkv": 8.0, "head_dim": None}),
    "olmo2": ("olmo2", {"head_dim": None}),
    "olmo3": (
        "olmo3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 16,
            "layer_types": [
                "sliding_attention",
                "sliding_attention",
                "sliding_attention",
                "full_attention",
            ],
            "head_dim": None,
        },
    ),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": (
        "deepseek_v2",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "head_dim": None,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
            "head_dim": None,
        },
    ),
    "deepseek_v3_dense": (
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 2,
            "n_group": 2,
            "topk_group": 1,
            "head_dim": None,
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    ),
    "bamba": (
        "bamba",
        {
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_expand": 2,
            "mamba_chunk_size": 16,
        },
    ),
    "jamba": (
        "jamba",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
            "head_dim": None,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "mamba_d_state": 16,
            "mamba_ngroups": 1,
            "mamba_headdim": 16,
            "n_mamba_heads": 8,
            "chunk_size": 16,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "hybrid_layer_ids": [1, 3],
            "num_mem_blocks": 1,
            "adapter_rank": 8,
            "head_dim": None,
        },
    ),
    "cohere": ("cohere", {"logit_scale": 0.25, "use_qk_norm": True, "head_dim": None}),
    "cohere2": (
        "cohere2",
        {"num_hidden_layers": 4, "logit_scale": 0.25, "sliding_window": 16, "head_dim": None},
    ),
    "stablelm": (
        "stablelm",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
            "use_qkv_bias": True,
            "use_parallel_residual": True,
            "head_dim": None,
        },
    ),
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 4,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "head_dim": None,
        },
    ),
    "lfm2_moe": (
        "lfm2_moe",
        {
            "num_hidden_layers": 4,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "num_dense_layers": 1,
            "head_dim": None,
        },
    ),
    "glm": (
        "glm",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "glm4": (
        "glm4",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "use_qk_norm": True,
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 160,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 1, 1, 0],
        },
    ),
    "nemotron": ("nemotron", {}),
    "nemotron_h": (
        "nemotron_h",
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "attention", "mamba", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "n_routed_experts": 1,
        },
    ),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 48,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
        },
    ),
    "exaone4": (
        "exaone4",
        {"num_hidden_layers": 4, "sliding_window": 16, "sliding_window_pattern": 4},
    ),
    "minicpm3": (
        "minicpm3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "scale_emb": 4,
            "scale_depth": 1.4,
            "dim_model_base": 32,
            "head_dim": None,
        },
    ),
    "hyperclovax": ("hyperclovax", {"logits_scaling": 0.5}),
    "helium": ("helium", {}),
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "seed_oss": ("seed_oss", {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {}),
    "diffllama": ("diffllama", {}),
    "doge": ("doge", {"num_experts": 4, "num_experts_per_tok": 2}),
    "nanochat": ("nanochat", {}),
    "bitnet": ("bitnet", {}),
    "minimax": ("minimax", {"num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 16}),
    "olmo_hybrid": (
        "olmo_hybrid",
        {
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
        },
    ),
}
# The same for configs with names of their own: what differs from _IDS.
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3_mm": (
        "gemma3",
        {
            "text_config": {
                "hidden_size": 64,
                "intermediate_size": 160,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 512,
                "vocab_size": 4096,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "query_pre_attn_scalar": 16,
                "sliding_window": 16,
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": 4000,
            "eoi_token_index": 4001,
            "image_token_index": 4002,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "lru_width": 64,
            "attention_window_size": 16,
            "logits_soft_cap": 5.0,
        },
    ),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt2_nodrop": (
        "gpt2",
        {
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
    ),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 512,
            "window_size": 16,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_neox": (
        "gpt_neox",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
        },
    ),
    "gptj": (
        "gptj",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8},
    ),
    "codegen": (
        "codegen",
        {
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "n_ctx": 512,
            "rotary_dim": 8,
        },
    ),
    "gpt_bigcode": (
        "gpt_bigcode",
        {
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 512,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "multi_query": True,
        },
    ),
    "opt": (
        "opt",
        {
            "hidden_size": 64,
            "ffn_dim": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 64,
        },
    ),
    "opt_nodrop": (
        "opt",
        {
            "hidden_size": 64,
            "ffn_dim": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 32,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "opt_layerdrop": (
        "opt",
        {
            "hidden_size": 64,
            "ffn_dim": 160,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 64,
            "dropout": 0.0,
            "layerdrop": 0.1,
        },
    ),
    "falcon": (
        "falcon",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 1,
            "multi_query": True,
            "new_decoder_architecture": False,
            "max_position_embeddings": 512,
        },
    ),
    "falcon_alibi": (
        "falcon",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "alibi": True,
            "multi_query": False,
            "new_decoder_architecture": False,
            "parallel_attn": False,
            "bias": True,
            "max_position_embeddings": 512,
        },
    ),
    "falcon_mamba": (
        "falcon_mamba",
        {
            "hidden_size": 64,
            "state_size": 8,
            "num_hidden_layers": 2,
            "intermediate_size": 128,
            "expand": 2,
            "time_step_rank": 8,
        },
    ),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}),
    "mpt_scale": (
        "mpt",
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 512, "logit_scale": 0.5},
    ),
    "mamba": (
        "mamba",
        {
            "hidden_size": 64,
            "state_size": 8,
            "num_hidden_layers": 2,
            "expand": 2,
            "time_step_rank": 8,
        },
    ),
    "mamba2": (
        "mamba2",
        {
            "hidden_size": 64,
            "state_size": 16,
            "num_hidden_layers": 2,
            "expand": 2,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "rwkv": (
        "rwkv",
        {
            "hidden_size": 64,
            "attention_hidden_size": 64,
            "num_hidden_layers": 2,
            "context_length": 512,
        },
    ),
    "xlstm": (
        "xlstm",
        {
            "hidden_size": 64,
            "embedding_dim": 64,
            "num_hidden_layers": 2,
            "num_blocks": 2,
            "num_heads": 4,
            "chunk_size": 16,
            "output_logit_soft_cap": 5.0,
        },
    ),
    "persimmon": (
        "persimmon",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "dbrx": (
        "dbrx",
        {
            "d_model": 64,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 512,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "modernbert_decoder": (
        "modernbert-decoder",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "local_attention": 16,
            "sep_token_id": 2,
            "cls_token_id": 1,
        },
    ),
    "recurrent_gemma_cap30": (
        "recurrent_gemma",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "lru_width": 64,
            "attention_window_size": 16,
            "logits_soft_cap": 30.0,
        },
    ),
    "xglm": (
        "xglm",
        {
            "d_model": 64,
            "ffn_dim": 160,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "biogpt": (
        "biogpt",
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
}


ARCHITECTURES = [*_MODELS, *_OTHERS]


@functools.cache
def tiny(name: str) -> ModelSpec:
    """Build a model of ARCHITECTURES in a folder of its own, seeded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, changes = _MODELS[name] if name in _MODELS else _OTHERS[name]
    given = (_COMMON if name in _MODELS else _IDS) | changes
    config = AutoConfig.for_model(kind, **{key: v for key, v in given.items() if v is not None})
    folder = scratch()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _spread(model)
    model.save_pretrained(str(folder))
    load_tokenizer(ModelSpec(path="tiny")).save_pretrained(str(folder))
    return ModelSpec(path=str(Path(folder)))


@torch.no_grad()
def _spread(model: torch.nn.Module) -> None:
    """Give weights sizes at which each layer matters, and losses far from the uniform one."""
    for name, weight in model.named_parameters():
        if name.endswith(("A_log", "conv1d.weight")):
            continue
        if weight.dim() >= 2:
            scale = 0.3 if weight.shape[0] == _VOCABULARY else weight.shape[-1] ** -0.5
            weight.copy_(torch.randn_like(weight) * scale)
        elif "norm" in name and name.endswith("weight"):
            weight.add_(torch.randn_like(weight) * 0.1)
        elif name.endswith("bias"):
            weight.add_(torch.randn_like(weight) * 0.02)
