"""Optuna, told the truth: suggestions, pruning decisions and results, as a function of the ledger.

The study lives in memory and is rebuilt by replaying asks, reports and results in ledger order.
Sampler seeds come from the Optuna trial's number, so a rebuilt study suggests what the old one
would have suggested next.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from sweeps.config.spec import SearchSpec
from sweeps.search import quick, study_replay
from sweeps.search.first import first_picks
from sweeps.search.pruning import NOTING_PRUNERS, make_pruner
from sweeps.search.samplers import SAMPLERS, make_sampler, own_seed
from sweeps.space.space import Choice, Dimension, Label, Space
from sweeps.space.widening import is_same

log = logging.getLogger(__name__)

STUDY_NAME = "sweep"  # fixed: Hyperband hashes it into its brackets


@dataclass(frozen=True)
class Suggestion:
    """A config to try, under its Optuna trial number.

    Attributes:
        picked: dimension -> what was picked; empty for a repeat, which picks nothing anew.
        values: the config keys that this sets.
        by_hand: the sampler had no say in it.
        first: the part of `picked` that an entry of `sweep.first` gave; None if none did.
        repeat: 0 for a config's first run; repeats share its number.
    """

    number: int
    picked: Mapping[str, Label]
    values: Mapping[str, Any]
    by_hand: bool = False
    first: Mapping[str, Label] | None = None
    repeat: int = 0

    def to_json(self) -> dict[str, Any]:
        """As it stands in the ledger's ask."""
        return {
            "config": self.number,
            "choices": dict(self.picked),
            "by_hand": self.by_hand,
            "params": dict(self.values),
            **({} if self.first is None else {"first": dict(self.first)}),
        }


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the pruner says to a report.

    Attributes:
        noted: Optuna's attributes that it added to the trial, which a replay gives back; None if
            this pruner notes nothing, or was not asked.
    """

    prune: bool
    noted: Mapping[str, Any] | None = None


class Search:
    """One Optuna study over a space.

    A pruned trial is told as PRUNED with its intermediate values, a failed one as FAIL; nothing is
    left RUNNING that has ended, and no early value passes for a final one.
    """

    def __init__(self, spec: SearchSpec, space: Space, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._spec = spec
        self._space = space
        self._seed = seed
        self.study = self._new_study()
        self._first = first_picks(spec.first, space)  # those that are still to be tried
        self._trials: dict[int, optuna.Trial] = {}
        self._notes = spec.pruner in NOTING_PRUNERS
        # Filled while the ledger is replayed, then made into the study's trials. None: every step
        # is done again, since the sampler keeps a state, or the pruner finds its resource itself.
        self._past: list[study_replay.Past] | None = None
        if not (SAMPLERS[spec.search].keeps_state or "auto" in spec.pruner_options.values()):
            self._past = []
        self._grid = self._new_grid()

    def _new_study(self) -> optuna.Study:
        return optuna.create_study(
            study_name=STUDY_NAME,
            direction=self._spec.direction,
            pruner=make_pruner(self._spec),
        )

    def _new_grid(self) -> Iterator[dict[str, Label]] | None:
        return self._space.grid() if self._spec.search == "grid" else None

    def search_in(self, space: Space) -> None:
        """From here on the search is in this space, in which all earlier trials lie.

        Optuna takes no other options of a choice within a study, and leaves out trials of another
        interval if it looks for what they have in common. So the study is made anew, of the same
        trials in the new space. A sampler that keeps a state begins it anew.
        """
        if is_same(self._space, space):
            return
        self._space = space
        self._grid = self._new_grid()
        if told := self.study.get_trials(deepcopy=False):
            self.study = self._new_study()
            self._rebuild([study_replay.past_of(trial) for trial in told])

    def ask(self, tried: Set[str] = frozenset()) -> Suggestion | None:
        """The next config; None if a grid is used up, or as `quick.following`.

        Args:
            tried: what a grid passes over (see `picked_id`).
        """
        self.settle()
        if self._first:
            return self._ask_first(self._first.pop(0))
        if self._spec.search == "quick":
            (dimension,) = self._space.dimensions
            value = quick.following(self.study, dimension)
            return None if value is None else self._impose({dimension.name: value})
        if self._grid is None:
            return self._ask(sampler=self._sampler())
        picked = next((each for each in self._grid if picked_id(each) not in tried), None)
        return None if picked is None else self._impose(picked)

    @property
    def is_waiting(self) -> bool:
        """Whether `ask` may give another config once the running trials have ended."""
        return self._spec.search == "quick" and quick.is_waiting(self.study)

    @property
    def has_found(self) -> bool:
        """Whether `sweep.search=quick` has nothing more to try."""
        if self._first or self._spec.search != "quick" or self.is_waiting:
            return False
        return quick.following(self.study, self._space.dimensions[0]) is None

    def ask_untried(self, tried: set[str]) -> Suggestion | None:
        """A config that is not in `tried` (see `picked_id`), whatever the sampler would say.

        None where a finite space holds no other; a continuous one is drawn from at random.
        """
        self.settle()
        if self._space.is_continuous:
            random = optuna.samplers.RandomSampler(seed=own_seed(self._seed, self._next_number))
            return dataclasses.replace(self._ask(sampler=random), by_hand=True)
        picked = first_untried(self._space, tried)
        return None if picked is None else dataclasses.replace(self._impose(picked), by_hand=True)

    def impose(self, picked: Mapping[str, Label]) -> Suggestion:
        """A config that a user asks for, as an Optuna trial."""
        self.settle()
        return dataclasses.replace(self._impose(picked), by_hand=True)

    def replay_ask(
        self,
        picked: Mapping[str, Label],
        *,
        by_hand: bool = False,
        first: Mapping[str, Label] | None = None,
    ) -> None:
        """Do again an ask that the ledger holds."""
        if first in self._first:
            self._first.remove(dict(first or {}))
        if self._past is not None:
            self._past.append(study_replay.Past(picked=dict(picked)))
            return
        if by_hand or not SAMPLERS[self._spec.search].keeps_state:
            self._impose(picked)
            return
        again = self._ask(sampler=self._sampler()) if first is None else self._ask_first(first)
        if again.picked != dict(picked):
            log.warning(
                "%s suggests other values than it did before (trial %d): another version of "
                "Optuna? What was trained stands; later suggestions may differ.",
                self._spec.search,
                again.number,
            )

    def try_first(self, entries: Sequence[Mapping[str, Any]], space: Space) -> None:
        """Try more entries as those of `sweep.first` are; `space` holds them all."""
        self._first += [each for each in first_picks(entries, space) if each not in self._first]

    @property
    def next_number(self) -> int:
        """Of Optuna's trials."""
        return self._next_number if self._past is None else len(self._past)

    def add_known(self, picked: Mapping[str, Label], values: Mapping[int, float]) -> None:
        """Add a trial whose reports, by index, were made elsewhere: the pruner judges none."""
        number = self.next_number
        self.replay_ask(picked, by_hand=True)
        if self._past is not None:
            self._past[number].values.update(values)
            return
        for index, value in values.items():
            self._trials[number].report(value, index)
        if values:  # as if the study were made anew of the ledger
            study_replay.prepare_pruner(self.study)

    def replay_report(
        self, number: int, index: int, value: float, noted: Mapping[str, Any] | None
    ) -> None:
        """Do again what a report did; what was decided on it is in the ledger.

        Args:
            noted: as `report` returned it; None also in ledgers that have no such field. Then
                the pruner judges again, from here on step by step.
        """
        is_judged = index < self._spec.evaluations
        if noted is None and self._notes and is_judged:
            self.settle()
        if self._past is not None:
            self._past[number].values[index] = value
            self._past[number].noted.update(noted or {})
            return
        self._trials[number].report(value, index)
        if is_judged:
            self._trials[number].should_prune()  # for what the pruner notes

    def settle(self) -> None:
        """End the replay, if there was one: add the trials that it told of to the study."""
        past, self._past = self._past, None
        if past:
            self._rebuild(past)

    def _rebuild(self, past: Sequence[study_replay.Past]) -> None:
        kinds = {d.name: study_replay.distribution(d) for d in self._space.dimensions}
        self._trials = study_replay.rebuild(self.study, past, kinds, self._pick)

    def report(self, number: int, index: int, value: float) -> Verdict:
        """Tell an intermediate value, and ask the pruner.

        The last report is never a reason to prune: all of the budget has been spent by then.
        """
        self.settle()
        trial = self._trials[number]
        trial.report(value, index)
        if index >= self._spec.evaluations:
            return Verdict(prune=False)
        before = self._noted(number)
        prune = trial.should_prune()
        if not self._notes:
            return Verdict(prune=prune)
        after = self._noted(number)
        return Verdict(
            prune=prune, noted={name: after[name] for name in after if name not in before}
        )

    def _noted(self, number: int) -> Mapping[str, Any]:
        return self.study.get_trials(deepcopy=False)[number].system_attrs

    def complete(self, number: int, value: float) -> None:
        self._tell(number, TrialState.COMPLETE, value)

    def prune(self, number: int) -> None:
        self._tell(number, TrialState.PRUNED)

    def fail(self, number: int) -> None:
        self._tell(number, TrialState.FAIL)

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        if self._past is None:
            self.study.tell(self._trials.pop(number), value, state=state)
            return
        one = self._past[number]
        one.state, one.value = state, value
        if state is TrialState.PRUNED and one.values:
            one.value = one.values[max(one.values)]  # as `Study.tell` does

    def _impose(self, picked: Mapping[str, Label]) -> Suggestion:
        self.study.enqueue_trial(dict(picked))
        return self._ask(sampler=optuna.samplers.RandomSampler(seed=0))

    def _ask_first(self, given: Mapping[str, Label]) -> Suggestion:
        """Try what an entry of `sweep.first` gives; the sampler fills in what it leaves open."""
        sampler = self._sampler()
        self.study.enqueue_trial(dict(given))
        return dataclasses.replace(self._ask(sampler=sampler), first=dict(given))

    def _ask(self, *, sampler: optuna.samplers.BaseSampler) -> Suggestion:
        self.study.sampler = sampler
        trial = self.study.ask()
        picked = self._pick(trial)
        self._trials[trial.number] = trial
        return Suggestion(trial.number, picked, self._space.values(picked))

    def _pick(self, trial: optuna.Trial) -> dict[str, Label]:
        return self._space.walk(lambda dimension: _suggest(trial, dimension))

    def _sampler(self) -> optuna.samplers.BaseSampler:
        return make_sampler(self._spec, self._space, self._seed, self._next_number)

    @property
    def _next_number(self) -> int:
        return len(self.study.get_trials(deepcopy=False))


def _suggest(trial: optuna.Trial, dimension: Dimension) -> Label:
    if isinstance(dimension, Choice):
        chosen: Label = trial.suggest_categorical(dimension.name, dimension.labels)
        return chosen
    if dimension.integer:
        return trial.suggest_int(
            dimension.name, int(dimension.low), int(dimension.high), log=dimension.log
        )
    return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)


def first_untried(space: Space, tried: set[str]) -> dict[str, Label] | None:
    """The first combination of a finite space that is not in `tried` (see `picked_id`)."""
    candidates = itertools.islice(space.grid(), len(tried) + 1)  # one of so many is untried
    return next((picked for picked in candidates if picked_id(picked) not in tried), None)


def picked_id(picked: Mapping[str, Label]) -> str:
    """A combination as a set member."""
    return repr(sorted(picked.items()))
