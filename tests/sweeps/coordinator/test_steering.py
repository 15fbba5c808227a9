"""What users ask of a sweep: carried out once, in the ledger, and still there after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.driving import (
    EVALUATIONS,
    LR,
    OPTIM,
    SMALL,
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

from orchestrator.terminal.progress import is_over
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
    assert said == "trial 1 commits a checkpoint of its last optimizer step and ends as stopped"
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
        "no more trials begin; trial 2 commits a checkpoint of its last optimizer step and ends as "
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
    assert coordinator.history.interrupt
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
    assert "trial 0 commits a checkpoint of its last optimizer step and waits" in said
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
        ({"sweep.evaluations": 2}, "sweep.evaluations cannot be set while a sweep runs"),
        ({"sweep.finalists": 2}, "sweep.finalists = 2: the best configs get further seeds, and "),
        ({"sweep.repeats": 0}, "sweep.repeats = 0: must be 1 or more."),
        ({}, "nothing cannot be set while a sweep runs"),
    ],
)
def test_what_cannot_be_set(tmp_path: Path, values: dict[str, object], why: str) -> None:
    coordinator = open_sweep(make(trials=2), tmp_path)
    assert refused(coordinator, "set", values=values).startswith(why)
    assert coordinator.spec.sweep.trials == 2


def test_seeds_become_more_and_not_fewer(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=2, repeats=2), tmp_path)
    why = "sweep.repeats = 1: may become more, and not less."
    assert refused(coordinator, "set", values={"sweep.repeats": 1}) == why


@pytest.mark.parametrize(
    ("set_to", "before"),
    [
        ({"sweep.repeats": 3, "sweep.finalists": 2}, 2),
        ({"sweep.repeats": 3}, 2),
        ({"sweep.repeats": 3}, 4),  # when the search is over
        ({"sweep.repeats": 3, "sweep.finalists": 1}, 4),
    ],
)
def test_seeds_that_are_set_are_trained_as_if_the_command_had_said_so(
    tmp_path: Path, set_to: dict[str, int], before: int
) -> None:
    words = {key.removeprefix("sweep."): value for key, value in set_to.items()}
    made = make(trials=4, search="random")
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator, before)
    asked(coordinator, "set", values=set_to)
    copied = read_history(RunFolder(tmp_path).ledger)
    coordinator.close()  # kill -9
    spec, space = made
    again = open_sweep((with_changes(spec, copied), space), tmp_path)
    drive(again)
    assert again.is_finished
    typed = open_sweep(make(trials=4, search="random", **words), tmp_path / "typed")
    drive(typed)

    def seeds(of: Coordinator) -> set[tuple[object, int]]:
        return {(record.values[LR], record.repeat) for record in of.history.trials.values()}

    assert seeds(again) == seeds(typed)
    replayed = open_sweep((with_changes(spec, copied), space), tmp_path)
    assert story(replayed) == story(again)
    assert [t.state for t in replayed.study.trials] == [t.state for t in again.study.trials]


def test_seeds_that_are_set_while_the_sweep_runs(tmp_path: Path) -> None:
    """Also of configs that had all their seeds; and a restart decides as the start before."""
    coordinator = open_sweep(make(trials=3, repeats=2), tmp_path)
    drive(coordinator)
    assert coordinator.is_finished
    next_one = asked(coordinator, "add", values={LR: 0.5})
    assert next_one
    asked(coordinator, "set", values={"sweep.repeats": 3, "cluster.price_per_device_hour": 2.5})
    drive(coordinator)
    assert coordinator.is_finished
    configs = {record.config for record in coordinator.history.trials.values()}
    assert {len(coordinator.history.repeats(config)) for config in configs} == {3}
    assert coordinator.history.spec["cluster"]["price_per_device_hour"] == 2.5


def config_numbers(coordinator: Coordinator) -> list[int]:
    return [record.config for record in coordinator.history.trials.values()]


def test_a_config_inside_the_space_is_trained_ranked_and_told_to_optuna(tmp_path: Path) -> None:
    made = make(trials=3)
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator, 1)
    said = asked(coordinator, "add", values={LR: 2e-3})  # the other key as the base config has it
    assert said == (
        "trial 1 trains as soon as a worker is free; it is ranked with the others; Optuna is told "
        "of it"
    )
    trial = next_trial(coordinator)
    assert trial.values == {LR: 2e-3, OPTIM: "sgd"}
    coordinator.requeue(trial.key)
    assert drive(coordinator) == 3
    assert len(coordinator.history.trials) == 4  # the search has its own number of trials
    assert coordinator.is_finished
    (row,) = [row for row in ranked(coordinator.history) if row.key == trial.key]
    assert row.rank is not None
    assert row.origin == "added"
    told = coordinator.study.trials[1]
    assert (told.state, told.params[LR]) == (TrialState.COMPLETE, 2e-3)
    replayed = open_sweep(made, tmp_path)
    assert story(replayed) == story(coordinator)
    assert [t.params for t in replayed.study.trials] == [t.params for t in coordinator.study.trials]


@pytest.mark.parametrize("values", [{LR: 0.5}, {"trainer.weight_decay": 0.1, LR: 1e-3}])
def test_a_config_outside_the_space_is_ranked_and_not_told_to_optuna(
    values: dict[str, float], tmp_path: Path
) -> None:
    made = make(trials=3, search="tpe", repeats=2)
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator, 1)
    assert "its space does not hold it" in asked(coordinator, "add", values=values)
    trial = next_trial(coordinator)
    assert values.items() <= trial.values.items()
    assert trial.config["trainer"]["learning_rate"] == values[LR]
    coordinator.requeue(trial.key)
    drive(coordinator)
    assert coordinator.is_finished
    added = coordinator.history.trials[trial.key]
    assert len(coordinator.history.repeats(added.config)) == 2  # as many seeds as the others
    assert added.config in config_ranks(coordinator.history)
    assert len(coordinator.study.trials) == 3
    undisturbed = open_sweep(made, tmp_path / "other")
    drive(undisturbed)
    assert [t.params for t in coordinator.study.trials] == [
        t.params for t in undisturbed.study.trials
    ]
    assert is_over(coordinator.history)
    replayed = open_sweep(made, tmp_path)
    assert story(replayed) == story(coordinator)


def test_a_config_that_is_there_already_and_one_that_cannot_be(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=1), tmp_path)
    drive(coordinator)
    values = dict(next(iter(coordinator.history.trials.values())).values)
    said = refused(coordinator, "add", values=values)
    assert said == "trial 0 is of this config already: it is completed"
    assert "no key that a trial may vary" in refused(coordinator, "add", values={"seed": 3})


def test_an_added_config_of_a_grid_is_not_tried_twice(tmp_path: Path) -> None:
    coordinator = open_sweep(make(SMALL, search="grid", trials=None), tmp_path)
    asked(coordinator, "add", values={LR: 1e-3, OPTIM: "adamw_torch"})
    assert drive(coordinator) == 4
    assert coordinator.is_finished
    assert is_over(coordinator.history)


def test_an_added_trial_is_there_after_a_kill_and_added_once(tmp_path: Path) -> None:
    made = make(trials=2)
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator)
    assert coordinator.is_finished
    request = make_request("add", values={LR: 0.5}, by="ann@box")
    coordinator.take(request)
    assert not coordinator.is_finished  # a sweep that has ended goes on with it
    coordinator.close()
    again = open_sweep(made, tmp_path)
    assert again.take(request).is_done
    assert len(again.history.trials) == 3
    assert drive(again) == 1
    assert again.is_finished


def test_a_clone_differs_in_the_keys_that_were_given(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=2), tmp_path)
    drive(coordinator, 1)
    parent = next(iter(coordinator.history.trials.values()))
    asked(coordinator, "clone", parent.key, values={"trainer.weight_decay": 0.1})
    trial = next_trial(coordinator)
    expected = dict(coordinator.trial(parent.key).config)
    expected["trainer"] = {**expected["trainer"], "weight_decay": 0.1}
    assert trial.config == expected
    train(coordinator, trial)
    (row,) = [row for row in ranked(coordinator.history) if row.key == trial.key]
    assert (row.origin, row.rank is None) == ("clone of 0", False)


def test_a_warm_clone_is_another_trial_that_is_never_ranked(tmp_path: Path) -> None:
    made = make(trials=1, keep=1)
    coordinator = open_sweep(made, tmp_path)
    folder = RunFolder(tmp_path)
    parent = next_trial(coordinator)
    attempt = begin(coordinator, parent)
    for index in range(1, EVALUATIONS + 1):
        coordinator.report(parent.key, attempt, report(index, 3.0 - index / 10))
        folder.checkpoint(parent.key, 2 * index).mkdir(parents=True)
        coordinator.committed(parent.key, attempt, 2 * index, 1)
    coordinator.end(ending(parent.key, attempt, State.COMPLETED))
    values = {"trainer.weight_decay": 0.1}
    asked(coordinator, "clone", parent.key, values=values)
    cold = next_trial(coordinator)
    said = asked(coordinator, "clone", parent.key, values=values, warm=True)
    assert "it is not ranked, as it has learnt from more examples" in said
    warm = next_trial(coordinator)
    assert warm.config == {**cold.config, "warm": {"trial": parent.key, "step": 8}}
    assert warm.key != cold.key
    # The cold one is better, and displaces its parent, whose weights the warm one still needs.
    train(coordinator, cold, lambda trial, index: 1.0)
    assert folder.checkpoint(parent.key, 8).is_dir()
    coordinator.close()
    again = open_sweep(made, tmp_path)
    assert folder.checkpoint(parent.key, 8).is_dir()
    (handed,) = [again.ask()]
    assert handed == warm
    train(again, handed, lambda trial, index: 0.1)
    assert not folder.checkpoint(parent.key, 8).is_dir()
    found = best(again.history)
    assert found is not None
    assert found.record.key == cold.key
    (row,) = [row for row in ranked(again.history) if row.key == warm.key]
    assert (row.rank, row.origin) == (None, "clone of 0, warm")
    assert again.is_finished
    assert is_over(again.history)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"peft.r": 16}, "peft.r: the parent's weights would not fit; leave out --warm"),
        ({}, "trial 0 has no checkpoint left: clone it without --warm"),
    ],
)
def test_weights_that_a_clone_cannot_begin_with(
    values: dict[str, int], why: str, tmp_path: Path
) -> None:
    coordinator = open_sweep(make(trials=1), tmp_path)
    drive(coordinator)
    (parent,) = coordinator.history.trials
    assert why in refused(coordinator, "clone", parent, values=values, warm=True)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["random", "tpe", "cmaes"])
def test_a_stopped_trial_that_is_resumed_is_a_further_trial_of_optunas(
    search: str, tmp_path: Path
) -> None:
    space = {LR: "tag(log, interval(1e-5, 1e-2))", "trainer.weight_decay": "interval(0.0, 0.1)"}
    made = make(space, trials=4, search=search)
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator, 1)
    trial = next_trial(coordinator)
    attempt = half(coordinator, trial)
    asked(coordinator, "stop", trial.key)
    coordinator.pause(trial.key, attempt)
    said = asked(coordinator, "resume", trial.key)
    assert "trial 1 goes on from its checkpoint of step 4, as soon as a worker is free" in said
    coordinator.close()  # kill -9
    again = open_sweep(made, tmp_path)
    resumed = next_trial(again)
    assert resumed == trial
    attempt = begin(again, resumed)
    for index in (3, 4):
        assert again.report(trial.key, attempt, report(index, 9.0)) is Decision.CONTINUE
    again.end(ending(trial.key, attempt, State.COMPLETED))
    drive(again)
    assert len(again.history.trials) == 4
    assert again.is_finished
    first, further = again.study.trials[1:3]
    assert (first.state, further.state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert first.params == further.params
    replayed = open_sweep(made, tmp_path)
    assert story(replayed) == story(again)
    assert [(t.state, t.params, t.value) for t in replayed.study.trials] == [
        (t.state, t.params, t.value) for t in again.study.trials
    ]
    assert is_over(again.history)


def test_a_pruned_trial_that_is_resumed_begins_anew_and_is_not_pruned_again(
    tmp_path: Path,
) -> None:
    made = make(trials=6, pruner="median", pruner_options={"n_startup_trials": 1})
    coordinator = open_sweep(made, tmp_path)
    drive(coordinator)
    pruned = [r for r in coordinator.history.trials.values() if r.state is State.PRUNED]
    assert pruned
    said = asked(coordinator, "resume", pruned[0].key)
    assert f"trial {pruned[0].number} begins anew" in said
    assert not coordinator.is_finished
    assert drive(coordinator) == 1
    assert pruned[0].state is State.COMPLETED
    assert story(open_sweep(made, tmp_path)) == story(coordinator)


def test_trials_that_cannot_be_resumed(tmp_path: Path) -> None:
    coordinator = open_sweep(make(trials=3), tmp_path)
    drive(coordinator, 1)
    trial = next_trial(coordinator)
    attempt = begin(coordinator, trial)
    first = next(iter(coordinator.history.trials))
    assert "has spent its budget" in refused(coordinator, "resume", first)
    assert "has not ended" in refused(coordinator, "resume", trial.key)
    coordinator.end(ending(trial.key, attempt, State.DIVERGED))
    assert "diverged, and would again" in refused(coordinator, "resume", trial.key)
