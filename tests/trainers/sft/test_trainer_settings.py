"""The trainer section of a sweep: every error at once, before training; and the files in conf/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from peft import LoraConfig

from sweeps.config.validation import without_strategy
from trainers.sft.validation import notes, problems

CONF = Path(__file__).parents[3] / "conf"


def composed(*overrides: str) -> dict[str, Any]:
    """Config groups as Hydra reads them, without the project's primary config."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=list(overrides))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def shipped(*overrides: str) -> dict[str, Any]:
    """The trainer section of conf/, as a trial has it."""
    return without_strategy(composed("+trainer=sft", *overrides)["trainer"])


def found(
    trainer: Mapping[str, Any] | None = None,
    searched: Mapping[str, Sequence[Any]] | None = None,
    device: str = "cpu",
) -> str:
    return "\n".join(map(str, problems(trainer or {}, searched=searched or {}, device=device)))


def test_every_problem_is_found_at_once() -> None:
    message = found(
        {"learning_rate": "abc", "max_steps": 5, "optim": "adam", "lr_scheduler_type": "cosin"},
        {"trainer.weight_decay": [0.0, -1], "trainer.lerning_rate": [1, 2], "data.x": [1]},
    )
    assert message.count("\n") == 5
    for part in ("abc", "max_steps", "adamw_torch?", "cosine?", "= -1", "lerning_rate"):
        assert part in message


def test_searched_schedulers_and_optimizers_are_checked() -> None:
    message = found(
        searched={
            "trainer.lr_scheduler_type": ["linear", "warmup_stable_decay"],
            "trainer.optim": ["sgd", "lomo"],
        }
    )
    assert "warmup_stable_decay: needs num_decay_steps" in message
    assert "trainer.optim = lomo" in message


def test_scheduler_arguments_may_be_searched_with_the_scheduler() -> None:
    kinds = {"trainer.lr_scheduler_type": ["linear", "warmup_stable_decay"]}
    whole = [{"num_decay_steps": 0.1}, {}]
    assert found(searched=kinds | {"trainer.lr_scheduler_kwargs": whole}) == ""
    single = "trainer.lr_scheduler_kwargs.num_decay_steps"
    assert found(searched=kinds | {single: [0.1, 0.3]}) == ""
    assert "whole number of steps" in found(searched=kinds | {single: [0.1, -1]})


def test_what_changes_the_evaluated_tokens_may_be_set_but_not_searched() -> None:
    assert found({"completion_only_loss": False}) == ""
    message = found(searched={"trainer.completion_only_loss": [True, False]})
    assert "could not be compared" in message


def test_what_sftconfig_itself_refuses_is_told_before_training() -> None:
    assert "dataloader_num_workers > 0" in found({"dataloader_prefetch_factor": 2})


def test_a_gpu_number_format_on_a_cpu_is_refused() -> None:
    assert "trainer.tf32" in found({"tf32": True})
    assert found({"tf32": True}, device="cuda") == ""


def test_notes_cover_the_searched_values() -> None:
    searched = {"trainer.lr_scheduler_type": ["constant", "cosine"]}
    told = notes({"warmup_steps": 0.1}, searched=searched, device="cpu")
    assert len(told) == 1
    assert "constant has no warmup" in told[0]


def test_the_shipped_trainer_config_has_no_problems_and_no_notes() -> None:
    trainer = shipped()
    assert problems(trainer, searched={}, device="cpu") == []
    assert notes(trainer, searched={}, device="cpu", evaluations=8) == []


def test_the_override_that_a_message_suggests_works() -> None:
    searched = {"trainer.lr_scheduler_type": ["cosine", "warmup_stable_decay"]}
    message = found(shipped(), searched)
    suggested = message.split("'")[1]
    assert found(shipped(suggested), searched) == ""


@pytest.mark.parametrize("name", ["lora", "qlora", "full"])
def test_the_peft_configs_hold_loraconfigs_fields(name: str) -> None:
    made = composed(f"+peft={name}")
    peft = made["peft"]
    assert peft.pop("method") == name
    if name == "full":
        assert peft == {}
    else:
        assert LoraConfig(**peft).target_modules == "all-linear"
    assert made.get("model") == ({"quantization": "nf4"} if name == "qlora" else None)


@pytest.mark.parametrize("path", [*CONF.glob("trainer/*.yaml"), *CONF.glob("peft/*.yaml")])
def test_each_file_begins_with_a_command_that_uses_it(path: Path) -> None:
    head = path.read_text().splitlines()[:2]
    assert any(line.startswith("# python -m orchestrator ") for line in head)
