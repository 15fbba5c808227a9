"""What each searched key did to the loss, the speed and the memory."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from support.sweep_events import Sweep, of_kind

from sweeps.ledger.events import Ask
from sweeps.results.importance import (
    MAX_BINS,
    Effect,
    compared_share,
    effects,
    importance,
    why_no_importance,
)
from sweeps.search.optuna_export import completed_study

LR = "trainer.learning_rate"
ACCUM = "trainer.gradient_accumulation_steps"
DECAY = "trainer.weight_decay"


def by_name(found: list[Effect]) -> dict[str, Effect]:
    return {effect.name: effect for effect in found}


def additive(lr: float, accum: int) -> float:
    return 2.0 + {1e-4: 2.0, 1e-3: 0.0, 1e-2: 0.4}[lr] + 0.1 * accum


def grid(skip: tuple[tuple[float, int], ...] = ()) -> Sweep:
    sweep = Sweep({LR: "choice(1e-4,1e-3,1e-2)", ACCUM: "choice(1,2,4)"})
    for lr in (1e-4, 1e-3, 1e-2):
        for accum in (1, 2, 4):
            state = "pruned" if (lr, accum) in skip else "completed"
            sweep.trial({LR: lr, ACCUM: accum}, [additive(lr, accum)] * 4, state)
    return sweep


def test_on_a_full_grid_the_means_are_the_plain_ones_and_the_largest_effect_comes_first() -> None:
    rate, accum = effects(grid().history())
    assert (rate.name, rate.range) == (LR, pytest.approx(2.0))
    assert (accum.name, accum.range) == (ACCUM, pytest.approx(0.3))
    assert [level.values for level in rate.levels] == [(1e-4,), (1e-3,), (1e-2,)]
    for level in (*rate.levels, *accum.levels):
        assert level.trials == 3
        assert level.adjusted == pytest.approx(level.mean)
    assert rate.levels[1].best == pytest.approx(2.1)


def test_pruning_the_bad_companions_of_a_value_does_not_flatter_it() -> None:
    # accum=4 lost its worst rate to the pruner: by plain means it now looks better than accum=1
    accum = by_name(effects(grid(skip=((1e-4, 4),)).history()))[ACCUM]
    one, _, four = accum.levels
    assert four.mean is not None
    assert one.mean is not None
    assert four.mean < one.mean
    assert four.adjusted == pytest.approx(one.adjusted + 0.3, abs=1e-6)
    assert (four.trials, four.pruned) == (2, 1)


def test_a_value_that_always_diverged_is_shown_without_a_mean() -> None:
    sweep = Sweep({LR: "choice(1e-3,1.0)"})
    sweep.trial({LR: 1e-3}, [2.0] * 4)
    sweep.trial({LR: 1.0}, [], "diverged")
    (effect,) = effects(sweep.history())
    good, bad = effect.levels
    assert (good.trials, good.mean, bad.trials, bad.diverged) == (1, 2.0, 0, 1)
    assert bad.mean is bad.best is bad.adjusted is bad.tokens_per_second is None
    assert effect.range == 0.0


def test_speed_and_memory_stand_beside_the_loss() -> None:
    sweep = Sweep()
    for optim, state_mb in (("sgd", 0.0), ("adamw_torch", 8.0)):
        totals = {
            "tokens_per_second": 900.0,
            "peak_memory_mb": 70.0,
            "optimizer_state_mb": state_mb,
        }
        sweep.trial({"trainer.optim": optim}, [1.0] * 4, totals=totals)
    (effect,) = effects(sweep.history())
    assert [(level.values, level.optimizer_state_mb) for level in effect.levels] == [
        (("adamw_torch",), 8.0),
        (("sgd",), 0.0),
    ]
    assert {level.tokens_per_second for level in effect.levels} == {900.0}


def test_a_continuous_key_falls_into_few_bins_of_equal_size() -> None:
    sweep = Sweep({LR: "tag(log, interval(1e-5, 1e-1))"})
    for index in range(20):
        sweep.trial({LR: 1e-5 * 1.5**index}, [float(index)] * 4)
    (effect,) = effects(sweep.history())
    assert [level.trials for level in effect.levels] == [20 // MAX_BINS] * MAX_BINS
    assert [level.mean for level in effect.levels] == [2.0, 7.0, 12.0, 17.0]
    lows, highs = zip(*(level.values for level in effect.levels), strict=True)
    assert all(high < low for high, low in zip(highs, lows[1:], strict=False))


def test_keys_that_are_set_together_are_one_knob() -> None:
    pair = "choice({trainer.bs: 8, trainer.accum: 1}, {trainer.bs: 2, trainer.accum: 4})"
    sweep = Sweep({"batching": pair})
    sweep.trial({"trainer.bs": 8, "trainer.accum": 1}, [1.0] * 4)
    sweep.trial({"trainer.bs": 2, "trainer.accum": 4}, [2.0] * 4)
    (effect,) = effects(sweep.history())
    assert (effect.name, effect.keys) == ("batching", ("trainer.bs", "trainer.accum"))
    assert [level.values for level in effect.levels] == [(2, 4), (8, 1)]


def test_a_conditional_key_counts_only_where_it_was_active() -> None:
    sweep = Sweep()
    for optim in ("sgd", "adamw_torch"):
        for decay in (0.0, 0.1) if optim == "adamw_torch" else (None,):
            values = {"trainer.optim": optim} | ({} if decay is None else {DECAY: decay})
            loss = 5.0 if optim == "sgd" else 2.0 + (decay or 0.0)
            sweep.trial(values, [loss] * 4)
    decay_effect = by_name(effects(sweep.history()))[DECAY]
    assert [level.trials for level in decay_effect.levels] == [1, 1]
    assert [level.adjusted for level in decay_effect.levels] == pytest.approx([2.0, 2.1])


def test_a_conditional_key_takes_nothing_from_the_value_that_it_depends_on() -> None:
    sweep = Sweep()
    for optim, decay, loss in (("sgd", None, 5.0), ("adamw_torch", 0.0, 2.0)) * 3:
        sweep.trial({"trainer.optim": optim} | ({} if decay is None else {DECAY: decay}), [loss])
    sweep.trial({"trainer.optim": "adamw_torch", DECAY: 0.1}, [2.4])
    adamw, sgd = by_name(effects(sweep.history()))["trainer.optim"].levels
    assert (adamw.adjusted, sgd.adjusted) == (pytest.approx(2.1), pytest.approx(5.0))


def test_a_key_that_never_changed_says_nothing() -> None:
    sweep = Sweep()
    sweep.trial({LR: 1e-3}, [1.0] * 4)
    sweep.trial({LR: 1e-3}, [2.0] * 4)
    assert effects(sweep.history()) == []


def study(direction: str, trials: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=0))
    sign = 1 if direction == "minimize" else -1
    for _ in range(trials):
        trial = made.ask()
        strong = trial.suggest_float("strong", -1, 1)
        trial.suggest_categorical("weak", ["a", "b"])
        made.tell(trial, sign * strong**2)
    return made


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_importance_goes_to_the_knob_that_matters(direction: str) -> None:
    shares = importance(study(direction, 40))
    assert shares is not None
    assert list(shares) == ["strong", "weak"]
    assert shares["strong"] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_with_fifty_configs_it_is_that_of_optuna_dashboard(direction: str) -> None:
    made = study(direction, 50)
    sign = 1 if direction == "minimize" else -1
    theirs = optuna.importance.get_param_importances(
        made,
        evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
        target=lambda trial: sign * (trial.value or 0.0),
    )
    assert importance(made) == pytest.approx(theirs)
    assert [compared_share(count) for count in (8, 10, 25, 50, 500)] == [0.5, 0.5, 0.2, 0.1, 0.1]


def asked(sweep: Sweep, key: str) -> Ask:
    return next(each for each in of_kind(sweep.events, Ask) if each.trial == key)


def test_a_config_that_gets_further_repeats_stays_in_it() -> None:
    """Else the column would come and go: the sweep grew, or the repeats are those of finalists."""
    sweep = Sweep({LR: "choice(1e-4,1e-3,1e-2)"}, repeats=2)
    for config, rate in enumerate((1e-4, 1e-3, 1e-2)):
        key = sweep.trial({LR: rate}, [rate], config=config)
        sweep.events = [
            replace(each, choices={LR: rate})
            if isinstance(each, Ask) and each.trial == key
            else each
            for each in sweep.events
        ]
    values = [trial.value for trial in completed_study(sweep.history()).trials]
    assert values == [1e-4, 1e-3, 1e-2]
    sweep.trial({LR: 1e-3}, [3e-3], config=1, repeat=1)
    sweep.trial({LR: 1e-2}, [], "diverged", config=2, repeat=1)
    values = [trial.value for trial in completed_study(sweep.history()).trials]
    assert values == pytest.approx([1e-4, 2e-3, 1e-2])


def test_importance_says_why_it_cannot_be_had() -> None:
    few = study("minimize", 7)
    assert importance(few) is None
    assert why_no_importance(few) == "importance needs 8 completed configs; there are 7"
    flat = optuna.create_study()
    alone = optuna.create_study()
    for index in range(8):
        for made, value in ((flat, 1.0), (alone, float(index))):
            trial = made.ask()
            trial.suggest_float("x", 0, 1)
            made.tell(trial, value)
    assert why_no_importance(flat) == "every completed config came to the same value"
    assert why_no_importance(alone) == "fewer than two knobs varied"
