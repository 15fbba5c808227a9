"""Schedules and intervals of a whole space: what cannot train is refused before the start."""

from __future__ import annotations

import dataclasses

import pytest
from support.config_reading import read
from trl.trainer.sft_config import SFTConfig

from orchestrator.config.checks import training_problems
from orchestrator.config.command import Command
from orchestrator.config.prepare import schedule_problems
from sweeps.space.parser import WHOLE_KEYS
from sweeps.space.space import Interval
from trainers.sft.fields import name_problem, value_problem

# Whole numbers that nobody would search, or that may be ratios too.
_COUNTED = {"trainer.warmup_steps", "trainer.logging_steps"}
WSD = (
    "trainer.lr_scheduler_type=warmup_stable_decay",
    "trainer.lr_scheduler_kwargs={num_decay_steps: 50}",
    "trainer.warmup_steps=10",
)
BATCH = "trainer.per_device_train_batch_size=8"


def said(*words: str, examples: int) -> list[str]:
    spec, space = read("sweep=base", BATCH, *words)
    return [str(problem) for problem in schedule_problems(spec, space, examples)]


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    (problem,) = said("trainer.warmup_steps=500", examples=400)
    assert "warms up for 500 steps and the trial has 50" in problem
    assert "below 0.1 of trainer.learning_rate" in problem
    assert said("trainer.warmup_steps=50", examples=400) == []
    assert (
        said("trainer.warmup_steps=500", "trainer.lr_scheduler_type=constant", examples=400) == []
    )


@pytest.mark.parametrize("engine", ["packed", "solo"])
def test_a_decay_must_fit_each_searched_accumulation(engine: str) -> None:
    words = (*WSD, f"engine={engine}")
    assert said(*words, "trainer.gradient_accumulation_steps=1", examples=800) == []
    (problem,) = said(*words, "trainer.gradient_accumulation_steps=1,8", examples=800)
    assert "the trial's 13 steps" in problem
    assert "trainer.gradient_accumulation_steps=8" in problem


def test_the_ends_of_an_interval_are_tried() -> None:
    word = "trainer.warmup_steps=tag(int, interval(1, 90))"
    (problem,) = said(word, "sweep.search=tpe", "sweep.trials=3", examples=400)
    assert "trainer.warmup_steps=90" in problem


def test_values_that_are_linked_are_tried_together_only() -> None:
    rows = "[{trainer.warmup_steps: 40, trainer.gradient_accumulation_steps: 1},"
    rows += "{trainer.warmup_steps: 5, trainer.gradient_accumulation_steps: 8}]"
    assert said(f"sweep.space.both={rows}", examples=400) == []


def test_a_condition_keeps_what_it_excludes_from_being_tried() -> None:
    words = ["trainer.gradient_accumulation_steps=1,8", "trainer.warmup_steps=5,40"]
    words.append("sweep.when.trainer.warmup_steps=trainer.gradient_accumulation_steps=1")
    assert said(*words, examples=400) == []


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("peft.r=tag(log, interval(4, 64))", "peft.r"),
        (
            "trainer.gradient_accumulation_steps=interval(1, 8)",
            "trainer.gradient_accumulation_steps",
        ),
        (
            "trainer.per_device_train_batch_size=interval(1, 8)",
            "trainer.per_device_train_batch_size",
        ),
    ],
)
def test_an_interval_of_a_whole_number_key_has_whole_numbers(word: str, key: str) -> None:
    words = ["sweep=base", "sweep.search=tpe", "sweep.trials=3", word]
    command = Command.read(words)
    assert not command.problems
    (dimension,) = command.space.dimensions
    assert isinstance(dimension, Interval)
    assert (dimension.name, dimension.integer) == (key, True)
    assert isinstance(dimension.low, int)
    assert training_problems(command.config, command.space, "cpu") == []


def test_a_fraction_at_an_end_is_refused_for_it() -> None:
    words = ["sweep=base", "sweep.search=tpe", "sweep.trials=3", "peft.r=interval(4, 6.5)"]
    assert "an int interval needs whole bounds" in str(Command.read(words).problems[0])


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("trainer.warmup_steps=interval(0, 100)", 1),
        ("trainer.warmup_steps=interval(0, 0.2)", 0),
        ("trainer.warmup_steps=tag(int, interval(0, 100))", 0),
        ("trainer.weight_decay=interval(0, 1)", 0),
        ("trainer.logging_steps=interval(1, 10)", 1),
        ("peft.lora_alpha=interval(8, 64)", 0),
    ],
)
def test_an_interval_whose_fractions_do_not_fit_names_the_tag(word: str, count: int) -> None:
    command = Command.read(["sweep=base", "sweep.search=tpe", "sweep.trials=3", word])
    found = training_problems(command.config, command.space, "cpu")
    assert len(found) == count
    assert all("tag(int, interval(" in str(problem) for problem in found)


def test_every_key_that_takes_whole_numbers_only_is_known() -> None:
    names = [field.name for field in dataclasses.fields(SFTConfig)]
    whole = {
        f"trainer.{name}"
        for name in names
        if name_problem(name) is None
        if not value_problem(name, 2) and not value_problem(name, 3) and value_problem(name, 2.5)
    }
    ranks = {f"peft.{name}" for name in ("r", "qalora_group_size")}
    assert whole - _COUNTED <= WHOLE_KEYS
    assert whole | ranks >= WHOLE_KEYS
