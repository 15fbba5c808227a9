"""Tune's side of the workers: one suggestion for each that a device can hold, and who died."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from orchestrator.coordinator.actor import CoordinatorActor


class WorkerSearcher(Searcher):  # type: ignore[misc]
    """Suggests workers while there is work; what they train is between them and the Coordinator."""

    def __init__(self, coordinator: CoordinatorActor, slots: Callable[[], int]) -> None:
        super().__init__()
        self._coordinator = coordinator
        self._slots = slots
        self._alive: set[str] = set()
        self._count = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self._alive) >= self._slots():
            return None
        if self._coordinator.is_done():
            return str(Searcher.FINISHED)
        if not self._coordinator.wants_worker():
            return None
        self._alive.add(trial_id)
        self._count += 1
        return {"worker": self._count}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._alive.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune is the executor, the ledger is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its ledger, never from Tune's files")


class Deaths(tune.Callback):  # type: ignore[misc]
    """Tells the Coordinator whose process has died, so that its trial is handed out again.

    Attributes:
        placed: workers that were given their devices and a process so far.
    """

    def __init__(self, coordinator: CoordinatorActor) -> None:
        self._coordinator = coordinator
        self.placed = 0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.placed += 1

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune's own `get_error` reads a copy that is not there yet.
        path = Path(trial.error_file or "")
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        words = text.strip().splitlines() or ["unknown"]
        self._coordinator.worker_died(f"worker {trial.config['worker']}", words[-1][:300])


class LeavesAtOnce(tune.Callback):  # type: ignore[misc]
    """Ends Tune's loop with an error at its next step after `leave`."""

    def __init__(self) -> None:
        self._is_left = False  # not an Event, since Tune pickles its callbacks

    def leave(self) -> None:
        self._is_left = True

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._is_left:
            raise RuntimeError("the sweep was left at once")
