"""The pack's head against each kind of model's own: scales and caps of logits are not forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainers.packed.lm_head import Head

VOCABULARY, WIDTH = 64, 32
SMALL = {
    **{"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "head_dim": 16},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"initializer_range": 0.5, "pad_token_id": 0},  # losses far from the uniform one
}


@pytest.mark.parametrize("positions", [4, 1000])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("phi3", {}),
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
def test_losses_are_those_of_the_models_own_logits(
    kind: str, more: dict[str, Any], positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.trial.evaluation.positions_at_once", lambda *_: positions)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **more)).eval()
        ids = torch.randint(3, VOCABULARY, (3, 9))
    targets = ids[:, 1:].flatten()
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits, hidden = logits.reshape(-1, VOCABULARY), hidden.reshape(-1, WIDTH)
    theirs = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    head = Head(model)
    torch.testing.assert_close(head.losses(hidden, targets), theirs, rtol=1e-5, atol=1e-5)
    scored, is_first = head.score(hidden, targets)
    torch.testing.assert_close(scored, theirs, rtol=1e-5, atol=1e-5)
    assert is_first.tolist() == (logits.argmax(-1) == targets).tolist()
