"""Ledgers for tests: the events of a sweep, written down trial by trial."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.ledger.history import History
from sweeps.storage.durable_writes import write_text
from sweeps.storage.run_folder import RunFolder

EXAMPLES = 64  # a trial's budget


def history_of(events: Iterable[dict[str, Any]]) -> History:
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
        self.events: list[dict[str, Any]] = []
        self.add("sweep", name="lr_grid", spec=self.spec)
        self.add("attempt", host="box", pid=1)

    def add(self, event: str, **fields: Any) -> None:
        self.now += 1
        self.events.append({"event": event, "time": self.now, **fields})

    def base(self, value: float) -> None:
        self.add("report", **self._report(0, value, 0), decision="continue")

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
        asked = sum(event["event"] == "ask" for event in self.events)
        number = asked if number is None else number
        key = f"{number:010x}"
        self.add(
            "ask",
            trial=key,
            number=number,
            config=number if config is None else config,
            repeat=repeat,
            seed=repeat,
            params=dict(values),
        )
        if start:
            self.add("start", trial=key, attempt=1, worker="w0", device="cpu")
        for index, loss in enumerate(losses, start=1):
            pruned = state == "pruned" and index == len(losses)
            decision = "prune" if pruned else "continue"
            self.add("report", trial=key, **self._report(index, loss, number), decision=decision)
        if state is not None:
            told = {"totals": dict(totals)} if totals else {}
            self.add("end", trial=key, state=state, kind=kind, reason=reason, **told)
        return key

    def history(self) -> History:
        return history_of(self.events)

    def write(self, folder: Path) -> Path:
        """The ledger in a run folder."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(event) + "\n" for event in self.events)
        (folder / "ledger.jsonl").write_text(lines)
        return folder

    def best(self, folder: RunFolder, number: int, step: int) -> None:
        """best/ as it is found by its facts: a checkpoint of trial `number`."""
        facts = {"trial": f"{number:010x}", "number": number, "step": step, "eval_loss": 1.0}
        write_text(folder.best / "trial.yaml", json.dumps({**facts, "proof": {}}))

    def _report(self, index: int, value: float, number: int) -> dict[str, Any]:
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
        return {
            "index": index,
            "step": 4 * index,
            "examples": examples,
            "tokens": 20 * examples,
            "metrics": metrics,
        }
