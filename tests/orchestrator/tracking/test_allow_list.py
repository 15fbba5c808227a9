"""What may leave the machine, and under which names."""

from __future__ import annotations

import pytest
from support.tracked_sweep import PUBLIC

from orchestrator.tracking.allow_list import clean, sweep_config, trial_config
from orchestrator.tracking.chart_metrics import chart_values


def test_charts_keep_the_names_of_trainer_and_take_numbers_only() -> None:
    row = {"loss": 1.5, "grad_norm": 0.1, "tokens": 3, "eval_loss": 2.0, "note": "x", "done": True}
    assert chart_values(row) == {
        "train/loss": 1.5,
        "train/grad_norm": 0.1,
        "tokens": 3,
        "eval/loss": 2.0,
    }


def test_a_trials_config_is_the_base_with_its_values_and_nothing_unlisted() -> None:
    values = {
        "trainer.learning_rate": 3e-4,
        "trainer.per_device_train_batch_size": 2,
        "peft.r": 4,
    }
    assert trial_config(PUBLIC, values) == {
        "model": {"path": "tiny", "dtype": "auto"},
        "data": {"source": "file", "path": "train.jsonl", "max_length": 64},
        "peft": {"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {
            "learning_rate": 3e-4,
            "optim": "adamw_torch",
            "per_device_train_batch_size": 2,
        },
        "budget": {"examples": 64},
        "seed": 7,
    }
    assert PUBLIC["peft"]["r"] == 8  # the base stays as it was


def test_the_sweeps_config_says_what_was_searched() -> None:
    shown = sweep_config(PUBLIC)
    assert list(shown) == ["sweep"]  # no trial's settings
    assert shown["sweep"]["space"] == {"trainer.learning_rate": "choice(1e-4, 3e-4)"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/someone/models/tiny/", "tiny"),
        ("~/data.jsonl", "data.jsonl"),
        ("../shards/*.parquet", "*.parquet"),
        ("file:///srv/x.csv", "x.csv"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("https://me:pw@host/x?token=abc", "https://***@host/x?token=***"),
        (["/a/b", 1], ["b", 1]),
    ],
)
def test_local_folders_and_logins_are_taken_out(value: object, shown: object) -> None:
    assert clean("trainer.some_key", value) == shown
