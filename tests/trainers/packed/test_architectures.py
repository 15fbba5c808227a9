"""Lanes equal their solo runs on models of real architectures, built tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.packs import alone, key, pack, short_rows, small
from support.tiny_archs import ARCHITECTURES, tiny

from sweeps.storage.run_folder import RunFolder
from trainers.best_checkpoint import assemble, prove
from trainers.packed.compatibility import obstacle

_NO_ROUTER_LOSS = {"router_aux_loss_coef": 0.0}
_ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
_WITHOUT_OUTPUT = {"exclude_modules": ["out_proj"]}  # PEFT refuses it for Mamba
# What a model needs to be a lane beside the defaults: (peft, trainer).
_NEEDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "falcon_h1"), (_WITHOUT_OUTPUT, {})),
    "nemotron_h": (_WITHOUT_OUTPUT, {}),
    **dict.fromkeys(
        ("mixtral", "qwen3_moe", "qwen2_moe", "olmoe", "gpt_oss", "qwen3_next", "minimax"),
        (_ATTENTION, _NO_ROUTER_LOSS),
    ),
    **dict.fromkeys(
        ("glm4_moe", "ernie4_5_moe", "qwen3_5_moe_text"), (_ATTENTION, _NO_ROUTER_LOSS)
    ),
    "deepseek_v2": ({"target_modules": ["q_a_proj", "o_proj"]}, _NO_ROUTER_LOSS),
    "deepseek_v3": ({"target_modules": ["q_a_proj", "o_proj"]}, _NO_ROUTER_LOSS),
    **dict.fromkeys(("granitemoe", "doge"), ({}, _NO_ROUTER_LOSS)),
}
# The layers of these drop activations of their own.
_ALONE = ("gpt2", "opt", "opt_layerdrop", "seed_oss")
# SFTTrainer itself cannot train these, or PEFT: nothing to compare with.
_UNTRAINABLE = ("phimoe", "llama4_text", "bitnet", "qwen3_next_dense")
_QUICK = (
    *("llama_untied", "gemma2", "modernbert_decoder", "mamba", "gpt_neox", "mixtral"),
    "granitemoehybrid",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in _QUICK else pytest.mark.long)
        for name in ARCHITECTURES
        if name not in (*_ALONE, *_UNTRAINABLE)
    ],
)
def test_lanes_equal_solo_runs(name: str, tmp_path: Path) -> None:
    """Two lanes of unlike rates and dropouts, over one window of two micro-batches."""
    peft, trainer = _NEEDS.get(name, ({}, {}))
    specs = [
        small(
            model=tiny(name),
            peft={**peft, "lora_dropout": dropout},
            learning_rate=rate,
            evaluations=1,
            **trainer,
        )
        for rate, dropout in ((1e-3, 0.0), (4e-3, 0.1))
    ]
    assert [obstacle(spec) for spec in specs] == ["", ""]
    made = pack(tmp_path / "packed", specs, examples=16).finish()
    for place, spec in enumerate(specs):
        made.state(place)
        ours = [report.metrics["eval_loss"] for report in made.seen[place].reports]
        solo = alone(tmp_path / f"solo-{place}", spec, examples=16)
        assert ours == pytest.approx([r.metrics["eval_loss"] for r in solo.reports], rel=1e-6)


# Heads that are the embedding, layers that are used several times, scales and caps of logits.
_SHARED = (
    *("llama_tied", "llama_untied", "zamba2", "granite", "cohere", "gemma2", "gemma3n_text"),
    *("gpt2_nodrop", "bloom", "modernbert_decoder", "recurrent_gemma", "hyperclovax"),
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("llama_tied", "granite") else pytest.mark.slow)
        for name in _SHARED
    ],
)
def test_a_whole_model_is_loaded_as_it_was_trained(name: str, tmp_path: Path) -> None:
    spec = small(model=tiny(name), peft={"method": "full"}, evaluations=1)
    solo = alone(tmp_path / "solo", spec, examples=16)
    ((step, _),) = solo.commits
    saved = RunFolder(tmp_path / "solo").checkpoint(key(0), step)
    assemble(saved, tmp_path / "best", spec.model)
    reported = solo.reports[-1].metrics["eval_loss"]
    found = prove(tmp_path / "best", spec, short_rows(), expected=reported, device="cpu")
    assert found["eval_loss"] == pytest.approx(reported, rel=1e-6)


@pytest.mark.parametrize("name", _ALONE)
def test_a_base_with_dropout_of_its_own_trains_alone(name: str) -> None:
    assert "the base has dropout itself" in obstacle(small(model=tiny(name)))


@pytest.mark.parametrize(
    ("name", "peft", "trainer", "words"),
    [
        ("mixtral", {}, {}, "the loss of its routers is taken over a whole batch"),
        ("qwen3_moe", {}, _NO_ROUTER_LOSS, "model.layers.0.mlp.experts is no linear layer"),
        ("ernie4_5_moe", {}, _NO_ROUTER_LOSS, "model.layers.1.mlp.experts is no linear layer"),
        ("llama_untied", {"target_modules": ["q_proj", "embed_tokens"]}, {}, "embed_tokens."),
    ],
)
def test_what_lanes_cannot_train_is_seen_without_weights(
    name: str, peft: dict[str, Any], trainer: dict[str, Any], words: str
) -> None:
    assert words in obstacle(small(model=tiny(name), peft=peft, **trainer))


def test_a_module_that_is_called_twice_gets_its_two_masks_again(tmp_path: Path) -> None:
    """Gemma 3n routes by one module before and after each layer; activations are recomputed."""
    spec = small(
        model=tiny("gemma3n_text"),
        peft={"lora_dropout": 0.1},
        gradient_checkpointing=True,
        evaluations=1,
    )
    made = pack(tmp_path / "packed", [spec], examples=16).finish()
    made.state(0)
    ours = [report.metrics["eval_loss"] for report in made.seen[0].reports]
    solo = alone(tmp_path / "solo", spec, examples=16)
    assert ours == pytest.approx([r.metrics["eval_loss"] for r in solo.reports], rel=1e-6)
