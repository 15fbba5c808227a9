"""Tests that need a GPU: left out, skipped with the reason, and the only ones that see one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.gpu_runs import VISIBLE, asks_for_gpus

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("expression", ["gpu", "gpu and not slow"])
def test_who_asks_for_them_sees_the_gpus(expression: str) -> None:
    assert asks_for_gpus(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "not gpu",
        "slow",
        "not faults and not cluster and not gpu",
        "gpu or slow",
        "slow and gpu",
    ],
)
def test_wherever_another_test_might_run_they_are_hidden(expression: str) -> None:
    assert not asks_for_gpus(expression)


@pytest.mark.slow
def test_this_process_and_its_children_see_none() -> None:
    look = f"import os, torch; print(repr(os.environ['{VISIBLE}']), torch.cuda.is_available())"
    child = [sys.executable, "-c", look]
    found = subprocess.run(child, capture_output=True, text=True, check=True).stdout
    assert found.split() == ["''", "False"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "gpu"], "sees none here, and CUDA_VISIBLE_DEVICES is ''"),
        pytest.param(
            [], "needs a GPU, and runs with `make test-gpu` (pytest -m gpu)", marks=pytest.mark.long
        ),
    ],
)
def test_without_a_gpu_all_are_skipped_and_say_why(words: list[str], said: str) -> None:
    run = [sys.executable, "-m", "pytest", "tests/gpu", "-rs", "-p", "no:cacheprovider", *words]
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(run, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert said in done.stdout
    assert "passed" not in done.stdout
    assert "failed" not in done.stdout


def test_the_makefile_leaves_them_out_and_runs_them_by_themselves() -> None:
    def recipe(target: str) -> str:
        run = ["make", "--no-print-directory", "--dry-run", "--always-make", target]
        return subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True).stdout

    for target in ("check", "test-fast"):
        assert "and not gpu" in recipe(target)
    (line,) = recipe("test-gpu").splitlines()  # nothing is set up for it
    assert "-m pytest tests/gpu" in line
    assert "-m gpu" in line
