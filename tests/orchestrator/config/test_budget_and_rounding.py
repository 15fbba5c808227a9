"""What is allowed and may surprise: a budget below one step, updates that round away, lengths."""

from __future__ import annotations

import pytest
from support.config_reading import read

from orchestrator.config.command import Command
from orchestrator.config.prepare import schedule_problems, step_notes
from sweeps.core.errors import SweepError
from trainers.sft.validation import rounding_notes

FULL = ("peft=full", "model.dtype=bfloat16")


def notes(*words: str, examples: int) -> list[str]:
    return step_notes(*read("sweep=base", *words), examples)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["packed", "solo"])
def test_a_budget_below_one_step_is_said_for_every_combination(engine: str) -> None:
    words = [f"engine={engine}", "trainer.per_device_train_batch_size=2,8"]
    words += ["trainer.gradient_accumulation_steps=1,4", "trainer.warmup_steps=0"]
    assert notes(*words, examples=32) == []
    (note,) = notes(*words, examples=31)
    assert "31 examples, less than one optimizer step of 32 (the trial with " in note
    assert "trainer.per_device_train_batch_size=8 trainer.gradient_accumulation_steps=4)" in note
    (note,) = notes(*words, examples=4)
    assert "less than one optimizer step of 8" in note  # the first to which it happens
    spec, space = read("sweep=base", *words)
    assert schedule_problems(spec, space, 4) == []


def test_a_warm_up_that_takes_the_only_step_is_refused() -> None:
    (problem,) = schedule_problems(*read("sweep=base"), 4)
    assert "keeps the rate at 0 for its only step: raise sweep.budget" in str(problem)


def test_a_budget_below_one_step_without_a_search() -> None:
    (note,) = notes("trainer.gradient_accumulation_steps=4", examples=20)
    assert note.endswith("less than one optimizer step of 32: it takes one step of 20")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*FULL, "trainer.learning_rate=1e-6"), "at trainer.learning_rate=1e-06 those of weights"),
        ((*FULL, "trainer.learning_rate=1e-3,1e-5"), "=1e-05 those of weights above 0.0026 are"),
        ((*FULL, "trainer.learning_rate=1e-3"), ""),
        (("peft=full", "trainer.learning_rate=1e-6"), ""),
        (("model.dtype=bfloat16", "trainer.learning_rate=1e-6"), ""),
        (("peft=full", "model.dtype=float32,bfloat16", "trainer.learning_rate=1e-6"), "1/256"),
    ],
)
def test_steps_that_bfloat16_weights_round_away_are_said(words: tuple[str, ...], says: str) -> None:
    spec, space = read("sweep=base", *words)
    found = rounding_notes(spec.train, space.values_by_key())
    assert bool(found) == bool(says)
    assert says in "".join(found)


def test_a_default_length_is_lowered_to_what_the_model_reads() -> None:
    command = Command.read(["sweep=base", "data=file", "data.path=train.jsonl"])
    spec, space = command.check()
    assert spec.train.data.max_length == spec.base["data"]["max_length"] == 512
    assert spec.public["data"]["max_length"] == 512
    assert space.notes == (
        "data.max_length=512, all that tiny reads; data=file has 1,024 as its default",
    )


def test_a_length_that_was_typed_is_not_lowered() -> None:
    words = ["sweep=base", "data=file", "data.path=train.jsonl"]
    spec, space = Command.read([*words, "data.max_length=1024"]).check()
    assert (spec.train.data.max_length, space.notes) == (1024, ())
    spec, space = Command.read([*words, "data.max_length=100"]).check()
    assert (spec.train.data.max_length, space.notes) == (100, ())


def test_a_model_that_cannot_be_read_is_told_of_later() -> None:
    words = ["sweep=base", "data=file", "data.path=train.jsonl", "model.path=/no/such/folder"]
    try:
        spec, _ = Command.read(words).check()
    except SweepError as error:
        raise AssertionError("the data's part says it, with the rest") from error
    assert spec.train.data.max_length == 1024
