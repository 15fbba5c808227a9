"""Which checkpoints stay on disk. Their number does not grow with the number of trials."""

from __future__ import annotations

import shutil

from sweeps.files import REMOVING_PREFIX, RunFolder, checkpoint_step, remove_tree
from sweeps.history import History, Record
from sweeps.trial import State


def kept_steps(history: History, keep: int) -> dict[str, set[int]]:
    """Trial key -> checkpoint steps to keep.

    An unfinished trial keeps its latest checkpoint and its best so far. Of completed configs, the
    `keep` best keep the best checkpoint of each of their repeats; a config whose repeats are not
    all done is not judged yet. An unfinished trial displaces nothing of a completed one.
    """
    kept: dict[str, set[int]] = {}
    settled: list[tuple[float, int]] = []
    sign = 1 if history.direction == "minimize" else -1
    for config, repeats in history.by_config().items():
        for record in repeats:
            kept[record.key] = _own_steps(history, record)
        mean = history.config_mean(config)
        if history.is_settled(config) and mean is not None:
            settled.append((sign * mean, config))
    for _, config in sorted(settled)[keep:]:
        for record in history.repeats(config):
            kept[record.key] = set()
    return kept


def _own_steps(history: History, record: Record) -> set[int]:
    best = record.best(history.metric, history.direction)
    best_step = {best.step} & set(record.checkpoints) if best else set()
    if record.state is State.COMPLETED:
        return best_step
    if record.state.is_finished():
        return set()
    return best_step | ({max(record.checkpoints)} if record.checkpoints else set())


def clean(folder: RunFolder, history: History, keep: int, *, only: str | None = None) -> None:
    """Remove the checkpoints that need not stay; of trial `only`, or of all.

    What a worker is still writing has another name and is left alone.
    """
    kept = kept_steps(history, keep)
    for key in [only] if only else list(history.trials):
        for path in folder.checkpoints(key).glob(f"{REMOVING_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)  # of a kill in the middle of a removal
        record = history.trials[key]
        for path in folder.checkpoints(key).glob("step-*"):
            step = checkpoint_step(path)
            if step is None or step in kept[key]:
                continue
            # What a trial has committed but not told yet is left alone, until it has ended.
            if step in record.checkpoints or record.state.is_finished():
                remove_tree(path)
                record.checkpoints = [other for other in record.checkpoints if other != step]
