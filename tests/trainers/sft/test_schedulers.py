"""Learning-rate schedulers: every one runs, what each needs is asked for, ratios become steps."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.optimization import get_scheduler

from trainers.sft.lr_schedule import REQUIRED, WATCHING, accepted, arguments, fault, names, warmup
from trainers.sft.schedulers import notes, problems

LEARNING_RATE = 2e-3  # above the floor of greedy
STEPS = 20

# What makes each scheduler run; the others run with nothing.
ENOUGH = {
    "warmup_stable_decay": {"num_decay_steps": 0.25},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
}


def rates(name: str, kwargs: dict[str, object], *, warmup_steps: float, steps: int) -> list[float]:
    """The rate at each optimizer step, as the Trainer would set it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LEARNING_RATE)
    own = arguments(name, kwargs, warmup_steps=warmup_steps, steps=steps)
    schedule = get_scheduler(name, optimizer, warmup(warmup_steps, steps), steps, own)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([1.0] if name in WATCHING else []))
    return seen


def check(
    *chosen: str, kwargs: dict[str, object] | None = None, rate: float = LEARNING_RATE
) -> str:
    found = problems(chosen, kwargs=[[kwargs or {}]], learning_rates=[rate], warmup_steps=[0.1])
    return "\n".join(map(str, found))


@pytest.mark.parametrize("name", names())
def test_every_scheduler_runs_over_a_whole_trial(name: str) -> None:
    kwargs = ENOUGH.get(name, {})
    assert check(name, kwargs=kwargs) == ""
    seen = rates(name, kwargs, warmup_steps=0.1, steps=STEPS)
    assert all(0 <= rate <= LEARNING_RATE * (1 + 1e-9) for rate in seen)
    assert max(seen) == pytest.approx(LEARNING_RATE)


@pytest.mark.parametrize("name", names())
def test_a_scheduler_runs_bare_or_says_what_it_needs(name: str) -> None:
    message = check(name)
    if name in REQUIRED:
        assert "add 'trainer.lr_scheduler_kwargs={" in message
    else:
        assert message == ""


def test_decay_ratio_is_a_share_of_each_trials_own_steps() -> None:
    short, long = (
        rates("warmup_stable_decay", {"num_decay_steps": 0.2}, warmup_steps=0, steps=steps)
        for steps in (10, 40)
    )
    assert [sum(rate < LEARNING_RATE for rate in each) for each in (short, long)] == [1, 7]
    # The decay begins at step 8 of 10 and 32 of 40; the first step of it still has the full rate.
    assert short[:9] == [LEARNING_RATE] * 9
    assert long[:33] == [LEARNING_RATE] * 33


def test_decay_steps_of_one_or_more_are_a_count() -> None:
    own = arguments("warmup_stable_decay", {"num_decay_steps": 3.0}, warmup_steps=0, steps=10)
    assert own == {"num_decay_steps": 3}


@pytest.mark.parametrize("steps", range(1, 12))
def test_ratios_that_are_rounded_up_still_fit(steps: int) -> None:
    own = arguments("warmup_stable_decay", {"num_decay_steps": 0.3}, warmup_steps=0.5, steps=steps)
    assert own["num_decay_steps"] + warmup(0.5, steps) <= steps


def test_each_searched_scheduler_takes_its_own_arguments() -> None:
    kwargs = {"num_decay_steps": 0.2, "min_lr_rate": 0.1, "num_cycles": 0.5}
    assert (
        check("linear", "cosine", "warmup_stable_decay", "cosine_with_min_lr", kwargs=kwargs) == ""
    )
    own = arguments("cosine", kwargs, warmup_steps=0, steps=10)
    assert own == {"num_cycles": 0.5}


def test_an_argument_that_no_chosen_scheduler_takes_is_refused() -> None:
    message = check("linear", "warmup_stable_decay", kwargs={"num_decay_step": 0.2})
    assert "trainer.lr_scheduler_kwargs.num_decay_step = 0.2" in message
    assert "Did you mean num_decay_steps?" in message
    assert "linear takes none" in message


