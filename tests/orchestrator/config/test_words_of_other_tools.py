"""Searches and names in the words of other tools are answered with ours, which work when pasted."""

from __future__ import annotations

import shlex

import pytest

from orchestrator.cli import main
from orchestrator.config.command import Command
from sweeps.core.errors import ConfigError
from sweeps.space.space import Choice, Interval

RATE = "trainer.learning_rate"
SEARCH = ("sweep=base", "sweep.search=tpe", "sweep.trials=3")


def refused(*words: str) -> str:
    with pytest.raises(ConfigError) as error:
        Command.read((*SEARCH, *words)).check()
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "low", "high", "log"),
    [
        ("loguniform(1e-5, 1e-2)", 1e-5, 1e-2, True),
        ("tune.loguniform(1e-5, 1e-2)", 1e-5, 1e-2, True),
        ("log_uniform_values(1e-5, 1e-2)", 1e-5, 1e-2, True),
        ("log_uniform_values(min=1e-5, max=1e-2)", 1e-5, 1e-2, True),
        ("uniform(0.1,0.2)", 0.1, 0.2, False),
        ("{distribution: log_uniform_values, min: 1e-5, max: 1e-2}", 1e-5, 1e-2, True),
        ("{min: 0.1, max: 0.2}", 0.1, 0.2, False),
    ],
)
def test_a_range_of_another_tool_is_answered(text: str, low: float, high: float, log: bool) -> None:
    said = refused(f"{RATE}={text}")
    word = next(
        each for each in shlex.split(said) if each.startswith(f"{RATE}=") and "interval" in each
    )
    (dimension,) = Command.read((*SEARCH, word)).check()[1].dimensions
    assert dimension == Interval(name=RATE, low=low, high=high, log=log)


@pytest.mark.parametrize(
    "text",
    [
        "[1e-4,1e-3]",
        "grid_search([1e-4, 1e-3])",
        "tune.choice([1e-4, 1e-3])",
        "{values: [1e-4, 1e-3]}",
        "choice([1e-4,1e-3])",
    ],
)
def test_a_list_in_brackets_is_answered(text: str) -> None:
    said = refused(f"{RATE}={text}")
    words = [each for each in shlex.split(said) if each.startswith(f"{RATE}=")]
    (dimension,) = Command.read((*SEARCH, words[-1])).check()[1].dimensions
    assert dimension == Choice(name=RATE, options=(1e-4, 1e-3))


@pytest.mark.parametrize(
    "text", ["choice(null, 8)", "tune.choice([None, 8])", "{values: [null, 8]}"]
)
def test_a_null_that_hydras_choice_refuses_is_written_without_it(text: str) -> None:
    """`null` among values is a comma list."""
    said = refused(f"trainer.pad_to_multiple_of={text}")
    words = [each for each in shlex.split(said) if each.startswith("trainer.pad_to")]
    (dimension,) = Command.read((*SEARCH, words[-1])).check()[1].dimensions
    assert dimension == Choice(name="trainer.pad_to_multiple_of", options=(None, 8))


def test_a_list_whose_parts_do_not_fit_is_not_said_to_be_searched() -> None:
    assert "To search" not in refused(f"{RATE}=[a,b]")


