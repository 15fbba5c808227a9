"""Names of trials: what varies, and nothing else."""

from __future__ import annotations

import pytest

from sweeps.core.naming import MAX_LENGTH, short_value, trial_name


@pytest.mark.parametrize(
    ("value", "short"),
    [
        (1e-4, "1e-4"),
        (0.0003, "3e-4"),
        (0.00012345, "1.23e-4"),
        (1e-05, "1e-5"),
        (9.999e-5, "1e-4"),
        (0.1, "0.1"),
        (0.05, "0.05"),
        (1 / 3, "0.333"),
        (0.0, "0"),
        (1.0, "1"),
        (12345.6, "12346"),
        (2.5e6, "2.5e6"),
        (-1e-3, "-1e-3"),
        (float("inf"), "inf"),
        (1_000_000, "1000000"),
        (True, "true"),
        (None, "none"),
        (["q_proj", "v_proj"], "q_proj+v_proj"),
        ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B"),
        ("/home/someone/models/mine/", "mine"),
        ({"num_cycles": 2}, "num_cycles:2"),
    ],
)
def test_short_values(value: object, short: str) -> None:
    assert short_value(value) == short


def test_the_usual_keys_are_shortened_and_plain_words_need_no_label() -> None:
    values = {
        "trainer.learning_rate": 1e-4,
        "trainer.lr_scheduler_type": "cosine",
        "trainer.gradient_accumulation_steps": 4,
        "trainer.per_device_train_batch_size": 8,
        "trainer.optim": "adamw_torch",
        "peft.lora_alpha": 16,
        "peft.use_rslora": True,
        "data.packing": "no",
    }
    assert trial_name(values) == (
        "lr=1e-4 cosine accum=4 batch=8 adamw_torch alpha=16 use_rslora=true packing=no"
    )


def test_keys_that_would_look_alike_keep_their_full_names() -> None:
    values = {"trainer.warmup_steps": 10, "trainer.warmup_ratio": 0.1}
    assert trial_name(values) == "trainer.warmup_steps=10 trainer.warmup_ratio=0.1"
    both = {"model.path": "a/b", "data.path": "c/b"}
    assert trial_name(both) == "model.path=b data.path=b"


def test_a_secret_is_not_named() -> None:
    assert trial_name({"trainer.hub_token": "hf_abcdefgh", "peft.r": 8}) == "hub_token=*** r=8"


def test_no_values_and_very_many() -> None:
    assert trial_name({}) == "base config"
    long = trial_name({f"trainer.some_rather_long_key_{n}": n for n in range(30)})
    assert len(long) == MAX_LENGTH
    assert long.endswith("…")
