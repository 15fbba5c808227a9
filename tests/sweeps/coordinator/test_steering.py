"""What users ask of a sweep: carried out once, in the ledger, and still there after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.driving import (
    EVALUATIONS,
    begin,
    drive,
    ending,
    loss,
    make,
    open_sweep,
    report,
    story,
    train,
)

from sweeps.coordinator.changes import with_changes
from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.trial import Decision, State, Trial
from sweeps.ledger.history import read_history
from sweeps.results.ranking import best, config_ranks
from sweeps.results.trials_csv import ranked
from sweeps.storage.requests import make_request
from sweeps.storage.run_folder import RunFolder


def asked(coordinator: Coordinator, verb: str, *trials: str, **more: object) -> str:
    answer = coordinator.take(make_request(verb, trials=trials, by="ann@box", **more))  # type: ignore[arg-type]
    assert answer.is_done, answer.said
    return answer.said


def refused(coordinator: Coordinator, verb: str, *trials: str, **more: object) -> str:
    answer = coordinator.take(make_request(verb, trials=trials, by="ann@box", **more))  # type: ignore[arg-type]
    assert not answer.is_done
    return answer.said


def half(coordinator: Coordinator, trial: Trial) -> int:
    """Train a trial up to its second report; its attempt."""
    attempt = begin(coordinator, trial)
    for index in (1, 2):
        coordinator.report(trial.key, attempt, report(index, loss(trial, index)))
        coordinator.committed(trial.key, attempt, 2 * index, 1)
    return attempt


def next_trial(coordinator: Coordinator) -> Trial:
    trial = coordinator.ask()
    assert trial is not None
    return trial


def test_a_stopped_trial_commits_ends_and_counts_like_a_pruned_one(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=4), tmp_path)
    drive(coordinator, 1)
    trial = next_trial(coordinator)
    attempt = half(coordinator, trial)
    said = asked(coordinator, "stop", trial.key)
    assert said == "trial 1 commits a checkpoint after the next step and ends as stopped"
    assert coordinator.log(trial.key, attempt, []) is Decision.STOP
    coordinator.committed(trial.key, attempt, 5, 1)
    coordinator.pause(trial.key, attempt, totals={"seconds": 3.0})
    record = coordinator.history.trials[trial.key]
    assert record.state is State.STOPPED
    assert record.totals == {"seconds": 3.0}
    assert record.reason == "by ann@box"
    drive(coordinator)
    assert record.config not in config_ranks(coordinator.history)
    (row,) = [row for row in ranked(coordinator.history) if row.key == trial.key]
    assert (row.rank, row.status) == (None, State.STOPPED)
    assert coordinator.study.trials[1].state is TrialState.PRUNED
    assert len(coordinator.history.trials) == 4


def test_a_stop_outlives_the_driver_before_the_trial_has_heard_of_it(tmp_path: Path) -> None:
    made = make(trials=4)
    coordinator = open_sweep(made, tmp_path)
    trial = next_trial(coordinator)
    half(coordinator, trial)
    request = make_request("stop", trials=[trial.key], by="ann@box")
    said = coordinator.take(request)
    coordinator.close()  # kill -9
    again = open_sweep(made, tmp_path)
    assert again.history.trials[trial.key].state is State.STOPPED
    assert again.take(request) == said  # answered again, and done once
    assert len([1 for line in RunFolder(tmp_path).ledger.open() if '"request"' in line]) == 1
    drive(again)
    assert again.is_finished
    replayed = open_sweep(made, tmp_path)
    assert story(replayed) == story(again)
    assert [t.state for t in replayed.study.trials] == [t.state for t in again.study.trials]


def test_a_waiting_trial_is_stopped_at_once_and_handed_out_no_more(tmp_path: Path) -> None:
    made = make(trials=2)
    coordinator = open_sweep(made, tmp_path)
    trial = next_trial(coordinator)
    half(coordinator, trial)
    coordinator.close()
    again = open_sweep(made, tmp_path)
    assert asked(again, "stop", trial.key) == "trial 0 ends as stopped now"
    assert next_trial(again).key != trial.key


def test_a_worker_that_holds_a_stopped_trial_does_not_begin_it(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=2), tmp_path)
    trial = next_trial(coordinator)
    asked(coordinator, "stop", trial.key)
    assert coordinator.start(trial.key, worker="box:2", device="cpu", step=0) is None


def test_a_trial_that_completes_before_it_hears_of_the_stop_has_completed(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=1), tmp_path)
    trial = next_trial(coordinator)
    attempt = half(coordinator, trial)
    asked(coordinator, "stop", trial.key)
    for index in range(3, EVALUATIONS + 1):
        coordinator.report(trial.key, attempt, report(index, loss(trial, index)))
    coordinator.end(ending(trial.key, attempt, State.COMPLETED))
    assert coordinator.history.trials[trial.key].state is State.COMPLETED


@pytest.mark.parametrize("what", ["unknown", "ended"])
def test_trials_that_cannot_be_stopped(tmp_path: Path, what: str) -> None:
    coordinator = open_sweep(make(trials=2), tmp_path)
    trial = next_trial(coordinator)
    train(coordinator, trial)
    key, why = {
        "unknown": ("0123456789", "the sweep has no trial 0123456789"),
        "ended": (trial.key, "trial 0 has ended already: it is completed"),
    }[what]
    assert refused(coordinator, "stop", key) == why
    assert not read_history(RunFolder(tmp_path).ledger).answered


def test_finish_ends_all_and_nothing_more_is_tried_by_any_start(tmp_path: Path) -> None:
    made = make(trials=6)
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator, 2)
    trial = next_trial(coordinator)
    attempt = half(coordinator, trial)
    waiting = next_trial(coordinator)
    assert not coordinator.is_finished
    said = asked(coordinator, "finish")
    assert said == (
        "no more trials begin; trial 2 commits a checkpoint after the next step and ends as "
        "stopped; trial 3 ends as stopped now; then trials are ranked and the best one is proven"
    )
    assert coordinator.is_finished
    assert coordinator.ask() is None
    assert coordinator.log(trial.key, attempt, []) is Decision.STOP
    assert str(coordinator.stop) == "ann@box has ended the sweep"
    coordinator.close()  # kill -9 before the trial has heard of it
    again = open_sweep(made, tmp_path)
    assert again.is_finished
    assert again.stop is None  # it was not interrupted: it is over
    assert again.ask() is None
    states = [again.history.trials[key].state for key in (trial.key, waiting.key)]
    assert states == [State.STOPPED, State.STOPPED]
    assert best(again.history) is not None
    assert refused(again, "finish") == "the sweep has ended already"


def test_of_a_stopped_trial_the_last_checkpoint_stays(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=2), tmp_path)
    trial = next_trial(coordinator)
    attempt = begin(coordinator, trial)
    folder = RunFolder(tmp_path)
    for step in (2, 4):
        folder.checkpoint(trial.key, step).mkdir(parents=True)
        coordinator.committed(trial.key, attempt, step, 1)
    asked(coordinator, "stop", trial.key)
    coordinator.pause(trial.key, attempt)
    kept = [path.name for path in folder.checkpoints(trial.key).iterdir()]
    assert kept == [folder.checkpoint(trial.key, 4).name]


def test_cancel_interrupts_the_start_that_was_meant_and_no_later_one(tmp_path: Path) -> None:
    made = make(trials=4)
    coordinator = open_sweep(made, tmp_path)
    trial = next_trial(coordinator)
    attempt = half(coordinator, trial)
    request = make_request("cancel", by="ann@box", start=1)
    assert "the same command goes on" in asked(coordinator, "cancel", start=1)
    assert coordinator.log(trial.key, attempt, []) is Decision.STOP
    coordinator.pause(trial.key, attempt)
    assert coordinator.history.trials[trial.key].state is not State.STOPPED
    assert coordinator.history.interrupted
    coordinator.close()
    again = open_sweep(made, tmp_path)
    assert not again.take(request).is_done
    assert drive(again) == 4


def test_a_paused_sweep_begins_no_trial_and_the_running_ones_go_on(tmp_path: Path) -> None:
    made = make(trials=4)
    coordinator = open_sweep(made, tmp_path)
    trial = next_trial(coordinator)
    attempt = half(coordinator, trial)
    said = asked(coordinator, "pause")
    assert said == "no trial begins until `resume`; trial 0 goes on"
    assert coordinator.log(trial.key, attempt, []) is Decision.CONTINUE
    assert coordinator.ask() is None
    assert not coordinator.is_finished
    assert refused(coordinator, "pause") == "the sweep is paused already, by ann@box"
    coordinator.close()  # kill -9
    again = open_sweep(made, tmp_path)
    assert again.ask() is None
    assert not again.is_finished
    asked(again, "resume")
    assert refused(again, "resume") == "the sweep is not paused"
    assert drive(again) == 4


def test_pause_now_makes_running_trials_wait_at_no_cost_of_a_retry(tmp_path: Path) -> None:
    made = make(trials=2, max_retries=0)
    coordinator = open_sweep(made, tmp_path)
    trial = next_trial(coordinator)
    attempt = half(coordinator, trial)
    said = asked(coordinator, "pause", now=True)
    assert "trial 0 commits a checkpoint after the next step and waits" in said
    assert coordinator.log(trial.key, attempt, []) is Decision.STOP
    coordinator.pause(trial.key, attempt)
    record = coordinator.history.trials[trial.key]
    assert (record.state, record.retries) == (State.WAITING, 0)
    assert record.reason == "paused by ann@box"
    asked(coordinator, "resume")
    assert next_trial(coordinator).key == trial.key
    coordinator.requeue(trial.key)
    drive(coordinator)
    undisturbed = open_sweep(made, tmp_path / "other")
    drive(undisturbed)
    assert story(coordinator) == story(undisturbed)


def test_what_is_set_holds_at_later_starts_until_the_command_says_otherwise(
    tmp_path: Path,
) -> None:
    made = make(trials=2)
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator, 1)
    said = asked(coordinator, "set", values={"sweep.trials": 4, "sweep.max_concurrent": 1})
    assert said.startswith("sweep.trials is 4 from now on, sweep.max_concurrent is 1 from now on")
    assert coordinator.spec.sweep.trials == 4
    coordinator.close()  # kill -9

    def start(*, trials: int) -> Coordinator:
        spec, space = make(trials=trials)
        kept = with_changes(spec, read_history(RunFolder(tmp_path).ledger))
        return open_sweep((kept, space), tmp_path)

    again = start(trials=2)
    assert (again.spec.sweep.trials, again.spec.sweep.max_concurrent) == (4, 1)
    assert again.history.spec["sweep"]["trials"] == 4  # for all that show it
    again.close()
    typed = start(trials=3)
    assert (typed.spec.sweep.trials, typed.spec.sweep.max_concurrent) == (3, 1)
    typed.close()
    last = start(trials=2)
    assert (last.spec.sweep.trials, last.spec.sweep.max_concurrent) == (2, 1)
    assert drive(last) == 1


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"sweep.trials": 0}, "sweep.trials = 0: must be 1 or more."),
        ({"sweep.trials": None}, "sweep.trials: random needs a number of trials."),
        ({"sweep.repeats": 2}, "sweep.repeats cannot be set while a sweep runs"),
        ({}, "nothing cannot be set while a sweep runs"),
    ],
)
def test_what_cannot_be_set(tmp_path: Path, values: dict[str, object], why: str) -> None:
    coordinator = open_sweep(make(trials=2), tmp_path)
    assert refused(coordinator, "set", values=values) == why
    assert coordinator.spec.sweep.trials == 2