def test_an_argument_left_over_from_a_sweeps_file_is_dropped() -> None:
    assert check("linear", kwargs={"num_decay_steps": 0.2}) == ""
    assert arguments("linear", {"num_decay_steps": 0.2}, warmup_steps=0, steps=10) == {}


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("warmup_stable_decay", {"num_decay_steps": 0.95}, "together they must not exceed 1"),
        ("warmup_stable_decay", {"num_decay_steps": -1}, "a whole number of steps"),
        ("warmup_stable_decay", {"num_decay_steps": 2.5}, "a whole number of steps"),
        ("warmup_stable_decay", {"num_decay_steps": math.nan}, "a whole number of steps"),
        ("warmup_stable_decay", {"num_decay_steps": 1, "decay_type": "x"}, "expected 'linear'"),
        ("cosine_with_min_lr", {"min_lr": 1.0}, "leaves the range from 0 to"),
        ("cosine_with_min_lr", {"min_lr": 0, "min_lr_rate": 0}, "Only one of min_lr"),
        ("polynomial", {"lr_end": 1.0}, "must be smaller than initial lr"),
        ("polynomial", {"power": -1}, "refuses these arguments"),
        ("cosine", {"num_cycles": "many"}, "refuses these arguments"),
        ("reduce_lr_on_plateau", {"factor": 2}, "Factor should be < 1.0"),
        ("reduce_lr_on_plateau", {"mode": "max"}, "mode must be min"),
    ],
)
def test_arguments_that_cannot_run_are_refused(
    name: str, kwargs: dict[str, object], reason: str
) -> None:
    assert reason in check(name, kwargs=kwargs)


def test_greedy_below_its_own_floor_is_refused() -> None:
    assert "min_lr of 0.001" in check("greedy", rate=2e-4)
    assert check("greedy", rate=2e-4, kwargs={"min_lr": 1e-7}) == ""


def test_the_lowest_searched_rate_counts() -> None:
    found = problems(
        ["cosine_with_min_lr"],
        kwargs=[[{"min_lr": 1e-4}]],
        learning_rates=[1e-5, 1e-2],
        warmup_steps=[0],
    )
    assert "trainer.learning_rate = 1e-05" in str(found[0])


def test_a_schedule_that_never_leaves_zero_is_refused() -> None:
    found = fault("linear", {}, learning_rate=LEARNING_RATE, warmup_steps=0.03, steps=1)
    assert found is not None
    assert "set trainer.warmup_steps=0" in found


def test_absolute_counts_that_outgrow_a_short_trial_are_found_with_its_steps() -> None:
    kwargs = {"num_decay_steps": 30}
    name = "warmup_stable_decay"
    assert check(name, kwargs=kwargs) == ""
    found = fault(name, kwargs, learning_rate=LEARNING_RATE, warmup_steps=5, steps=32)
    assert "must not exceed the trial's 32 steps" in str(found)


def test_unknown_names_come_with_all_names() -> None:
    message = check("cosin", "nothing_alike")
    assert "Did you mean cosine?" in message
    assert all(message.count(name) >= 2 for name in names())
    assert "Did you mean None" not in message


def test_notes_tell_what_is_ignored() -> None:
    def told(name: str, evaluations: int, **kwargs: object) -> str:
        found = notes([name], warmup_steps=[0.1], kwargs=[kwargs], evaluations=evaluations)
        return "\n".join(found)

    assert "no warmup" in told("constant", 8)
    assert told("constant_with_warmup", 8) == ""
    assert "the rate stays constant" in told("reduce_lr_on_plateau", 8)
    assert "stays constant" not in told("reduce_lr_on_plateau", 8, patience=6)
    assert "stays constant" in told("reduce_lr_on_plateau", 7, patience=6)


@pytest.mark.parametrize(("name", "acts_at"), [("reduce_lr_on_plateau", 4), ("greedy", 3)])
def test_the_note_on_patience_counts_evaluations_as_the_scheduler_does(
    name: str, acts_at: int
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LEARNING_RATE)
    schedule = get_scheduler(name, optimizer, 0, STEPS, {"patience": 2})
    losses = [1.0] * 4 if name == "reduce_lr_on_plateau" else [1.0, 0.9, 0.8]
    seen = []
    for loss in losses:
        schedule.step(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen.index(next(rate for rate in seen if rate != LEARNING_RATE)) + 1 == acts_at
    quiet = notes([name], warmup_steps=[0], kwargs=[{"patience": 2}], evaluations=acts_at)
    warned = notes([name], warmup_steps=[0], kwargs=[{"patience": 2}], evaluations=acts_at - 1)
    assert (len(quiet), len(warned)) == (0, 1)


def test_what_the_trainer_gives_is_not_an_argument() -> None:
    assert accepted("linear") == accepted("constant_with_warmup") == []
    assert accepted("cosine") == ["num_cycles"]
    assert "num_training_steps" not in accepted("warmup_stable_decay")
