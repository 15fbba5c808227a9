"""Pruners whose options would let every trial run to its end, and the words of other tools."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.config.spec import PrunerName, SearchSpec
from sweeps.search.samplers import search_problems
from sweeps.space.space import Space


def said(pruner: PrunerName, evaluations: int = 8, **options: Any) -> list[str]:
    spec = SearchSpec(
        search="random", trials=4, pruner=pruner, pruner_options=options, evaluations=evaluations
    )
    return [str(problem) for problem in search_problems(spec, Space(()))]


@pytest.mark.parametrize(
    ("pruner", "options"),
    [
        ("asha", {"min_resource": 100}),
        ("asha", {"min_resource": 8}),
        ("asha", {"min_resource": 2, "min_early_stopping_rate": 3}),
        ("hyperband", {"min_resource": 9}),
        ("median", {"n_warmup_steps": 50}),
        ("percentile", {"n_warmup_steps": 8}),
    ],
)
def test_a_pruner_that_can_never_prune_is_refused(
    pruner: PrunerName, options: dict[str, Any]
) -> None:
    (problem,) = said(pruner, **options)
    assert "no trial would ever be stopped" in problem
    assert "the number of the evaluation, 1 to 8" in problem


@pytest.mark.parametrize(
    ("pruner", "options"),
    [
        ("asha", {}),
        ("asha", {"min_resource": 7}),
        ("asha", {"min_resource": "auto"}),
        ("hyperband", {"min_resource": 1}),
        ("median", {"n_warmup_steps": 7}),
        ("median", {"n_startup_trials": 2}),
        ("patient", {"patience": 2}),
    ],
)
def test_a_pruner_that_can_prune_is_taken(pruner: PrunerName, options: dict[str, Any]) -> None:
    assert said(pruner, **options) == []


@pytest.mark.parametrize(
    ("pruner", "word", "ours"),
    [
        ("asha", "grace_period", "min_resource"),
        ("hyperband", "max_t", "max_resource"),
        ("asha", "eta", "reduction_factor"),
        ("median", "grace_period", "n_warmup_steps"),
    ],
)
def test_a_word_of_another_tool_is_answered_with_ours(
    pruner: PrunerName, word: str, ours: str
) -> None:
    first = said(pruner, **{word: 3})[0]
    assert first.endswith(f"Did you mean sweep.pruner_options.{ours}?")
