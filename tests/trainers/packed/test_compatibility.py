"""Which trials can be lanes, why others cannot, and that a lane reads its settings as TRL does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.packs import small, small_base

from sweeps.config.spec import ModelSpec
from trainers.packed.compatibility import CHECKPOINTING, USED, obstacle, settings, shared


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft": {"method": "full"}}, "peft.method=full: each trial trains the whole model"),
        ({"peft": {"use_dora": True}}, "peft.use_dora=True: lanes are plain LoRA"),
        ({"peft": {"init_lora_weights": "pissa"}}, "peft.init_lora_weights=pissa: it changes the"),
        ({"peft": {"bias": "all"}}, "peft.bias=all: it trains biases of the base"),
        ({"peft": {"modules_to_save": ["norm"]}}, "peft.modules_to_save: it trains parts"),
        ({"neftune_noise_alpha": 5.0}, "trainer.neftune_noise_alpha=5.0: its noise is drawn for"),
        ({"label_smoothing_factor": 0.1}, "trainer.label_smoothing_factor=0.1: it needs the"),
        ({"loss_type": "dft"}, "trainer.loss_type=dft: lanes have the plain loss"),
        ({"torch_compile": True}, "trainer.torch_compile=True: a pack changes its shape"),
        ({"optim": "galore_adamw"}, "trainer.optim=galore_adamw: it was never tried"),
    ],
)
def test_why_a_trial_trains_alone(changes: dict[str, Any], reason: str) -> None:
    assert obstacle(small(**changes)).startswith(reason)


def test_what_can_be_a_lane() -> None:
    peft = {"lora_dropout": 0.1, "use_rslora": True, "bias": "none", "modules_to_save": None}
    assert obstacle(small(peft={**peft, "use_dora": False})) == ""
    assert obstacle(small(neftune_noise_alpha=None, lr_scheduler_type="greedy")) == ""


def test_dropout_and_experts_of_the_base(tmp_path: Any) -> None:
    from transformers import GPT2Config, MixtralConfig

    for config, words in (
        (GPT2Config(), "_pdrop=0.1"),
        (MixtralConfig(num_hidden_layers=1), "the loss of its routers"),
    ):
        config.save_pretrained(str(tmp_path))
        assert words in obstacle(small(model=ModelSpec(path=str(tmp_path), revision=words)))


def test_what_trials_of_one_engine_agree_in() -> None:
    first = shared(small())
    assert shared(small(optim="sgd", seed=9, peft={"r": 2}, learning_rate=1.0)) == first
    assert shared(small(gradient_checkpointing=True)) != first
    assert shared(small(**{CHECKPOINTING: True})) == shared(small(gradient_checkpointing=True))
    quantized = replace(small_base(), quantization="nf4")
    assert shared(small(model=quantized)) != first


def test_a_lane_has_sft_configs_defaults() -> None:
    from trl import SFTConfig

    bare = replace(small(), trainer={})
    theirs = SFTConfig(output_dir="unused", bf16=False, use_cpu=True, logging_first_step=True)
    chosen = settings(bare)
    for name in USED:
        other = getattr(theirs, name, None)
        if name == CHECKPOINTING:
            continue  # ours is off, see trainers.sft.config
        if name == "lr_scheduler_kwargs":
            other = other or None
        assert getattr(chosen, name) == getattr(other, "value", other), name


@pytest.mark.parametrize(("given", "multiple"), [("auto", None), ("8", 8), (8, 8), (None, None)])
def test_padding_is_read_as_sft_config_reads_it(given: Any, multiple: int | None) -> None:
    assert settings(small(pad_to_multiple_of=given)).pad_to_multiple_of == multiple
