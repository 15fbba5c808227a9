"""Which engine a sweep gets, how many trials share a device, and what is said of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support import fake_liger
from support.config_reading import read
from support.tiny_archs import tiny

from orchestrator.config.engine_choice import choose, engine_problems
from orchestrator.coordinator.assignment import AssignmentRules, assignment_rules
from orchestrator.workers.packed import lanes_that_fit


@pytest.mark.parametrize(
    ("words", "lanes", "why"),
    [
        ([], 16, "packed, up to 16 trials share a device"),
        (["engine.lanes=3"], 3, "packed, up to 3 trials"),
        (["engine.lanes=1"], 1, "solo, one trial on each device (engine.lanes=1)"),
        (["engine=solo"], 1, "solo, one trial on each device"),
        (["peft=full"], 1, "peft.method=full: each trial trains the whole model"),
        (["peft.use_dora=true"], 1, "peft.use_dora=True"),
        (["engine.devices_per_trial=2"], 1, "each trial on 2 devices (ddp)"),
        (
            ["trainer.neftune_noise_alpha=null,5"],
            16,
            "alone where trainer.neftune_noise_alpha=5: its noise is drawn for a whole batch",
        ),
    ],
)
def test_auto_packs_what_can_share_and_says_why_not(words: list[str], lanes: int, why: str) -> None:
    choice = choose(*read(*words), on_gpu=False)
    assert choice.lanes == lanes
    assert why in choice.why


def test_packed_is_refused_where_trials_cannot_share() -> None:
    (problem,) = engine_problems(*read("engine=packed", "peft=full"), "cpu")
    assert problem.key == "engine.kind"
    assert "engine=auto" in str(problem)
    assert engine_problems(*read("engine=packed"), "cpu") == []


def spread(*words: str, workers: int = 2, lanes: int = 8) -> AssignmentRules:
    return assignment_rules(*read(*words), workers=workers, lanes=lanes)


def test_a_grid_is_dealt_in_turn_so_that_two_runs_agree() -> None:
    assert spread() == AssignmentRules(workers=2, planned=8, in_turn=True, lanes=8)
    assert spread("sweep.repeats=3").planned == 24


def test_a_search_that_learns_gets_its_results_in_rounds() -> None:
    found = spread("sweep=joint")  # 24 trials
    assert not found.in_turn
    assert found.at_once == 6
    assert spread("sweep=joint", "sweep.max_concurrent=1").at_once == 1
    assert spread("sweep=joint", workers=16).at_once == 16  # but no device is idle


def test_memory_bounds_the_lanes_that_nobody_asked_for() -> None:
    auto, asked = (
        assignment_rules(*read(*words), workers=2, lanes=16, memory_mb=100.0)
        for words in ([], ["engine.lanes=16"])
    )
    assert (auto.memory_mb, asked.memory_mb) == (100.0, math.inf)


def test_what_is_pruned_is_not_dealt_ahead() -> None:
    assert not spread("sweep.pruner=median").in_turn


def test_one_lane_has_no_turns() -> None:
    more: dict[str, Any] = {"lanes": 1}
    assert not spread(**more).in_turn


def test_lanes_grow_by_what_those_that_train_take() -> None:
    assert lanes_that_fit(1000, 1100, 1, 10_000) == 2  # at most twice as many
    assert lanes_that_fit(1000, 1800, 8, 10_000) == 16
    assert lanes_that_fit(1000, 2600, 16, 3_000) == 20  # 100 MB each
    assert lanes_that_fit(1000, 9000, 1, 3_000) == 1  # never none


def test_all_that_keeps_trials_from_sharing_a_device_is_named() -> None:
    words = ["sweep=base", "engine=packed", "peft.init_lora_weights=pissa"]
    spec, space = read(*words, "peft.modules_to_save=[lm_head]")
    said = [str(problem) for problem in engine_problems(spec, space, "cpu")]
    assert len(said) == 2
    assert "peft.init_lora_weights=pissa" in said[0]
    assert "peft.modules_to_save" in said[1]


@pytest.mark.parametrize(
    ("words", "device", "lacking", "said"),
    [
        (["engine=solo"], "cuda", (), "a trial that trains alone has torch's: engine=auto"),
        (["engine.devices_per_trial=2"], "cuda", (), "is for packs"),
        ([], "cpu", (), "needs a GPU, and trials train on CPUs here: set engine.kernels=torch"),
        (["engine=packed"], "cuda", ("triton",), "needs triton, not installed here: pip install"),
        ([], "cuda", ("liger_kernel", "triton"), "liger-kernel and triton, not installed here"),
    ],
)
def test_kernels_are_refused_in_words_before_a_device_is_taken(
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    device: str,
    lacking: tuple[str, ...],
    said: str,
) -> None:
    fake_liger.installed(monkeypatch)
    fake_liger.absent(monkeypatch, *lacking)
    (problem,) = engine_problems(*read(*words, "engine.kernels=liger"), device)
    assert problem.key == "engine.kernels"
    assert said in str(problem)
    assert "engine.kernels=torch" in str(problem)
    if lacking:
        assert "pip install 'sft-sweeps[gpu]'" in str(problem)


def test_the_plan_says_whose_kernels_the_base_has(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_liger.installed(monkeypatch)
    found = read("engine.kernels=liger")
    assert engine_problems(*found, "cuda") == []
    assert "liger-kernel's norms and gated layers" in choose(*found, on_gpu=True).why
    model = f"model.path={tiny('gpt_neox').path}"
    why = choose(*read("engine.kernels=liger", model), on_gpu=True).why
    assert "torch's kernels (liger-kernel has none for gpt_neox)" in why
    assert "kernel" not in choose(*read(), on_gpu=True).why
