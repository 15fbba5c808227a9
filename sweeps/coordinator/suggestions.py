"""Decides which config to try next, and tells Optuna the reports and results.

A function of the ledger, like the study itself: replaying asks, reports and ends in their order
gives the same state again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna

from sweeps.config.spec import Spec
from sweeps.config.trial_config import config_of, trial_key
from sweeps.core.trial import OUTSIDE, Report, State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.search.study import Search, Suggestion, Verdict, first_untried, picked_id
from sweeps.space.space import Space

log = logging.getLogger(__name__)

_DOUBLES_BEFORE_LOOKING = 20  # repeated suggestions before untried configs are sought by hand
_DOUBLES_BEFORE_GIVING_UP = 100  # then there is nothing new to find


class Suggestions:
    """Suggests configs and their repeats, each once; tells reports and results.

    Args:
        history: of the sweep; kept by the Coordinator.
        write: appends an event to the ledger and folds it into `history`.
    """

    def __init__(
        self, spec: Spec, space: Space, history: History, write: Callable[[Event], None]
    ) -> None:
        self._spec = spec
        self._space = space
        self._history = history
        self._write = write
        self._search = Search(spec.sweep, space, spec.seed)
        self._tried: set[str] = set()
        self._told: set[int] = set()  # Optuna trials that have their result
        self._repeatable: dict[int, None] = {}  # configs that may be worth another seed, in order
        self._repeated: set[int] = set()  # those of them that are not, with these sweep.repeats
        self._exhausted = False
        self._seeds: tuple[Any, Any] = (None, None)  # repeats and finalists of the last start

    @property
    def study(self) -> optuna.Study:
        return self._search.study

    def replay_space(self, space: Space) -> None:
        """What the ledger says from here on was suggested in this space."""
        self._search.search_in(space)

    def change(self, spec: Spec) -> None:
        """Go on with a spec that differs in keys that may change; the history has them already."""
        self._spec = spec
        self.seeds_may_change()

    def settle(self) -> None:
        """End the replay, and find out whether everything has been tried."""
        self._search.search_in(self._space)
        self._search.settle()
        finite = not self._space.is_continuous
        used_up = finite and first_untried(self._space, self._tried) is None
        self._exhausted = used_up or self._search.has_found

    # ------------------------------------------------------------------ what to try

    def wants_config(self) -> bool:
        """Whether another config may be tried."""
        if self._exhausted:
            return False
        limit = self._spec.sweep.trials
        return limit is None or self._history.config_count < limit

    def suggest(self) -> Suggestion | None:
        """A config that was not tried before. Repeated ones are told their known value."""
        doubles = 0
        while self.wants_config():
            suggestion = self._next(doubles)
            if suggestion is None:
                self._exhausted = not self._search.is_waiting
                return None
            self._tried.add(picked_id(suggestion.picked))
            key = trial_key(config_of(self._spec, suggestion.values))
            if key not in self._history.trials:
                self._repeatable[suggestion.number] = None
                return suggestion
            doubles += 1
            self._write(events.Duplicate(trial=None, duplicate=key, **suggestion.to_json()))
            self._tell_double(suggestion.number, self._history.trials[key])
        return None

    def repeat(self) -> Suggestion | None:
        """The next seed of a config that is worth it; with a pruner, after its first run ended."""
        sweep = self._spec.sweep
        if sweep.repeats == 1:
            return None
        first_alone = sweep.pruner != "none"
        among = self._history.finalists
        if sweep.finalists is None:
            among = tuple(config for config in self._repeatable if config not in self._repeated)
        for config in among:
            repeats = self._history.repeats(config)
            spoilt = any(r.state.is_finished() and r.state is not State.COMPLETED for r in repeats)
            if len(repeats) >= sweep.repeats or spoilt:
                self._repeated.add(config)
            elif repeats and (not first_alone or repeats[0].state is State.COMPLETED):
                return Suggestion(config, {}, repeats[0].values, repeat=len(repeats))
        return None

    def finalists(self) -> events.Finalists | None:
        """The best configs, once the search is over; None before that, and if they are chosen.

        The mean of few seeds is more often good by luck, and further seeds are what shows it: so
        a config of one seed may be chosen before one that has them all.
        """
        most, among = self._spec.sweep.finalists, self._history.config_count
        if most is None or self.wants_config() or self._history.unfinished():
            return None
        if self._history.chosen == (among, most):
            return None
        sign = self._history.sign
        means = {config: self._history.config_mean(config) for config in self._history.by_config()}
        ranked = sorted((sign * mean, config) for config, mean in means.items() if mean is not None)
        best = tuple(config for _, config in ranked[:most])
        return events.Finalists(configs=best, among=among, most=most) if best else None

    def _next(self, doubles: int) -> Suggestion | None:
        if self._spec.sweep.search == "grid" or doubles < _DOUBLES_BEFORE_LOOKING:
            return self._search.ask(self._tried)
        if doubles < _DOUBLES_BEFORE_GIVING_UP:
            return self._search.ask_untried(self._tried)
        log.warning("%d suggestions in a row were tried before: there is no other", doubles)
        return None

    # ------------------------------------------------------------------ what Optuna is told

    def seeds_may_change(self) -> None:
        """Tell the configs that are settled by now: a start, or `set`, may have other repeats and
        finalists.

        What was told stands: a config that gets more seeds is known to Optuna by those it had.
        """
        sweep = self._history.spec.get("sweep", {})
        seeds = sweep.get("repeats"), sweep.get("finalists")
        if seeds != self._seeds:
            self._seeds = seeds
            self._repeated.clear()
            for config in self._history.by_config():
                self.tell_result(config)

    def tell_report(self, record: Record, report: Report) -> Verdict:
        """Tell an intermediate value, and ask whether the trial should be pruned."""
        # The first repeat stands for its config: the others only confirm what it found.
        if not self._is_optunas(record):
            return Verdict(prune=False)
        value = report.metrics[self._spec.sweep.metric]
        verdict = self._search.report(record.config, report.index, value)
        return replace(verdict, prune=verdict.prune and not record.is_resumed)

    def _is_optunas(self, record: Record) -> bool:
        """Whether Optuna is told of a trial's reports."""
        is_told = record.config in self._told or record.config >= OUTSIDE
        return not (record.repeat or is_told)

    def replay_report(
        self, record: Record, report: Report, noted: Mapping[str, Any] | None
    ) -> None:
        """Do again what a report in the ledger did."""
        if self._is_optunas(record):
            value = report.metrics[self._spec.sweep.metric]
            self._search.replay_report(record.config, report.index, value, noted)

    def tell_result(self, config: int) -> None:
        """Tell how a config ended, once nothing more will come of it."""
        if config in self._told or config >= OUTSIDE or not self._history.is_settled(config):
            return
        self._told.add(config)
        states = {record.state for record in self._history.repeats(config)}
        mean = self._history.config_mean(config)
        if states == {State.COMPLETED} and mean is not None:
            self._search.complete(config, mean)
        elif states <= {State.COMPLETED, State.PRUNED, State.STOPPED}:
            self._search.prune(config)
        else:
            self._search.fail(config)

    def _tell_double(self, number: int, record: Record) -> None:
        value = self._history.config_mean(record.config)
        if record.state is State.COMPLETED and value is not None:
            self._search.complete(number, value)
        else:
            self._search.fail(number)  # no value is known: Optuna leaves a failed trial aside
        self._told.add(number)

    # ------------------------------------------------------------------ what users ask for

    def impose(self, picked: Mapping[str, Any]) -> Suggestion:
        """A further Optuna trial with these values."""
        suggestion = self._search.impose(picked)
        self._tried.add(picked_id(suggestion.picked))
        self._repeatable[suggestion.number] = None
        return suggestion

    def outside(self, config: int, *, is_warm: bool) -> None:
        """Note a config that Optuna's space does not hold; it gets as many seeds as others."""
        if not is_warm:
            self._repeatable[config] = None

    def is_told(self, config: int) -> bool:
        """Whether Optuna has heard how a config ended."""
        return config in self._told

    # ------------------------------------------------------------------ of other run folders

    @property
    def next_number(self) -> int:
        """The number of the next config."""
        return self._search.next_number

    def add_known(self, event: events.Known) -> None:
        """A trial was taken over: the search knows it as one of its own."""
        if not event.repeat:
            metric = self._spec.sweep.metric
            values = {int(each["index"]): each["metrics"][metric] for each in event.reports}
            self._search.add_known(event.choices, values)
            self._tried.add(picked_id(event.choices))
            self._repeatable[event.config] = None
        self.tell_result(event.config)

    def learn(self, event: events.Learnt) -> None:
        """Try the configs of another folder first."""
        self._search.try_first(event.first, self._space)

    # ------------------------------------------------------------------ replay

    def replay_request(self, event: events.Request) -> None:
        """Do again what a request in the ledger did to Optuna."""
        if event.verb == "set":
            self.seeds_may_change()
        configs = (event.values or {}).get("configs", {}) if event.verb == "resume" else {}
        for number in configs.values():
            self._search.replay_ask(self._history.repeats(number)[0].picked, by_hand=True)
            self._repeatable[number] = None

    def replay_ask(self, event: events.Ask | events.Duplicate) -> None:
        """Do again what an ask in the ledger did."""
        if isinstance(event, events.Ask) and event.repeat:
            return
        if event.config >= OUTSIDE:
            is_warm = isinstance(event, events.Ask) and event.warm is not None
            self.outside(event.config, is_warm=is_warm)
            return
        self._search.replay_ask(event.choices, by_hand=event.by_hand, first=event.first)
        self._tried.add(picked_id(event.choices))
        if isinstance(event, events.Duplicate):
            self._tell_double(event.config, self._history.trials[event.duplicate])
        else:
            self._repeatable[event.config] = None
