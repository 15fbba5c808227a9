"""A key that no trial reads: refused if typed; if a file searches it, it leaves the space."""

from __future__ import annotations

import pytest

from orchestrator.config.command import Command
from orchestrator.config.decisions import Decisions

KWARGS = "trainer.lr_scheduler_kwargs"


def refused(*words: str) -> list[str]:
    return [str(problem) for problem in Command.read(["sweep=base", *words]).problems]


@pytest.mark.parametrize(
    ("words", "key", "why"),
    [
        (
            [f"{KWARGS}={{num_decay_steps: 0.2}}"],
            f"{KWARGS}.num_decay_steps",
            "type=cosine does not",
        ),
        (
            [f"{KWARGS}.min_lr=1e-6"],
            f"{KWARGS}.min_lr",
            "trainer.lr_scheduler_type=cosine does not",
        ),
        ([f"{KWARGS}.min_lr=1e-6,1e-5"], f"{KWARGS}.min_lr", "does not take it"),
        (
            ["trainer.optim=sgd", "trainer.adam_beta1=0.8"],
            "trainer.adam_beta1",
            "trainer.optim=sgd",
        ),
        (
            ["trainer.optim=sgd", "trainer.adam_beta2=0.8,0.9"],
            "trainer.adam_beta2",
            "does not read",
        ),
        (["trainer.optim_target_modules=[q_proj]"], "trainer.optim_target_modules", "adamw_torch"),
        (
            ["trainer.gradient_checkpointing_kwargs={use_reentrant: false}"],
            "trainer.gradient_checkpointing_kwargs",
            "trainer.gradient_checkpointing is not true",
        ),
        (
            ["trainer.lr_scheduler_type=constant", "trainer.warmup_steps=1,9"],
            "trainer.warmup_steps",
            "trainer.lr_scheduler_type=constant has no warmup",
        ),
        (["data.encoding=cp1252"], "data.encoding", "not read by data=docstrings"),
        (["data=hub", "data.path=A/B", "data.encoding=cp1252"], "data.encoding", "add data=file"),
        (["data=file", "data.path=a", "data.split=test"], "data.split", "or add data=hub"),
        (
            ["data=file", "data.path=a", "data.eval_path=b", "data.eval_fraction=0.2"],
            "data.eval_fraction",
            "since data.eval_path names them",
        ),
        (["peft=full", "peft.rank_pattern={q_proj: 4}"], "peft.rank_pattern", "no adapter"),
        (["cluster.address=auto"], "cluster.address", "add cluster=ray"),
    ],
)
def test_a_typed_key_that_no_trial_reads_is_refused(words: list[str], key: str, why: str) -> None:
    (problem,) = refused(*words)
    assert problem.startswith(f"{key}")
    assert why in problem


@pytest.mark.parametrize(
    "words",
    [
        [f"{KWARGS}={{num_cycles: 2}}"],
        [f"{KWARGS}.num_cycles=0.5,1"],
        [
            f"{KWARGS}={{num_decay_steps: 0.2}}",
            "trainer.lr_scheduler_type=cosine,warmup_stable_decay",
        ],
        ["trainer.adam_beta1=0.8", "trainer.optim=sgd,adamw_torch"],
        ["trainer.adam_epsilon=1e-6", "trainer.optim=adamw_torch_fused"],
        ["trainer.gradient_checkpointing=true", "trainer.gradient_checkpointing_kwargs={a: 1}"],
        ["trainer.lr_scheduler_type=constant", "trainer.warmup_steps=10"],  # a note tells of it
        ["trainer.optim_target_modules=null", "data.eval_fraction=0.2"],
        ["++trainer.adam_beta1=0.8", "trainer.optim=sgd"],
        ["++peft.r=4", "peft=full"],
    ],
)
def test_what_some_trial_reads_or_what_is_forced_is_taken(words: list[str]) -> None:
    assert refused(*words) == []


def test_what_is_forced_is_told() -> None:
    (note,) = Command.read(["sweep=base", "++data.path=x.jsonl"]).space.notes
    assert note.startswith("set by ++ all the same: data.path = ")
    assert "is not read by data=docstrings" in note


def test_what_a_file_searches_and_no_trial_reads_leaves_the_space() -> None:
    decided = Decisions(
        config={
            "trainer": {"optim": "sgd", "lr_scheduler_type": "cosine"},
            "peft": {"method": "lora"},
            "data": {},
            "sweep": {},
        },
        fixed=frozenset(["trainer.optim"]),
        forced=frozenset(),
        typed=frozenset(),
        space={
            "trainer.adam_beta2": "choice(0.95, 0.999)",
            f"{KWARGS}.min_lr": "choice(1e-6, 1e-5)",
            "trainer.learning_rate": "choice(1e-3, 1e-2)",
        },
        when={},
    )
    decided.settle()
    assert list(decided.space) == ["trainer.learning_rate"]
    assert decided.problems == []
    assert decided.notes == [
        "trainer.adam_beta2 is not searched: trainer.optim=sgd does not read it",
        f"{KWARGS}.min_lr is not searched: trainer.lr_scheduler_type=cosine does not take it",
    ]


def test_a_budget_that_is_typed_as_a_mapping_takes_the_place_of_the_files() -> None:
    command = Command.read(["sweep=base", "sweep.budget={epochs: 2}"])
    assert command.problems == []
    assert command.spec is not None
    assert command.spec.sweep.budget.examples is None
