"""The sweep as an Optuna study, made from its history: for importances and for optuna-dashboard.

study.db is written and never read back; the ledger is the truth.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from sweeps.core.trial import OUTSIDE, State
from sweeps.ledger.history import History, Record
from sweeps.search.quick import following, is_waiting
from sweeps.search.study import STUDY_NAME
from sweeps.search.study_replay import distribution
from sweeps.space.parser import space_of


def study_of(history: History) -> optuna.Study:
    """An in-memory study, a trial for each config: the mean of its repeats.

    Without reports: of a long sweep Optuna would copy hundreds of thousands.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=STUDY_NAME, direction=history.direction)
    study.add_trials(_trials(history, reports=False))
    return study


def completed_study(history: History) -> optuna.Study:
    """An in-memory study of all configs with a completed repeat: the mean of those.

    For importances: a config whose further repeats are still to come, or fail, does not leave it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=STUDY_NAME, direction=history.direction)
    kinds = {each.name: distribution(each) for each in space_of(history.spec).dimensions}
    for config, (first, *_) in history.by_config().items():
        mean = history.config_mean(config)
        if mean is not None:
            params = dict(first.picked)
            own = {name: kinds[name] for name in params}
            trial = optuna.trial.create_trial(params=params, distributions=own, value=mean)
            study.add_trial(trial)
    return study


def has_found(history: History) -> bool:
    """Whether `sweep.search=quick` has ended before its `sweep.trials` were spent."""
    if history.spec["sweep"].get("search") != "quick":
        return False
    study, (dimension,) = study_of(history), space_of(history.spec).dimensions
    tried = {trial.params[dimension.name] for trial in study.get_trials(deepcopy=False)}
    first = {entry[dimension.name] for entry in history.spec["sweep"]["first"]}
    return first <= tried and not is_waiting(study) and following(study, dimension) is None


def export_study(history: History, path: Path) -> None:
    """Write the study as an SQLite file, with the reports of each config's first run.

    An older one is replaced as a whole.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{draft}")
    try:
        study = optuna.create_study(
            storage=storage, study_name=history.name or STUDY_NAME, direction=history.direction
        )
        study.add_trials(_trials(history, reports=True))
    finally:
        storage.engine.dispose()
    os.replace(draft, path)


def _trials(history: History, *, reports: bool) -> list[FrozenTrial]:
    space = space_of(history.spec)
    kinds = {dimension.name: distribution(dimension) for dimension in space.dimensions}
    return [
        _trial(history, records, kinds, reports=reports)
        for config, records in history.by_config().items()
        if config < OUTSIDE
    ]


def _trial(
    history: History,
    records: Sequence[Record],
    kinds: dict[str, BaseDistribution],
    *,
    reports: bool,
) -> FrozenTrial:
    first = records[0]
    settled = history.is_settled(first.config)
    state = _state(records) if settled else TrialState.RUNNING
    began = min((record.started for record in records if record.started), default=None)
    ended = max((record.ended for record in records if record.ended), default=None)
    return FrozenTrial(
        number=0,  # given by the study
        trial_id=0,
        state=state,
        value=history.config_mean(first.config) if state is TrialState.COMPLETE else None,
        values=None,
        params=dict(first.picked),
        distributions={name: kinds[name] for name in first.picked},
        user_attrs={"trial": first.key, "number": first.number},
        system_attrs={},
        intermediate_values={
            index: report.metrics[history.metric]
            for index, report in (first.reports if reports else {}).items()
        },
        datetime_start=_clock(began) or _clock(history.began),
        datetime_complete=_clock(ended) if settled else None,
    )


def _state(records: Sequence[Record]) -> TrialState:
    """What Optuna is told: an early value never passes for a final one."""
    states = {record.state for record in records}
    if states == {State.COMPLETED}:
        return TrialState.COMPLETE
    short = {State.COMPLETED, State.PRUNED, State.STOPPED}
    return TrialState.PRUNED if states <= short else TrialState.FAIL


def _clock(time_s: float | None) -> datetime | None:
    """Optuna keeps local times without a zone; ours are UTC, so that folders compare."""
    return None if time_s is None else datetime.fromtimestamp(time_s, UTC).replace(tzinfo=None)
