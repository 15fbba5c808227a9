"""Samplers and pruners: their options, and what they cannot do with a space."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from support.driving import LR, MIXED, OPTIM, SMALL, make

from sweeps.search.pruning import make_pruner
from sweeps.search.samplers import search_problems
from sweeps.search.study import Search, Verdict, first_untried, picked_id

DECAY = "trainer.weight_decay"
CONDITIONAL = {OPTIM: "choice(sgd, adamw_torch)", DECAY: "interval(0.0, 0.1)"}
WHEN = {DECAY: f"{OPTIM}=adamw_torch"}


def problems(*args: Any, **sweep: Any) -> list[str]:
    spec, space = make(*args, **sweep)
    return [str(problem) for problem in search_problems(spec.sweep, space)]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"search": "grid"}, f"a grid cannot walk the interval of {LR}. Write choice"),
        ({"search": "tpe", "trials": None}, "sweep.trials: tpe needs a number of trials."),
        ({"search": "cmaes"}, f"searches intervals only; {OPTIM} is not one. Take sweep.search=tp"),
        (
            {"space": CONDITIONAL, "when": WHEN, "search": "qmc"},
            "sweep.search = qmc: cannot search keys that depend on others (sweep.when). Take",
        ),
        ({"space": CONDITIONAL, "when": WHEN, "search": "gp"}, "sweep.search = gp: cannot search"),
        ({"search_options": {"n_startup": 3}}, "sweep.search_options: Optuna's random refuses"),
        (
            {"search": "grid", "space": SMALL, "search_options": {"n_startup_trials": 3}},
            "'n_startup_trials'. Correct them, or take them out with ~sweep.search_options",
        ),
        (
            {"pruner": "asha", "pruner_options": {"reduction_factor": 1}},
            "sweep.pruner_options: Optuna's asha refuses them",
        ),
        (
            {"pruner": "percentile", "pruner_options": {"percentile": 101.0}},
            "percentile refuses them",
        ),
        ({"pruner": "patient", "pruner_options": {"patience": -1}}, "patient refuses them"),
    ],
)
def test_what_a_sampler_or_pruner_cannot_do_is_refused_with_the_way_out(
    sweep: dict[str, Any], message: str
) -> None:
    (said,) = problems(**sweep)
    assert message in said


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({LR: 1.0}, f"sweep.first[0].{LR} = 1.0: must be a number from 1e-05 to 0.01, as sweep.sp"),
        ({LR: "big"}, "must be a number from 1e-05"),
        ({LR: True}, "must be a number from 1e-05"),
        ({OPTIM: "lion"}, "must be one of sgd, adamw_torch, as sweep.space has it."),
        ({"trainer.optm": "sgd"}, f"is not searched. sweep.space has {LR}, {OPTIM}. Did you mean"),
        ({}, "sweep.first[0]: is empty: name a searched key"),
    ],
)
def test_what_cannot_be_tried_first_is_refused(first: dict[str, Any], message: str) -> None:
    (said,) = problems(first=(first,))
    assert message in said
    assert problems(first=({LR: 1e-3},)) == []


def test_a_grid_takes_nothing_first() -> None:
    (said,) = problems(SMALL, search="grid", first=({LR: 1e-3},))
    assert "take sweep.search=tpe or random" in said


def test_what_a_condition_bars_cannot_be_tried_first() -> None:
    (said,) = problems(CONDITIONAL, WHEN, search="tpe", first=({DECAY: 0.05},))
    assert f"is searched only if {OPTIM} is adamw_torch: give that key, too." in said
    assert not problems(CONDITIONAL, WHEN, search="tpe", first=({DECAY: 0, OPTIM: "adamw_torch"},))


def test_a_linked_choice_is_tried_first_by_its_name() -> None:
    linked = {"update": [{OPTIM: "sgd", LR: 0.1}, {OPTIM: "adamw_torch", LR: 1e-3}]}
    (said,) = problems(linked, search="tpe", first=({OPTIM: "sgd"},))
    assert "is set by sweep.space.update: give one of its mappings" in said
    sweep = make(linked, search="tpe", first=({"update": linked["update"][1]},))
    assert not search_problems(sweep[0].sweep, sweep[1])
    asked = Search(sweep[0].sweep, sweep[1], seed=0).ask()
    assert asked is not None
    assert asked.values == {OPTIM: "adamw_torch", LR: 1e-3}


def test_a_pruner_without_evaluations_is_refused() -> None:
    spec, space = make(pruner="median")
    spec.sweep.__dict__["evaluations"] = 1
    (problem,) = search_problems(spec.sweep, space)
    assert "set sweep.evaluations to 2 or more, or sweep.pruner=none" in str(problem)


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_conditional_spaces_suit_samplers_that_know_them(search: str) -> None:
    assert problems(CONDITIONAL, WHEN, search=search) == []
    spec, space = make(CONDITIONAL, WHEN, search=search)
    asked = Search(spec.sweep, space, seed=0)
    for _ in range(15):
        suggestion = asked.ask()
        assert suggestion is not None
        assert (DECAY in suggestion.values) == (suggestion.values[OPTIM] == "adamw_torch")
        asked.complete(suggestion.number, 1.0)


@pytest.mark.parametrize(
    ("pruner", "kind"),
    [
        ("none", optuna.pruners.NopPruner),
        ("median", optuna.pruners.MedianPruner),
        ("percentile", optuna.pruners.PercentilePruner),
        ("asha", optuna.pruners.SuccessiveHalvingPruner),
        ("hyperband", optuna.pruners.HyperbandPruner),
        ("patient", optuna.pruners.PatientPruner),
    ],
)
def test_each_pruner_is_optunas_own(pruner: str, kind: type) -> None:
    spec, _ = make(pruner=pruner)
    assert type(make_pruner(spec.sweep)) is kind


@pytest.mark.parametrize("pruner", ["none", "median", "patient"])
def test_a_pruner_without_a_memory_adds_nothing_to_the_report(pruner: str) -> None:
    spec, space = make(pruner=pruner)
    asked = Search(spec.sweep, space, seed=0)
    suggestion = asked.ask()
    assert suggestion is not None
    assert asked.report(suggestion.number, 1, 1.0) == Verdict(prune=False)


def test_asha_halves_at_the_first_second_and_fourth_report_and_notes_it() -> None:
    spec, space = make(pruner="asha")
    asked = Search(spec.sweep, space, seed=0)
    suggestion = asked.ask()
    assert suggestion is not None
    noted = [asked.report(suggestion.number, index, 1.0).noted for index in (1, 2, 3, 4)]
    assert [list((one or {}).values()) for one in noted] == [[1.0], [1.0], [], []]
    assert noted[-1] is None  # the last report is never judged


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_another_seed_gives_another_sweep_and_the_same_seed_the_same(search: str) -> None:
    spec, space = make(search=search)

    def first(seed: int) -> list[Any]:
        asked = Search(spec.sweep, space, seed)
        return [suggestion.values for _ in range(3) if (suggestion := asked.ask())]

    assert first(0) == first(0)
    assert first(0) != first(1)
    assert len({str(values) for values in first(0)}) == 3


def test_untried_configs_are_found_in_order_until_there_is_none() -> None:
    _, space = make(SMALL)
    tried: set[str] = set()
    found = []
    while (picked := first_untried(space, tried)) is not None:
        tried.add(picked_id(picked))
        found.append(picked)
    assert found == list(space.grid())


def test_a_value_is_suggested_within_its_bounds_and_of_its_type() -> None:
    space = {LR: MIXED[LR], "peft.r": "tag(int, log, interval(4, 64))", "trainer.x": "choice(1, a)"}
    spec, parsed = make(space)
    asked = Search(spec.sweep, parsed, seed=0)
    for _ in range(20):
        suggestion = asked.ask()
        assert suggestion is not None
        rate, rank, x = suggestion.values.values()
        assert 1e-5 <= rate <= 1e-2
        assert type(rank) is int
        assert 4 <= rank <= 64
        assert x in (1, "a")
