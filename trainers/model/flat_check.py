"""Decides whether the rows of a pass may lie one after another in one sequence, without padding.

They may if a model mixes positions in attention alone, and attends by transformers' interface. That
is tried with a few rows, each alone and all in one sequence: first on a small model of the same
class with windows of 8, built from the config, since real windows are longer than rows worth
trying; then on the model itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch

from sweeps.config.spec import ModelSpec
from sweeps.core.errors import ConfigError, SweepError
from trainers.model import attention, flat_attention
from trainers.model.source import load_config

_LENGTHS = (21, 1, 30, 5)  # of the rows that are tried: beyond windows of 8, and unlike
_WINDOW = 8
_WIDTH = 64  # of the small model
_HEAD = 16
_ALIKE = 1e-3  # the largest relative distance of rows in float32
_ALIKE_IN_HALF = 0.1  # the same in half precision, which the small model does not know
_KINDS = ("layer_types", "layers_block_type")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@functools.cache
def obstacle(spec: ModelSpec) -> str:
    """Why rows of a model have to be padded, as far as its config says; empty if it says nothing.

    Raises:
        ConfigError, SweepError: the config cannot be read.
    """
    if spec.quantization == "int8":
        return "int8 quantizes by the largest of a batch's values"
    config = load_config(spec).get_text_config()
    kinds = {kind for name in _KINDS for kind in getattr(config, name, None) or []}
    if foreign := sorted(kind for kind in kinds if "attention" not in kind or "linear" in kind):
        return f"layers of the kind {foreign[0]} mix what lies side by side"
    try:
        small = _small(config, spec)
        apart = _apart(small)
    except Exception:
        # Not every config bears other sizes. Without windows the model itself tells as much.
        return "" if attention.is_plain(config) else "its windows could not be tried"
    return _settle(small, apart, _ALIKE)


def settle(model: Any, spec: ModelSpec) -> str:
    """Let a model attend within rows that lie one after another; or say why it cannot.

    In the second case its attention is as it was. It evaluates (`eval()`) from then on.

    Raises:
        What the device raises if its memory is too small.
    """
    model.eval()
    try:
        if found := obstacle(spec):
            return found
    except (ConfigError, SweepError):
        pass  # a config that only the loaded model has
    if model.get_input_embeddings().weight.is_meta:
        return _settle(model, None, 0.0)
    is_half = model.dtype != torch.float32 or spec.quantization != "none"
    try:
        apart = _apart(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"rows could not be tried: {str(error)[:100] or repr(error)}"
    return _settle(model, apart, _ALIKE_IN_HALF if is_half else _ALIKE)


def _settle(model: Any, apart: torch.Tensor | None, alike: float) -> str:
    """Set a model's attention, if its rows are `apart` in one sequence too."""
    may_set = getattr(model, "_can_set_attn_implementation", None)  # transformers' own question
    if may_set is None or not may_set():
        return "it does not attend by transformers' interface"
    flat_attention.register()
    before, found = model.config._attn_implementation, "its layers mix the rows of a sequence"
    try:
        model.set_attn_implementation(flat_attention.NAME)
        if apart is None or _distance(_hidden(model, [_LENGTHS]), apart) < alike:
            found = ""
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        found = f"in one sequence it fails: {str(error)[:100] or repr(error)}"
    finally:
        if found:
            model.set_attn_implementation(before)
    return found


def _apart(model: Any) -> torch.Tensor:
    """The hidden states of the rows, each by itself."""
    return _hidden(model, [[length] for length in _LENGTHS])


@torch.no_grad()
def _hidden(model: Any, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """The hidden states of rows in sequences, whose lengths are given, one after another."""
    weight = model.get_input_embeddings().weight
    found, first = [], 3
    for lengths in sequences:
        ids = torch.arange(first, first + sum(lengths), device=weight.device) % weight.shape[0]
        first += sum(lengths)
        options = {}
        if len(lengths) > 1:
            positions = torch.cat([torch.arange(length) for length in lengths])
            options["position_ids"] = positions.to(weight.device)[None]
        with flat_attention.laid_out(flat_attention.lay_out(lengths, weight.device)):
            given = {"input_ids": ids[None], "use_cache": False, **options}
            found.append(model.base_model(**given).last_hidden_state[0])
    return torch.cat(found).float()


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest relative distance of a row."""
    pairs = zip(ours.split(_LENGTHS), theirs.split(_LENGTHS), strict=True)
    worst = torch.stack([(mine - other).norm() / other.norm() for mine, other in pairs]).max()
    return float(worst) if bool(worst.isfinite()) else 1.0


def _small(config: Any, spec: ModelSpec) -> Any:
    """A model of the config's class with narrow layers.

    Raises:
        Whatever its class raises that such sizes do not suit.
    """
    from transformers import AutoModelForCausalLM

    given = type(config).from_dict(_narrowed(config), attn_implementation=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
        model = AutoModelForCausalLM.from_config(given, dtype=torch.float32, **options)
        for weight in model.parameters():  # sizes at which each layer matters
            if weight.dim() == 2:
                weight.data.normal_(std=weight.shape[-1] ** -0.5)
    return model.requires_grad_(False).eval()


def _narrowed(config: Any) -> dict[str, Any]:
    """A config of narrow layers, as many and of the same kinds."""
    given = {name: value for name, value in config.to_dict().items() if "quantiz" not in name}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if name.startswith("vocab_size"):
            given[name] = 2 * _WIDTH
        elif name.endswith("token_id"):
            given[name] = 0
        elif re.search("window|chunk|local_attention", name) and not re.search("layer|patt", name):
            given[name] = min(value, _WINDOW)
        elif re.search("intermediate_size|ffn_dim|n_inner", name) and value:
            given[name] = _WIDTH
        elif name in _EXPERTS:
            given[name] = min(value, 8)
    heads = next((name for name in _HEADS if name in given), None)
    if heads is None:
        return given
    key_heads = next((name for name in _KEY_HEADS if given.get(name)), None)
    shares = given[heads] // given[key_heads] if key_heads else 1
    few = max(2, shares)
    given |= {heads: few} | ({key_heads: few // shares} if key_heads else {})
    given[next(name for name in _HIDDEN if name in given)] = _HEAD * few
    if given.get("head_dim") and "qk_rope_head_dim" not in given:
        given |= {"head_dim": _HEAD}
    return given
