"""Which checkpoints stay on disk.

Their number does not grow with the number of trials, but for those that a user has stopped.
"""

from __future__ import annotations

import bisect
import shutil
import statistics
from collections.abc import Callable, Iterable

from sweeps.core.trial import State
from sweeps.ledger import events
from sweeps.ledger.events import Event
from sweeps.ledger.history import History, Record
from sweeps.storage.durable_writes import remove_tree
from sweeps.storage.run_folder import REMOVING_PREFIX, RunFolder, checkpoint_step

Place = tuple[int, float, int]  # minus the completed repeats, their signed mean, config
_LATEST = 2  # of an unfinished trial: where the newest is torn, the one before it is used


class Retention:
    """Removes what need not stay as the sweep goes on, looking only at what an event changed.

    Call `begin` first; then `kept_steps` holds after every call.
    """

    def __init__(
        self, folder: RunFolder, history: History, keep: int, write: Callable[[Event], None]
    ) -> None:
        self._folder = folder
        self._history = history
        self.keep = keep
        self._write = write
        self._judged: list[Place] = []  # the best first
        self._known: set[int] = set()

    def begin(self) -> None:
        """Look at every trial: a driver takes over, and may keep more or fewer than the last."""
        self._judged = _judged(self._history)
        self._known = {place[-1] for place in self._judged}
        self._tell([place[-1] for place in self._judged[self.keep :]])
        clean(self._folder, self._history, self.keep)

    def committed(self, record: Record) -> None:
        _clean_trial(self._folder, record, _own_steps(self._history, record))

    def ended(self, record: Record) -> None:
        """A trial has ended: its config may be judged now, and displace another."""
        config = record.config
        _clean_trial(self._folder, record, _own_steps(self._history, record))
        if record.warm is not None:  # its parent's checkpoint may have stayed for it
            parent = self._history.trials[record.parent]
            _clean_trial(self._folder, parent, kept_steps(self._history, self.keep)[record.parent])
        if config in self._known or not self._history.is_settled(config):
            return
        place = _place(self._history, config)
        if place is None:
            return
        self._known.add(config)
        bisect.insort(self._judged, place)
        if len(self._judged) > self.keep:
            displaced = max(place, self._judged[self.keep])[-1]
            self._tell([displaced])
            for other in self._history.repeats(displaced):
                _clean_trial(self._folder, other, self._history.held_steps(other.key))

    def _tell(self, displaced: Iterable[int]) -> None:
        """Write down whose checkpoints go: with further seeds their config may be the best."""
        records = [each for config in displaced for each in self._history.repeats(config)]
        if gone := tuple(record.key for record in records if record.checkpoints):
            self._write(events.Removed(trials=gone))


def kept_steps(history: History, keep: int) -> dict[str, set[int]]:
    """Trial key -> checkpoint steps to keep.

    An unfinished trial keeps its two latest checkpoints and its best so far, a trial that a user
    has stopped its latest. Of completed configs,
    the `keep` best keep the best checkpoint of each of their repeats; a config whose repeats are
    not all done is not judged yet. An unfinished trial displaces nothing of a completed one.
    """
    kept = {record.key: _own_steps(history, record) for record in history.trials.values()}
    for place in _judged(history)[keep:]:
        for record in history.repeats(place[-1]):
            kept[record.key] = history.held_steps(record.key)
    return kept


def clean(folder: RunFolder, history: History, keep: int) -> None:
    """Remove the checkpoints that need not stay, of all trials.

    What a worker is still writing has another name and is left alone.
    """
    kept = kept_steps(history, keep)
    for key, record in history.trials.items():
        _clean_trial(folder, record, kept[key])


def _judged(history: History) -> list[Place]:
    places = (_place(history, config) for config in history.by_config())
    return sorted(place for place in places if place and history.is_settled(place[-1]))


def _place(history: History, config: int) -> Place | None:
    """Where a config stands, as `sweeps.results.ranking` has it; None if no repeat completed."""
    values = history.config_values(config)
    return (-len(values), history.sign * statistics.fmean(values), config) if values else None


def _own_steps(history: History, record: Record) -> set[int]:
    return _wanted_steps(history, record) | history.held_steps(record.key)


def _wanted_steps(history: History, record: Record) -> set[int]:
    best = record.best(history.metric, history.direction)
    best_step = {best.step} & set(record.checkpoints) if best else set()
    if record.state is State.COMPLETED:
        return best_step
    if record.state is State.STOPPED:
        return set(sorted(record.checkpoints)[-1:])  # `resume` goes on from there
    if record.state.is_finished():
        return set()
    return best_step | set(sorted(record.checkpoints)[-_LATEST:])


def _clean_trial(folder: RunFolder, record: Record, kept: set[int]) -> None:
    for path in folder.checkpoints(record.key).glob(f"{REMOVING_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)  # of a kill in the middle of a removal
    for path in folder.checkpoints(record.key).glob("step-*"):
        step = checkpoint_step(path)
        if step is None or step in kept:
            continue
        # What a trial has committed but not told yet is left alone, until it has ended.
        if step in record.checkpoints or record.state.is_finished():
            remove_tree(path)
            record.checkpoints = [other for other in record.checkpoints if other != step]
