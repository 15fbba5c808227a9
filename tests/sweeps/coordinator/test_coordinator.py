"""A sweep's life in the Coordinator: killed and gone on with, pruned, repeated, failed, stopped."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from support.driving import (
    EVALUATIONS,
    LR,
    MIXED,
    OPTIM,
    SMALL,
    begin,
    drive,
    drive_abreast,
    ending,
    make,
    open_sweep,
    report,
    story,
    train,
)

from sweeps.config.spec import Spec
from sweeps.config.trial_config import config_of
from sweeps.config.validation import read_train
from sweeps.coordinator import suggestions
from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import LedgerDamagedError, StaleAttemptError
from sweeps.core.trial import Decision, State, Trial
from sweeps.results.trials_csv import ranked
from sweeps.space.space import Space
from sweeps.storage.run_folder import RunFolder

PRUNERS = ("none", "median", "percentile", "asha", "hyperband", "patient")
RATES = {LR: "tag(log, interval(1e-5, 1e-2))", "trainer.weight_decay": "interval(0.0, 0.1)"}
GRID = {LR: "choice(1e-2, 1e-3, 1e-4, 1e-5)", OPTIM: "choice(sgd, adamw_torch)"}
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {"space": GRID, "trials": None},
    "random": {"space": MIXED},
    "tpe": {"space": MIXED, "search_options": {"n_startup_trials": 3}},
    "gp": {"space": RATES, "trials": 5, "search_options": {"n_startup_trials": 3}},
    "cmaes": {"space": RATES},
    "qmc": {"space": MIXED, "trials": 14},
    "quick": {"space": {LR: RATES[LR]}, "first": ({LR: 1e-3}, {LR: 3e-3})},
}
STARTUP = {"n_startup_trials": 2}
PRUNER_OPTIONS = {"median": STARTUP, "percentile": STARTUP}


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests kill no machine, so nothing need reach the platters."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def made(search: str, pruner: str, **sweep: Any) -> Any:
    options = PRUNER_OPTIONS.get(pruner, {})
    settings = {"trials": 8, "pruner_options": options, **SEARCHES[search], **sweep}
    return make(search=search, pruner=pruner, **settings)


def lines(root: Path) -> int:
    return len((root / "ledger.jsonl").read_bytes().splitlines())


def states(coordinator: Coordinator) -> list[TrialState]:
    return [trial.state for trial in coordinator.study.trials]


def rungs(trial: FrozenTrial) -> dict[str, float]:
    return {key: value for key, value in trial.system_attrs.items() if "rung" in key}


# ---------------------------------------------------------------------- killed and gone on with


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("search", SEARCHES)
def test_a_killed_sweep_does_what_an_uninterrupted_one_does(
    search: str, pruner: str, tmp_path: Path
) -> None:
    sweep = made(search, pruner)
    whole = open_sweep(sweep, tmp_path / "whole")
    drive(whole)

    for kill in itertools.count():
        killed = open_sweep(sweep, tmp_path / "killed")
        if drive(killed, most=2 + kill % 2) == 0:
            break
        trial = killed.ask()
        if trial is not None:  # dies with two reports of it in the ledger
            train(killed, trial, stop_after=min(2, EVALUATIONS - 1))
        killed.close()
    assert story(killed) == story(whole)
    assert states(killed) == states(whole)
    assert (TrialState.PRUNED in states(whole)) == (pruner != "none")
    assert killed.is_finished


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_a_rebuilt_study_equals_the_one_that_three_workers_made(
    search: str, pruner: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = made(search, pruner, trials=None if search == "grid" else 12)
    live = open_sweep(sweep, tmp_path / "live")
    drive_abreast(live, 3, most=14)
    shutil.copytree(tmp_path / "live", tmp_path / "copy")
    with caplog.at_level(logging.WARNING, logger="sweeps"):
        rebuilt = Coordinator(*sweep, RunFolder(tmp_path / "copy"))
    assert not [record for record in caplog.records if record.name.startswith("sweeps")]
    for one, other in zip(live.study.trials, rebuilt.study.trials, strict=True):
        assert (one.number, one.params, one.state) == (other.number, other.params, other.state)
        assert one.intermediate_values == other.intermediate_values
        assert rungs(one) == rungs(other)
    suggested = [coordinator._suggestions.suggest() for coordinator in (live, rebuilt)]
    assert suggested[0] == suggested[1]


@pytest.mark.parametrize("search", ["grid", "tpe", "qmc"])
@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_a_ledger_without_the_pruners_notes_gives_the_same_study(
    search: str, pruner: str, tmp_path: Path
) -> None:
    """Ledgers of older versions have none; one that was gone on with has them in its later part."""
    sweep = made(search, pruner, trials=None if search == "grid" else 12)
    live = open_sweep(sweep, tmp_path / "live")
    drive_abreast(live, 3, most=14)
    events = [json.loads(line) for line in (tmp_path / "live" / "ledger.jsonl").open()]
    assert any(event.get("noted") for event in events)
    for kept in (0, len(events) // 2):
        older = [
            {name: value for name, value in event.items() if name != "noted" or number >= kept > 0}
            for number, event in enumerate(events)
        ]
        root = tmp_path / str(kept)
        root.mkdir()
        text = "".join(json.dumps(event) + "\n" for event in older)
        (root / "ledger.jsonl").write_text(text)
        rebuilt = Coordinator(*sweep, RunFolder(root))
        for one, other in zip(live.study.trials, rebuilt.study.trials, strict=True):
            assert (one.params, one.state) == (other.params, other.state)
            assert rungs(one) == rungs(other)
            assert one.intermediate_values == other.intermediate_values


def test_a_finished_folder_asks_for_nothing_and_its_ledger_gains_only_the_start(
    tmp_path: Path,
) -> None:
    sweep = make(SMALL, search="tpe", trials=20)
    drive(open_sweep(sweep, tmp_path))
    before = lines(tmp_path)
    again = open_sweep(sweep, tmp_path)
    assert again.is_finished
    assert again.ask() is None
    assert lines(tmp_path) == before + 1


def test_more_trials_extend_a_finished_sweep(tmp_path: Path) -> None:
    drive(open_sweep(made("tpe", "asha", trials=4), tmp_path / "grown"))
    grown = open_sweep(made("tpe", "asha", trials=9), tmp_path / "grown")
    assert not grown.is_finished
    drive(grown)
    at_once = open_sweep(made("tpe", "asha", trials=9), tmp_path / "at_once")
    drive(at_once)
    assert story(grown) == story(at_once)


FIRST: dict[str, tuple[dict[str, Any], ...]] = {
    "random": ({LR: 3e-4}, {LR: 1e-3, OPTIM: "sgd"}),
    "tpe": ({LR: 3e-4}, {LR: 1e-3, OPTIM: "sgd"}, {OPTIM: "sgd"}),
    "gp": ({LR: 3e-4}, {"trainer.weight_decay": 0.0, LR: 1e-3}),
    "cmaes": ({LR: 3e-4}, {LR: 1e-3}),
    "qmc": ({LR: 3e-4}, {LR: 1e-3, OPTIM: "sgd"}),
}


@pytest.mark.parametrize("search", FIRST)
def test_what_sweep_first_gives_is_tried_first_and_replays(search: str, tmp_path: Path) -> None:
    sweep = made(search, "median", first=FIRST[search], repeats=2)
    whole = open_sweep(sweep, tmp_path / "whole")
    drive(whole)
    configs = [whole.history.repeats(n)[0].values for n in range(len(FIRST[search]))]
    for given, values in zip(FIRST[search], configs, strict=True):
        assert given.items() <= values.items()
        assert values.keys() == whole.history.repeats(7 if search != "gp" else 4)[0].values.keys()
    for kill in itertools.count():
        killed = open_sweep(sweep, tmp_path / "killed")
        if drive(killed, most=1 + kill % 2) == 0:
            break
        if trial := killed.ask():
            train(killed, trial, stop_after=2)
        killed.close()
    assert story(killed) == story(whole)
    assert states(killed) == states(whole)


def test_a_folder_may_get_more_to_try_first(tmp_path: Path) -> None:
    drive(open_sweep(made("tpe", "none", trials=3, first=({LR: 3e-4},)), tmp_path))
    grown = open_sweep(made("tpe", "none", trials=5, first=({LR: 3e-4}, {LR: 7e-3})), tmp_path)
    drive(grown)
    rates = [record.values[LR] for record in grown.history.trials.values()]
    assert (rates[0], rates[3]) == (3e-4, 7e-3)
    assert rates.count(3e-4) == 1


def test_a_decision_to_prune_that_died_with_the_driver_is_settled(tmp_path: Path) -> None:
    sweep = make(GRID, search="grid", pruner="median", pruner_options=STARTUP, trials=None)
    first = open_sweep(sweep, tmp_path)
    drive(first, most=2)
    trial = first.ask()
    assert trial is not None
    attempt = begin(first, trial)
    assert first.report(trial.key, attempt, report(1, 90.0)) is Decision.PRUNE
    second = open_sweep(sweep, tmp_path)
    assert second.history.trials[trial.key].state is State.PRUNED
    assert states(second)[2] is TrialState.PRUNED
    assert (following := second.ask()) is not None
    assert following.number == 3


def test_a_pruned_trial_whose_worker_dies_is_not_tried_again(tmp_path: Path) -> None:
    sweep = make(GRID, search="grid", pruner="median", pruner_options=STARTUP, trials=None)
    coordinator = open_sweep(sweep, tmp_path)
    drive(coordinator, most=2)
    trial = coordinator.ask()
    assert trial is not None
    attempt = begin(coordinator, trial)
    coordinator.report(trial.key, attempt, report(1, 90.0))
    assert not coordinator.release(trial.key, "killed")
    assert coordinator.history.trials[trial.key].state is State.PRUNED


def test_a_ledger_whose_lines_do_not_fit_together_is_refused_by_number(tmp_path: Path) -> None:
    sweep = make(SMALL, search="grid")
    drive(open_sweep(sweep, tmp_path), most=1)
    ledger = tmp_path / "ledger.jsonl"
    kept = ledger.read_text().splitlines(keepends=True)
    assert '"ask"' in kept[2]
    ledger.write_text("".join(kept[:2] + kept[3:]))
    with pytest.raises(LedgerDamagedError, match=r"line 3 does not follow .* choose another run_d"):
        open_sweep(sweep, tmp_path)


def test_reports_of_a_manifest_that_never_reached_the_ledger_are_added(tmp_path: Path) -> None:
    coordinator = open_sweep(make(), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    train(coordinator, trial, stop_after=1)
    coordinator = open_sweep(make(), tmp_path)
    kept = [report(0, 4.0), report(1, 3.0), report(2, 2.0)]
    coordinator.start(trial.key, worker="w", device="cpu", step=4, reports=kept)
    told = coordinator.study.trials[0].intermediate_values
    assert list(told) == [1, 2]
    assert told[2] == 2.0
    assert sorted(coordinator.history.trials[trial.key].reports) == [1, 2]


# ---------------------------------------------------------------------- Optuna is told the truth


def test_optuna_is_told_how_each_trial_ended_and_leaves_none_running(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=5), tmp_path)
    ends = [State.COMPLETED, State.PRUNED, State.DIVERGED, State.FAILED, State.FAILED]
    for end, kind in zip(ends, ["", "", "diverged", "oom", "bug"], strict=True):
        trial = coordinator.ask()
        assert trial is not None
        attempt = begin(coordinator, trial)
        for index, value in ((1, 3.0), (2, 1.0), (3, 2.0)):
            coordinator.report(trial.key, attempt, report(index, value))
        coordinator.end(ending(trial.key, attempt, end, kind=kind, reason="because"))
    told = coordinator.study.trials
    assert [trial.state.name for trial in told] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL"]
    assert told[0].value == 1.0  # its best report, not its last
    assert told[1].intermediate_values == {1: 3.0, 2: 1.0, 3: 2.0}
    assert coordinator.is_finished


def test_the_last_report_never_prunes(tmp_path: Path) -> None:
    for warmup, end in ((EVALUATIONS - 1, State.PRUNED), (EVALUATIONS, State.COMPLETED)):
        options = {"n_startup_trials": 2, "n_warmup_steps": warmup}
        sweep = made("grid", "median", pruner_options=options)
        coordinator = open_sweep(sweep, tmp_path / str(warmup))
        drive(coordinator, most=2)
        trial = coordinator.ask()
        assert trial is not None
        assert train(coordinator, trial, lambda *_: 90.0) is end


def test_maximizing_turns_every_comparison_round(tmp_path: Path) -> None:
    sweep = make(GRID, search="grid", direction="maximize", pruner="median", pruner_options=STARTUP)
    coordinator = open_sweep(sweep, tmp_path)
    drive(coordinator, losses=lambda trial, index: -trial.number - index)
    ended = [record.state for record in coordinator.history.trials.values()]
    assert ended[:2] == [State.COMPLETED] * 2
    assert set(ended[2:]) == {State.PRUNED}
    assert coordinator.study.best_value == -1.0


def test_a_known_report_is_answered_again_but_told_once(tmp_path: Path) -> None:
    coordinator = open_sweep(make(), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    attempt = begin(coordinator, trial)
    assert coordinator.report(trial.key, attempt, report(1, 3.0)) is Decision.CONTINUE
    before = lines(tmp_path)
    assert coordinator.report(trial.key, attempt, report(1, 9.0)) is Decision.CONTINUE
    assert lines(tmp_path) == before
    assert coordinator.study.trials[0].intermediate_values == {1: 3.0}


# ---------------------------------------------------------------------- grids, doubles, conditions


def test_a_grid_goes_as_written_and_ends(tmp_path: Path) -> None:
    coordinator = open_sweep(make(SMALL, search="grid", trials=None), tmp_path)
    assert drive(coordinator) == 4
    values = [tuple(record.values.values()) for record in coordinator.history.trials.values()]
    assert values == [
        (1e-4, "sgd"),
        (1e-4, "adamw_torch"),
        (1e-3, "sgd"),
        (1e-3, "adamw_torch"),
    ]
    assert coordinator.is_finished


@pytest.mark.parametrize("search", ["random", "tpe", "qmc", "gp", "cmaes"])
@pytest.mark.parametrize("width", [1, 3])
def test_a_small_space_is_used_up_once_each_and_replays(
    search: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suggestions, "_DOUBLES_BEFORE_LOOKING", 1)
    other = "int(interval(1, 2))" if search == "cmaes" else "choice(1, 2)"
    space = {"trainer.num_beams": other, "peft.r": "int(interval(4, 5))"}
    sweep = make(space, search=search, trials=50)
    coordinator = open_sweep(sweep, tmp_path)
    drive_abreast(coordinator, width)
    tried = [tuple(record.values.values()) for record in coordinator.history.trials.values()]
    assert len(tried) == 4
    assert len(set(tried)) == 4
    assert coordinator.is_finished
    assert TrialState.RUNNING not in states(coordinator)
    rebuilt = Coordinator(*sweep, RunFolder(tmp_path))
    assert states(rebuilt) == states(coordinator)
    assert [t.params for t in rebuilt.study.trials] == [t.params for t in coordinator.study.trials]


def test_a_config_that_was_tried_is_told_its_known_value(tmp_path: Path) -> None:
    coordinator = open_sweep(make(SMALL, search="tpe", trials=50), tmp_path)
    drive(coordinator)
    known: dict[Any, float] = {}
    doubles = 0
    for trial in coordinator.study.trials:
        assert trial.state is TrialState.COMPLETE
        assert trial.value is not None
        doubles += tuple(trial.params.values()) in known
        assert known.setdefault(tuple(trial.params.values()), trial.value) == trial.value
    assert doubles


def test_a_condition_that_never_holds_does_not_search_for_ever(tmp_path: Path) -> None:
    space = {"trainer.weight_decay": "interval(0.0, 0.1)"}
    when = {"trainer.weight_decay": "trainer.optim=adamw_torch"}  # the base config has sgd
    coordinator = open_sweep(make(space, when, search="random", trials=5), tmp_path)
    assert drive(coordinator) == 1
    assert coordinator.is_finished


def test_one_config_with_nothing_searched_is_one_trial(tmp_path: Path) -> None:
    coordinator = open_sweep(make({}, search="grid", trials=None), tmp_path)
    assert drive(coordinator) == 1
    assert coordinator.is_finished


# ---------------------------------------------------------------------- repeats


def test_repeats_run_side_by_side_and_their_mean_is_told(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=2, repeats=3), tmp_path)
    first = [coordinator.ask() for _ in range(4)]
    assert [trial.seed for trial in first if trial] == [0, 1, 2, 0]
    coordinator = open_sweep(make(trials=2, repeats=3), tmp_path / "whole")
    assert drive(coordinator, losses=lambda trial, _: 1.0 + trial.seed) == 6
    assert [trial.value for trial in coordinator.study.trials] == [2.0, 2.0]


def test_a_configs_first_seed_alone_speaks_for_it_until_it_ends(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=1, repeats=2), tmp_path)
    first, second = [trial for _ in range(2) if (trial := coordinator.ask())]
    for trial, value in ((second, 9.0), (first, 1.0)):
        coordinator.report(trial.key, begin(coordinator, trial), report(1, value))
    assert coordinator.study.trials[0].intermediate_values == {1: 1.0}


def test_with_a_pruner_the_other_seeds_wait_for_the_first_to_complete(tmp_path: Path) -> None:
    sweep = make(GRID, search="grid", pruner="median", pruner_options=STARTUP, trials=4, repeats=2)
    coordinator = open_sweep(sweep, tmp_path)
    asked = [coordinator.ask() for _ in range(2)]
    assert [trial.seed for trial in asked if trial] == [0, 0]
    coordinator = open_sweep(sweep, tmp_path)
    drive(coordinator, losses=lambda trial, _: 1.0 + (trial.values[LR] < 1e-2))
    told = [(r.config, r.seed, r.state.value) for r in coordinator.history.trials.values()]
    assert sorted(told) == [
        (0, 0, "completed"),
        (0, 1, "completed"),
        (1, 0, "completed"),
        (1, 1, "completed"),
        (2, 0, "pruned"),
        (3, 0, "pruned"),
    ]


def test_a_config_with_a_failed_seed_is_told_as_failed_and_gets_no_more(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=1, repeats=3), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    train(coordinator, trial)
    trial = coordinator.ask()
    assert trial is not None
    attempt = begin(coordinator, trial)
    coordinator.end(ending(trial.key, attempt, State.DIVERGED, kind="diverged"))
    assert coordinator.ask() is None
    assert coordinator.is_finished
    assert states(coordinator) == [TrialState.FAIL]


# ---------------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    "stop", [Stop(cause=Cause.SIGNAL, details=("SIGINT",)), Stop(cause=Cause.TIME_BUDGET)]
)
def test_an_interrupted_sweep_hands_out_nothing_and_goes_on_later(
    stop: Stop, tmp_path: Path
) -> None:
    coordinator = open_sweep(make(trials=2), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    attempt = begin(coordinator, trial)
    coordinator.interrupt(stop)
    coordinator.interrupt(Stop(cause=Cause.SIGNAL, details=("again",)))
    assert (coordinator.stop, coordinator.is_finished) == (stop, True)
    assert coordinator.ask() is None
    assert coordinator.log(trial.key, attempt, [{"step": 1, "loss": 3.0}]) is Decision.STOP
    assert coordinator.report(trial.key, attempt, report(1, 3.0)) is Decision.STOP
    assert not coordinator.is_at_rest
    coordinator.pause(trial.key, attempt)
    assert coordinator.history.interrupt
    assert coordinator.is_at_rest

    later = open_sweep(make(trials=2), tmp_path)
    assert not later.history.interrupt
    assert not later.is_finished
    again = later.ask()
    assert again == trial
    assert begin(later, trial) == attempt + 1
    assert later.history.trials[trial.key].retries == 0  # nobody's failure


def test_a_worker_of_an_older_attempt_is_refused(tmp_path: Path) -> None:
    coordinator = open_sweep(make(), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    old = begin(coordinator, trial)
    assert coordinator.release(trial.key, "its node is gone")
    with pytest.raises(StaleAttemptError, match=r"attempt 1 at trial .* is over"):
        coordinator.report(trial.key, old, report(1, 1.0))
    assert coordinator.ask() == trial
    new = begin(coordinator, trial)
    for stale in (
        lambda: coordinator.report(trial.key, old, report(1, 1.0)),
        lambda: coordinator.committed(trial.key, old, 2, 100),
        lambda: coordinator.log(trial.key, old, []),
        lambda: coordinator.claim_base(trial.key, old),
        lambda: coordinator.end(ending(trial.key, old, State.COMPLETED)),
    ):
        with pytest.raises(StaleAttemptError, match="2 is the latest"):
            stale()
    assert coordinator.report(trial.key, new, report(1, 1.0)) is Decision.CONTINUE


def test_retries_are_counted_and_then_the_trial_has_failed(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=1, max_retries=2), tmp_path)
    for retries in (1, 2):
        trial = coordinator.ask()
        assert trial is not None
        begin(coordinator, trial)
        assert coordinator.release(trial.key, "killed", error="Killed by signal 9")
        assert coordinator.history.trials[trial.key].retries == retries
    assert coordinator.ask() == trial
    begin(coordinator, trial)
    assert not coordinator.release(trial.key, "killed")
    record = coordinator.history.trials[trial.key]
    assert (record.state, record.kind) == (State.FAILED, "infrastructure")
    assert record.reason == "killed; 2 retries spent (sweep.max_retries)"
    assert states(coordinator) == [TrialState.FAIL]
    assert RunFolder(tmp_path).error(trial.key).read_text() == "Killed by signal 9"
    assert coordinator.is_finished
    assert coordinator.start(trial.key, worker="w", device="cpu", step=0) is None


def test_the_same_error_in_the_first_trials_stops_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "abcdefgh12345")
    coordinator = open_sweep(make(trials=10, max_same_error=3), tmp_path)
    for _ in range(3):
        assert coordinator.stop is None
        trial = coordinator.ask()
        assert trial is not None
        attempt = begin(coordinator, trial)
        reason = "ValueError: abcdefgh12345 is refused"
        ended = ending(trial.key, attempt, State.FAILED, kind="bug", reason=reason)
        coordinator.end(ended, reason)
    assert coordinator.stop == Stop(cause=Cause.SAME_ERROR, details=("3",))
    assert str(coordinator.stop) == "the first 3 trials failed with the same error"
    assert coordinator.ask() is None
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("abcdefgh12345" in text for text in written)


@pytest.mark.parametrize(
    ("reasons", "first"),
    [(["a", "b", "a", "b"], State.FAILED), (["a", "a", "a"], State.COMPLETED)],
)
def test_different_errors_or_a_trial_that_worked_let_a_sweep_go_on(
    reasons: list[str], first: State, tmp_path: Path
) -> None:
    coordinator = open_sweep(make(trials=10, max_same_error=3), tmp_path)
    if first is State.COMPLETED:
        drive(coordinator, most=1)
    for reason in reasons:
        trial = coordinator.ask()
        assert trial is not None
        attempt = begin(coordinator, trial)
        coordinator.end(ending(trial.key, attempt, State.FAILED, kind="bug", reason=reason))
    assert coordinator.stop is None
    assert coordinator.ask() is not None


# ---------------------------------------------------------------------- the base model


def test_the_base_model_is_measured_once_and_by_another_where_its_measurer_is_lost(
    tmp_path: Path,
) -> None:
    coordinator = open_sweep(make(), tmp_path)
    trials = [trial for _ in range(2) if (trial := coordinator.ask())]
    first, second = trials
    attempts = [begin(coordinator, trial) for trial in trials]
    assert coordinator.claim_base(first.key, attempts[0])
    assert not coordinator.claim_base(second.key, attempts[1])
    coordinator.release(first.key, "killed")
    assert coordinator.claim_base(second.key, attempts[1])
    for value in (5.0, 7.0):
        answer = coordinator.report(second.key, attempts[1], report(0, value))
        assert answer is Decision.CONTINUE
    assert coordinator.history.base == report(0, 5.0)
    assert not coordinator.claim_base(second.key, attempts[1])
    assert coordinator.study.trials[1].intermediate_values == {}
    later = open_sweep(make(), tmp_path)
    assert later.history.base == report(0, 5.0)


# ---------------------------------------------------------------------- what lies in the folder


def test_each_trial_has_its_config_and_its_training_rows_on_disk(tmp_path: Path) -> None:
    coordinator = open_sweep(make(SMALL, search="grid"), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    folder = RunFolder(tmp_path)
    text = folder.trial_config(trial.key).read_text()
    assert "learning_rate: 0.0001" in text
    assert "examples: 64" in text
    attempt = begin(coordinator, trial)
    for step in (1, 2):
        coordinator.log(trial.key, attempt, [{"step": step, "loss": 3.0}])
    assert folder.metrics(trial.key).read_text().count("\n") == 2


def test_the_same_config_has_the_same_key_in_another_folder_and_another_seed_has_not(
    tmp_path: Path,
) -> None:
    keys = []
    for place in ("a", "b"):
        coordinator = open_sweep(make(SMALL, search="grid", repeats=2), tmp_path / place)
        asked: list[Trial] = [trial for _ in range(8) if (trial := coordinator.ask())]
        keys.append([trial.key for trial in asked])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 8


# ---------------------------------------------------------------------- out of memory


def batched(size: int, accumulation: int, **sweep: Any) -> tuple[Spec, Space]:
    """A sweep of one trial with this micro-batch."""
    spec, space = make({LR: "choice(1e-4)"}, search="grid", trials=None, **sweep)
    trainer = {
        **spec.base["trainer"],
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
    }
    return dataclasses.replace(spec, base={**spec.base, "trainer": trainer}), space


def test_out_of_memory_a_trial_is_tried_once_with_half_the_micro_batch(tmp_path: Path) -> None:
    made = batched(8, 2, max_retries=0)  # which it does not use up
    coordinator = open_sweep(made, tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    attempt = begin(coordinator, trial)
    coordinator.report(trial.key, attempt, report(1, 3.0))
    assert coordinator.out_of_memory(trial.key, attempt, "CUDA out of memory", "Traceback ...")
    with pytest.raises(StaleAttemptError):
        coordinator.may_commit(trial.key, attempt)

    coordinator = open_sweep(made, tmp_path)  # a driver that begins anew knows it, too
    again = coordinator.ask()
    assert again is not None
    assert (again.key, again.config, again.halvings) == (trial.key, trial.config, 1)
    halved = read_train(again.config).halved(again.halvings)
    assert halved is not None
    assert (halved.batch_size, halved.accumulation_steps) == (4, 4)
    attempt = begin(coordinator, again)
    coordinator.may_commit(again.key, attempt)
    coordinator.end(ending(again.key, attempt, State.COMPLETED))
    (row,) = ranked(coordinator.history)
    assert row.error == "out of memory at micro-batch 8 x 2, goes on with 4 x 4"
    assert coordinator.history.trials[again.key].retries == 0
    assert "Traceback" in RunFolder(tmp_path).error(again.key).read_text()


def test_out_of_memory_twice_a_trial_has_failed(tmp_path: Path) -> None:
    coordinator = open_sweep(batched(8, 2), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    assert coordinator.out_of_memory(trial.key, begin(coordinator, trial), "CUDA out of memory")
    attempt = begin(coordinator, trial)
    assert not coordinator.out_of_memory(trial.key, attempt, "CUDA out of memory")
    (row,) = ranked(coordinator.history)
    assert row.status is State.FAILED
    assert row.error == ("oom: CUDA out of memory (micro-batch 4 x 4: at half the micro-batch too)")


def test_a_micro_batch_of_one_cannot_be_halved(tmp_path: Path) -> None:
    coordinator = open_sweep(batched(1, 16), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    assert not coordinator.out_of_memory(trial.key, begin(coordinator, trial), "out of memory")
    assert ranked(coordinator.history)[0].error.endswith(
        "(micro-batch 1 x 16: it cannot be halved)"
    )


@pytest.mark.parametrize(
    ("size", "accumulation", "halved"),
    [(8, 1, (4, 2)), (6, 2, (3, 4)), (3, 1, (1, 3)), (9, 2, (3, 6)), (5, 4, (2, 10)), (1, 4, None)],
)
def test_halved_the_optimizer_sees_as_many_rows(
    size: int, accumulation: int, halved: tuple[int, int] | None
) -> None:
    spec, _ = batched(size, accumulation)
    small = read_train(config_of(spec, {})).halved()
    assert (None if small is None else (small.batch_size, small.accumulation_steps)) == halved


def test_a_full_disk_stops_the_sweep_once_the_trials_retries_are_spent(tmp_path: Path) -> None:
    coordinator = open_sweep(make(max_retries=1), tmp_path)
    trial = coordinator.ask()
    assert trial is not None
    for _ in range(2):
        assert coordinator.stop is None
        begin(coordinator, trial)
        coordinator.release(trial.key, "OSError: the disk is full", full_disk=True)
    assert coordinator.stop is not None
    assert coordinator.stop.cause is Cause.DISK_FULL
    assert str(coordinator.stop).startswith("OSError: the disk is full; what was written")
    assert not coordinator.history.trials[trial.key].state.is_finished()


def test_a_searcher_that_breaks_stops_the_sweep_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = open_sweep(make(), tmp_path)

    def fail(*_: object) -> None:
        raise ValueError("singular matrix")

    monkeypatch.setattr("sweeps.search.study.Search.ask", fail)
    assert coordinator.ask() is None
    assert coordinator.is_finished
    assert coordinator.stop is not None
    assert coordinator.stop.cause is Cause.NO_SUGGESTION
    assert "ValueError: singular matrix" in str(coordinator.stop)
