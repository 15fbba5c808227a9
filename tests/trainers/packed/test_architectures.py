"""Lanes equal their solo runs on models of real architectures, built tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.packs import alone, key, pack, short_rows, small
from support.parity import ALONE, FAMILIES, NO_ROUTER_LOSS, of_family
from support.tiny_archs import tiny

from sweeps.storage.run_folder import RunFolder
from trainers.best_checkpoint import assemble, prove
from trainers.packed.compatibility import obstacle

_QUICK = (
    *("llama_untied", "gemma2", "modernbert_decoder", "mamba", "gpt_neox", "mixtral"),
    "granitemoehybrid",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in _QUICK else pytest.mark.long)
        for name in FAMILIES
    ],
)
def test_lanes_equal_solo_runs(name: str, tmp_path: Path) -> None:
    """Two lanes of unlike rates and dropouts, over one window of two micro-batches."""
    specs = of_family(name)
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


@pytest.mark.parametrize("name", ALONE)
def test_a_base_with_dropout_of_its_own_trains_alone(name: str) -> None:
    assert "the base has dropout itself" in obstacle(small(model=tiny(name)))


@pytest.mark.parametrize(
    ("name", "peft", "trainer", "words"),
    [
        ("mixtral", {}, {}, "the loss of its routers is taken over a whole batch"),
        ("qwen3_moe", {}, NO_ROUTER_LOSS, "model.layers.0.mlp.experts is no linear layer"),
        ("ernie4_5_moe", {}, NO_ROUTER_LOSS, "model.layers.1.mlp.experts is no linear layer"),
        ("llama_untied", {"target_modules": ["q_proj", "embed_tokens"]}, {}, "embed_tokens."),
    ],
)
def test_what_lanes_cannot_train_is_seen_without_weights(
    name: str, peft: dict[str, Any], trainer: dict[str, Any], words: str
) -> None:
    assert words in obstacle(small(model=tiny(name), peft=peft, **trainer))


@pytest.mark.slow
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
