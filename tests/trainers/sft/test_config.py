"""The SFTConfig of a trial, and what the Trainer makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    training_args,
)
from trl import SFTConfig, SFTTrainer

from sweeps.config.spec import BudgetSpec, DataSpec, ModelSpec, TrainSpec
from sweeps.core.errors import ConfigError
from trainers.sft.config import CHECKPOINTING, schedule_problems, sft_config
from trainers.sft.lr_schedule import names


def spec(**trainer: Any) -> TrainSpec:
    return TrainSpec(
        model=ModelSpec(path="tiny"),
        data=DataSpec(source="docstrings", max_length=77),
        peft={"method": "lora"},
        trainer=trainer,
        seed=11,
        budget=BudgetSpec(examples=100),
        evaluations=4,
    )


def config(
    tmp_path: Path,
    *,
    examples: int = 100,
    autocast: str | None = None,
    device: str = "cpu",
    **trainer: Any,
) -> SFTConfig:
    return sft_config(
        spec(**trainer),
        output_dir=tmp_path,
        examples=examples,
        autocast=autocast,
        device=device,
    )


def test_the_users_fields_pass_through(tmp_path: Path) -> None:
    given = {
        "learning_rate": 3e-4,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "weight_decay": 0.01,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "neftune_noise_alpha": 5.0,
        "lr_scheduler_type": "polynomial",
        "lr_scheduler_kwargs": {"power": 2.0},
        "logging_first_step": False,
    }
    made = config(tmp_path, **given)
    assert {name: getattr(made, name) for name in given} == given
    assert (made.seed, made.data_seed, made.max_length) == (11, 11, 77)
    assert made.output_dir == str(tmp_path)


def test_the_stream_is_read_once_in_order_and_nothing_runs_by_itself(tmp_path: Path) -> None:
    made = config(tmp_path)
    assert made.num_train_epochs == 1
    assert made.max_steps == -1
    assert made.train_sampling_strategy == "sequential"
    assert made.dataset_kwargs == {"skip_prepare_dataset": True}
    assert (made.eval_strategy, made.save_strategy, made.report_to) == ("no", "no", [])
    assert made.logging_nan_inf_filter is False


@pytest.mark.parametrize("name", ["gradient_checkpointing", CHECKPOINTING])
def test_checkpointing_is_off_unless_asked_for_by_either_name(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert config(tmp_path).gradient_checkpointing is False
        assert config(tmp_path, **{name: True}).gradient_checkpointing is True
        both = config(tmp_path, **{"gradient_checkpointing": False, CHECKPOINTING: True})
    assert both.gradient_checkpointing is True


def test_nothing_is_cast_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = config(tmp_path)
    assert (made.bf16, made.fp16, made.use_cpu) == (False, False, True)
    assert made.mixed_precision == "no"


@pytest.mark.parametrize(
    ("autocast", "bf16", "fp16"),
    [(None, False, False), ("bfloat16", True, False), ("float16", False, True)],
)
def test_on_a_gpu_autocast_is_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autocast: str | None, bf16: bool, fp16: bool
) -> None:
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    made = config(tmp_path, autocast=autocast, device="cuda")
    assert (made.bf16, made.fp16, made.use_cpu) == (bf16, fp16, False)


def test_a_cpu_computes_in_bfloat16_if_told_to(tmp_path: Path) -> None:
    made = config(tmp_path, autocast="bfloat16", bf16=True)
    assert (made.bf16, made.use_cpu, made.mixed_precision) == (True, True, "bf16")


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_a_trial_takes_one_gpu_of_those_that_its_process_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    """A driver sees all of them, and SFTTrainer refuses more than one for a single process."""
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    made = config(tmp_path, autocast="bfloat16", device="cuda", per_device_train_batch_size=3)
    assert (made.device.type, made.n_gpu, made.train_batch_size) == ("cuda", 1, 3)


def test_on_a_cpu_a_config_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    made = config(tmp_path, device="cpu")
    assert (made.device.type, made.n_gpu) == ("cpu", 0)


def test_ratios_of_the_schedule_follow_each_trials_steps(tmp_path: Path) -> None:
    schedule = {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 0.2},
        "per_device_train_batch_size": 5,
    }
    for accumulation, decay in ((1, 4), (2, 2), (4, 1)):
        made = config(tmp_path, gradient_accumulation_steps=accumulation, **schedule)
        assert made.lr_scheduler_kwargs == {"num_decay_steps": decay}
    linear = config(tmp_path, **schedule | {"lr_scheduler_type": "linear"})
    assert linear.lr_scheduler_kwargs == {}


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        ({"max_steps": 3}, "sweep.budget.examples"),
        ({"learning_rate": 0}, "above 0"),
        ({"lr_scheduler_type": "cosin"}, "Did you mean cosine"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr_rate: 0.1"),
        ({"per_device_train_batch_size": 100, "warmup_steps": 0.1}, "warmup_steps=0"),
    ],
)
def test_a_trial_that_cannot_run_is_refused(
    tmp_path: Path, trainer: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        config(tmp_path, **trainer)


def test_schedule_problems_need_no_sftconfig() -> None:
    assert schedule_problems({"warmup_steps": 0.1}, steps=10) == []
    assert len(schedule_problems({"warmup_steps": 0.1}, steps=1)) == 1


@pytest.mark.parametrize("name", names())
def test_sftconfig_can_be_built_for_every_scheduler(tmp_path: Path, name: str) -> None:
    kwargs = {"num_decay_steps": 0.2, "min_lr": 1e-5}
    made = config(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs, warmup_steps=0.1)
    assert made.lr_scheduler_type == name
    assert made.get_warmup_steps(20) == 2


class Asks(TrainerCallback):
    """Asks for an evaluation after every second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = state.global_step % 2 == 0


def toy_trainer(made: SFTConfig, eval_loss: Callable[[], float]) -> SFTTrainer:
    """SFTTrainer on a Llama of a few weights; its evaluation returns `eval_loss()`."""

    class Evaluated(SFTTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = {"eval_loss": eval_loss()}
            # This is what takes the callback's wish back; without it the epoch's end asks again.
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
            return metrics

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}, "a"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4, num_hidden_layers=1, **shape))
    rows = Dataset.from_list([{"input_ids": [2, 3, 2, 1], "labels": [2, 3, 2, 1]}] * 8)
    return Evaluated(
        model=model,
        args=made,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Asks()],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_scheduler_that_watches_the_loss_acts_on_the_callbacks_evaluations(
    tmp_path: Path, name: str
) -> None:
    made = config(
        tmp_path,
        examples=8,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        lr_scheduler_type=name,
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5},
    )
    seen: list[float] = []

    def plateau() -> float:
        seen.append(trainer.optimizer.param_groups[0]["lr"])
        return 1.0

    trainer = toy_trainer(made, plateau)
    result = trainer.train()
    assert result.global_step == spec(per_device_train_batch_size=1).steps(8) == 8
    assert len(seen) == 4  # at steps 2, 4, 6, 8 and at no other
    # The first loss sets the plateau (greedy takes it for a gain), the next ones lower the rate.
    first = 2.0 if name == "greedy" else 1.0
    assert seen == pytest.approx([1e-2, first * 1e-2, first * 5e-3, first * 2.5e-3])
