"""Ledgers for tests: the events of a sweep, written down trial by trial."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sweeps.core.cost import Parts
from sweeps.ledger.events import (
    Ask,
    Attempt,
    Checkpoint,
    End,
    Event,
    Interrupt,
    Report,
    Start,
)
from sweeps.ledger.events import (
    Sweep as SweepBegins,
)
from sweeps.ledger.history import History
from sweeps.ledger.ledger import Ledger, read_ledger
from sweeps.storage.durable_writes import write_text
from sweeps.storage.run_folder import RunFolder

EXAMPLES = 64  # a trial's budget


BOX = Attempt(host="box", pid=1)
# What one measurement of a config alone may say.
PARTS = Parts(
    micro_s=0.02,
    tokens=300.0,
    padded=400.0,
    passes_mb=500.0,
    held_mb=450.0,
    update_s=0.01,
    update_mb=20.0,
    state_mb=8.0,
)
Kind = TypeVar("Kind", bound=Event)


def read(ledger: Path) -> list[Event]:
    """The events of a ledger; none if it has not begun."""
    found: list[Event] = []
    if ledger.exists():
        read_ledger(ledger, found.append)
    return found


def of_kind(events: Iterable[Event], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def new_ledger(path: Path, *reasons: str) -> Ledger:
    """A ledger with an interrupt for each reason."""
    ledger = Ledger(path, lambda _: None)
    for reason in reasons:
        ledger.append(Interrupt(reason=reason))
    return ledger


def history_of(events: Iterable[Event]) -> History:
    history = History()
    for event in events:
        history.apply(event)
    return history


class Sweep:
    """Collects events; trials are numbered in the order in which they are added."""

    def __init__(self, space: Mapping[str, Any] | None = None, **sweep: Any) -> None:
        settings = {
            "metric": "eval_loss",
            "direction": "minimize",
            "repeats": 1,
            "trials": None,
            "evaluations": 4,
            "budget": {"examples": EXAMPLES, "epochs": None},
            "space": dict(space or {}),
            "when": {},
            **sweep,
        }
        self.metric = settings["metric"]
        self.evaluations = settings["evaluations"]
        self.spec = {"name": "lr_grid", "trainer": {"optim": "adamw_torch"}, "sweep": settings}
        self.now = 1000.0
        self.events: list[Event] = []
        self.add(SweepBegins(name="lr_grid", spec=self.spec))
        self.add(BOX)

    def add(self, event: Event) -> None:
        self.now += 1
        self.events.append(replace(event, time=self.now))

    def base(self, value: float) -> None:
        self.add(self._report("base", 0, value, 0))

    def checkpoint(self, key: str, step: int) -> None:
        self.add(Checkpoint(trial=key, attempt=1, step=step, path="x", bytes=1))

    def end(self, key: str, state: str, **fields: Any) -> None:
        self.add(End(trial=key, attempt=1, state=state, **fields))

    def trial(
        self,
        values: Mapping[str, Any],
        losses: Sequence[float] = (),
        state: str | None = "completed",
        *,
        number: int | None = None,
        config: int | None = None,
        repeat: int = 0,
        start: bool = True,
        kind: str = "",
        reason: str = "",
        totals: Mapping[str, float] | None = None,
    ) -> str:
        """One trial's whole story; `state` None leaves it running. Returns its key."""
        number = len(of_kind(self.events, Ask)) if number is None else number
        key = f"{number:010x}"
        self.add(
            Ask(
                trial=key,
                number=number,
                config=number if config is None else config,
                repeat=repeat,
                seed=repeat,
                choices={},
                params=dict(values),
            )
        )
        if start:
            self.add(Start(trial=key, attempt=1, worker="w0", device="cpu", step=0))
        for index, loss in enumerate(losses, start=1):
            pruned = state == "pruned" and index == len(losses)
            report = self._report(key, index, loss, number)
            self.add(replace(report, decision="prune") if pruned else report)
        if state is not None:
            self.end(key, state, kind=kind, reason=reason, totals=totals or {})
        return key

    def history(self) -> History:
        return history_of(self.events)

    def write(self, folder: Path) -> Path:
        """The ledger in a run folder."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(event.to_json()) + "\n" for event in self.events)
        (folder / "ledger.jsonl").write_text(lines)
        return folder

    def best(self, folder: RunFolder, number: int, step: int) -> None:
        """best/ as it is found by its facts: a checkpoint of trial `number`."""
        facts = {"trial": f"{number:010x}", "number": number, "step": step, "eval_loss": 1.0}
        write_text(folder.best / "trial.yaml", json.dumps({**facts, "proof": {}}))

    def _report(self, key: str, index: int, value: float, number: int) -> Report:
        metrics = {
            "eval_loss": 10.0 - value,
            "train_loss": value + 0.1,
            self.metric: value,
            "seconds": 1.5 * index,
            "tokens_per_second": 1000.0 + number,
            "peak_memory_mb": 400.0 + number,
            "optimizer_state_mb": 1.5,
        }
        examples = EXAMPLES * index // self.evaluations
        return Report(
            trial=key,
            attempt=1,
            index=index,
            step=4 * index,
            examples=examples,
            tokens=20 * examples,
            metrics=metrics,
            decision="continue",
        )