def test_a_space_of_a_file_is_answered_too() -> None:
    said = refused(f"sweep.space.{RATE}=loguniform(1e-5, 1e-2)")
    assert "is written tag(log, interval(1e-5, 1e-2)) here" in said


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("num_train_epochs=3", "Did you mean sweep.budget.epochs?"),
        ("trainer.num_train_epochs=1,2,3", "belongs to sweep.budget.epochs"),
        ("max_seq_length=512", "Did you mean data.max_length?"),
        ("data.max_seq_length=512", "Did you mean data.max_length?"),
        ("trainer.max_seq_length=512", "belongs to data.max_length"),
        ("sweep.n_trials=9", "Did you mean sweep.trials?"),
        ("sweep.grace_period=9", "Did you mean sweep.pruner_options.min_resource?"),
        ("sweep.epochs=3", "Did you mean sweep.budget.epochs?"),
        ("training.learning_rate=1e-4", "Did you mean trainer?"),
        ("lora.r=8", "Did you mean peft?"),
        ("data=~/x.jsonl", "Write data=file 'data.path=\"~/x.jsonl\"'"),
        ("tracking=online", "tracking=wandb is online"),
        ("data=openai.jsonl", "Write data=file data.path=openai.jsonl"),
        ("data='my file.jsonl'", "Write data=file 'data.path=\"my file.jsonl\"'"),
        ("data=OWNER/NAME", "Write data=hub data.path="),
        ("model=Qwen/Qwen3-0.6B", "Write model=hub model.path="),
        ("model=./mine", "Write model=hub model.path=./mine"),
        ("output_dir=x", "Did you mean run_dir?"),
        ("model.model_name_or_path=x", "Did you mean model.path?"),
        ("learning_rate=1e-4", "Did you mean trainer.learning_rate?"),
        ("peft.rank=8", "Did you mean r?"),
        ("peft.alpha=8", "Did you mean lora_alpha?"),
        ("peft.lora_rank=8", "Did you mean r?"),
        ("sweep.method=bayes", "Did you mean sweep.search?"),
        ("sweep.parameters={lr: 1}", "Did you mean sweep.space?"),
        ("sweep.early_terminate=hyperband", "Did you mean sweep.pruner?"),
        ("sweep.goal=minimize", "Did you mean sweep.direction?"),
        ("sweep.mode=min", "Did you mean sweep.direction?"),
        ("sweep.metric=eval/loss", "Did you mean eval_loss?"),
        ("sweep.run_cap=10", "Did you mean sweep.trials?"),
        ("sweep.timeout=60", "Did you mean sweep.time_budget_s?"),
        ("sweep.search=TPESampler", "Did you mean tpe?"),
        ("sweep.search=random_search", "Did you mean random?"),
        ("sweep.pruner=ASHAScheduler", "Did you mean asha?"),
        ("sweep.pruner=MedianPruner", "Did you mean median?"),
        ("trainer.max_epochs=3", "Did you mean sweep.budget.epochs?"),
        (
            "trainer.accumulate_grad_batches=4",
            "Did you mean trainer.gradient_accumulation_steps?",
        ),
        ("trainer.gradient_clip_val=1", "Did you mean trainer.max_grad_norm?"),
        ("trainer.precision=bf16-mixed", "Did you mean model.dtype?"),
        ("trainer.devices=2", "Did you mean engine.gpus_per_trial?"),
        ("micro_batch_size=4", "Did you mean trainer.per_device_train_batch_size?"),
        ("sequence_len=512", "Did you mean data.max_length?"),
        ("val_set_size=0.1", "Did you mean data.eval_fraction?"),
        ("max_samples=9", "Did you mean data.limit?"),
        ("adapter=lora", "Did you mean peft?"),
        ("load_in_4bit=true", "Did you mean model.quantization?"),
        ("model.torch_dtype=bfloat16", "Did you mean model.dtype?"),
        ("model.dtype=torch.bfloat16", "Did you mean bfloat16?"),
        ("wandb_project=x", "Did you mean tracking.project?"),
        ("tracking.run_name=x", "Did you mean name?"),
        ("tracking=none", "Write tracking=off"),
        ("peft=none", "Write peft=full"),
        ("engine=fsdp", "Write engine.devices_per_trial=2 trainer.strategy=fsdp"),
        ("cluster=slurm", "Write cluster=ray cluster.address=auto"),
    ],
)
def test_a_name_of_another_tool_is_answered(word: str, ours: str) -> None:
    assert ours in refused(word)


def test_without_a_word_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "python -m orchestrator sweep=lr_grid" in capsys.readouterr().out
