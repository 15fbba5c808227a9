"""Run folders as real sweeps leave them, for the report: ledgers and metrics without training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.compose import compose_config, public
from sweeps.ledger.events import Ask, Attempt, End, Event, Report, Start
from sweeps.ledger.events import Sweep as SweepBegins
from sweeps.storage.run_folder import REPORT, RunFolder

RATE, SCHEDULE, ACCUMULATION = (
    "trainer.learning_rate",
    "trainer.lr_scheduler_type",
    "trainer.gradient_accumulation_steps",
)
OPTIMIZER, DECAY, RANK = "trainer.optim", "trainer.weight_decay", "peft.r"
BASE, EXAMPLES, STATE_MB = 5.63, 1600, {"adamw_torch": 0.94, "adafactor": 0.12, "sgd": 0.0}


@dataclass(kw_only=True)
class ShownSweep:
    """Writes a run folder of `trials` trials of the space of `joint`, over `slots` workers.

    Attributes:
        prunes: as asha does, and some trials diverge or fail.
        repeats: trials of each config.
        unfinished: trials that still run at its end.
        rows: of each metrics.jsonl; 0 writes none.
    """

    trials: int
    name: str = "joint"
    prunes: bool = False
    repeats: int = 1
    unfinished: int = 0
    evaluations: int = 8
    rows: int = 40
    slots: int = 4
    pause_s: float = 0.0
    seed: int = 0

    def write(self, root: Path) -> RunFolder:
        self._folder = RunFolder(root)
        self._lines: list[tuple[float, str]] = []
        self._random = random.Random(self.seed)
        self._folder.root.mkdir(parents=True, exist_ok=True)
        data = {"train_rows": 4338, "eval_rows": 300, "train_tokens": 163056, "truncated_rows": 2}
        self._folder.data.mkdir()
        (self._folder.data / REPORT).write_text(json.dumps({"report": data}))
        self._add(1000.0, SweepBegins(name=self.name, spec=self._spec()))
        self._add(1000.1, self._attempt(1))
        base = {"eval_loss": BASE, "train_loss": BASE}
        self._add(1001.0, self._report("base", 0, base))
        free = [(1002.0 + slot / 10, slot) for slot in range(self.slots)]
        for number in range(self.trials):
            if self.pause_s and number == self.trials // 2:
                free = [(max(free)[0] + self.pause_s, slot) for slot in range(self.slots)]
                self._add(free[0][0], self._attempt(2))
            start, slot = min(free)
            free.remove((start, slot))
            free.append((self._trial(number, start, slot), slot))
        self._folder.ledger.write_text(
            "".join(line for _, line in sorted(self._lines, key=lambda each: each[0]))
        )
        return self._folder

    def _trial(self, number: int, start: float, slot: int) -> float:
        """One trial's events and metrics; returns when it ended."""
        config = number // self.repeats
        pick = random.Random(1000 * self.seed + config)
        values: dict[str, Any] = {
            RATE: 10 ** pick.uniform(-5, -2),
            SCHEDULE: pick.choice(["constant_with_warmup", "linear", "cosine"]),
            ACCUMULATION: pick.choice([1, 2, 4]),
            OPTIMIZER: pick.choice(["adamw_torch", "adamw_torch", "adafactor", "sgd"]),
            RANK: pick.choice([4, 8, 16]),
        }
        if values[OPTIMIZER] == "adamw_torch":
            values[DECAY] = pick.uniform(0, 0.1)
        key, speed = f"{number:010x}", self._random.uniform(2300, 2900)
        asked = Ask(
            trial=key,
            number=number,
            config=config,
            repeat=number % self.repeats,
            seed=number % self.repeats,
            choices=values,
            params=values,
        )
        begun = Start(trial=key, attempt=1, worker=f"box:{100 + slot}", device="cuda:0", step=0)
        self._add(start, asked)
        self._add(start, begun)
        end = self._end_of(values)
        still_runs = number >= self.trials - self.unfinished
        state, last = "completed", self.evaluations
        if still_runs:
            state, last = "running", 3
        elif self.prunes and values[RATE] > 4e-3:
            state, last = ("failed", 1) if number % 3 == 0 else ("diverged", 3)
        elif self.prunes and end > 4.6:
            state, last = "pruned", 5
        now, measured = start, {}
        for index in range(1, last + 1):
            now = start + 3.0 * index * 2600 / speed
            share = index / self.evaluations
            loss = end + (BASE - end) * math.exp(-4 * share) + self._random.gauss(0, 0.01)
            if state in ("diverged", "failed"):
                loss = BASE + 9.0**index
            measured = {
                "eval_loss": loss,
                "train_loss": loss - 0.1,
                "seconds": now - start,
                "tokens_per_second": speed,
                "peak_memory_mb": 700 + 40 / values[ACCUMULATION] + 4 * values[RANK],
                "optimizer_state_mb": STATE_MB[values[OPTIMIZER]] * values[RANK] / 8,
            }
            report = self._report(key, index, measured)
            is_last = state == "pruned" and index == last
            decision = {"decision": "prune"} if is_last else {}
            self._add(now, Report(**{**vars(report), **decision}))
        self._metrics(key, end, last)
        if still_runs:
            return now
        totals = {
            **{k: v for k, v in measured.items() if "loss" not in k},
            "steps": 25.0 * last,
            "examples": EXAMPLES * last / self.evaluations,
            "tokens": 7500.0 * last,
        }
        why = {"diverged": "loss is 812.3", "failed": "RuntimeError: a <b>bad</b> device"}
        kind = {"diverged": "diverged", "failed": "bug"}.get(state, "")
        reason = why.get(state, "")
        self._add(
            now + 0.2,
            End(trial=key, attempt=1, state=state, kind=kind, reason=reason, totals=totals),
        )
        return now + 0.4

    def _end_of(self, values: Mapping[str, Any]) -> float:
        """The loss at the end: a bowl over the rate, and something of each other knob."""
        away = math.log10(values[RATE]) + 3.0
        loss = 3.45 + 0.35 * away**2 - 0.03 * math.log2(values[RANK])
        loss += {"adamw_torch": 0.0, "adafactor": 0.08, "sgd": 1.2}[values[OPTIMIZER]]
        loss += 0.06 * values[ACCUMULATION] + (0.05 if values[SCHEDULE] == "cosine" else 0)
        return min(loss, BASE + 0.2) + self._random.gauss(0, 0.01)

    def _metrics(self, key: str, end: float, last: int) -> None:
        if not self.rows:
            return
        path = self._folder.metrics(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for row in range(1, self.rows * last // self.evaluations + 1):
            share = row / self.rows
            loss = end + (BASE - end) * math.exp(-4 * share) + self._random.gauss(0, 0.1)
            examples = round(EXAMPLES * share)
            lines.append(json.dumps({"step": row * 5, "loss": loss, "examples": examples}))
        path.write_text("\n".join(lines) + "\n")

    def _report(self, key: str, index: int, metrics: Mapping[str, float]) -> Report:
        examples = EXAMPLES * index // self.evaluations
        return Report(
            trial=key,
            attempt=1,
            index=index,
            step=examples // 8,
            examples=examples,
            tokens=37 * examples,
            metrics=metrics,
            decision="continue",
        )

    def _attempt(self, number: int) -> Attempt:
        command = f"python -m orchestrator sweep={self.name}"
        return Attempt(
            number=number, command=command, versions={"torch": "2.13.0", "trl": "1.16.0"}
        )

    def _add(self, time: float, event: Event) -> None:
        line = {**event.to_json(), "time": round(time, 3)}
        self._lines.append((time, json.dumps(line) + "\n"))

    def _spec(self) -> dict[str, Any]:
        changed = {
            "repeats": self.repeats,
            "trials": self.trials // self.repeats,
            "evaluations": self.evaluations,
            "first": [],
        }
        config = dict(public(compose_config([f"sweep={self.name}"])[0]))
        return {**config, "sweep": {**config["sweep"], **changed}}
