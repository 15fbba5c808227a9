"""A sweep that is killed and gone on with, judged by a witness outside its run folder.

The witness has a line for every optimizer step that was done, whoever did it. So what was repeated
is counted, and not what the ledger says of itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from real_sweeps import LR, SCHEDULE, Command, Events, losses, of

from sweeps import faults

INTERVAL = 2  # optimizer steps between two checkpoints
STEPS = 8
GRID = f"sweep.space={{{LR}: choice(1e-4,1e-2), {SCHEDULE}: choice(cosine,constant)}}"
TPE = (
    f"sweep.space={{{LR}: tag(log, interval(1e-5, 1e-2)), {SCHEDULE}: choice(cosine,constant)}}",
    *("sweep.search=tpe", "sweep.search_options={n_startup_trials: 2}", "sweep.trials=4"),
    "sweep.max_concurrent=1",
)
# Dropout and accumulation, so that a resume that forgets either shows. 8 steps, a report and a
# checkpoint at every second.
WORDS = (
    *("sweep=lr_grid", "sweep.evaluations=4", "data.limit=200", "data.eval_limit=10"),
    *("trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=2"),
    *("trainer.warmup_steps=0", "peft.lora_dropout=0.1", "tracking=off"),
)
_WORKERS_END_S = 30.0


@dataclass
class Witnessed(Command):
    """A command whose optimizer steps are witnessed.

    Attributes:
        examples: of each trial; 8 a step.
        kills: how often a process was killed.
    """

    examples: int = 8 * STEPS
    engine: str = "solo"
    kills: int = 0
    fault: str = ""
    folder: Path | None = None  # of the run, where it is not in `root`

    @property
    def run_dir(self) -> Path:
        return self.folder or super().run_dir

    @property
    def witness(self) -> Path:
        return self.root / "witness.txt"

    def start(self, *more: str) -> None:
        self.environment[faults.WITNESS] = str(self.witness)
        self.environment.pop(faults.FAULT, None)
        if self.fault:
            self.environment[faults.FAULT] = self.fault
        super().start(f"sweep.budget.examples={self.examples}", f"engine={self.engine}", *more)

    def arm(self, action: str, point: str, number: int | str, *, once: bool = True) -> None:
        """From the next start on; `once`: in one process of all that pass there."""
        flag = f":{self.root / f'fired-{point}'}" if once else ""
        self.fault = f"{action}:{point}:{number}{flag}"

    @property
    def fired(self) -> bool:
        return any(self.root.glob("fired-*"))

    def steps(self) -> list[tuple[str, int, int]]:
        """Trial, step and attempt of every optimizer step done, in order."""
        if not self.witness.exists():
            return []
        lines = [line.split() for line in self.witness.read_text().splitlines()]
        return [(key, int(step), int(attempt)) for key, step, attempt in lines]

    def repeated(self) -> int:
        """Optimizer steps that were done more than once."""
        counts = Counter((key, step) for key, step, _ in self.steps())
        return sum(count - 1 for count in counts.values())

    def kill(self) -> None:
        """kill -9 of the driver; whoever outlives it is left alone."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.kills += 1

    def worker_pids(self) -> set[int]:
        """Of the last start."""
        events = self.events()
        begun = max((i for i, event in enumerate(events) if event["event"] == "attempt"), default=0)
        starts = of(events[begun:], "start")
        return {int(event["worker"].rpartition(":")[2]) for event in starts}

    def wait_for_end_of(self, pids: set[int]) -> float:
        """Seconds until none of these processes lives; an error where one stays."""
        began = time.monotonic()
        while alive := {pid for pid in pids if is_alive(pid)}:
            waited = time.monotonic() - began
            assert waited < _WORKERS_END_S, f"{alive} live on without a driver"
            time.sleep(0.05)
        return time.monotonic() - began


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@dataclass(frozen=True)
class Verdict:
    """What became of an interrupted sweep, against one that was not."""

    lost: int
    trained_again: int
    repeated: int
    allowed: int
    same_losses: bool
    same_winner: bool

    @property
    def is_good(self) -> bool:
        none_lost = self.lost == 0 and self.trained_again == 0
        return none_lost and self.repeated <= self.allowed and self.same_losses and self.same_winner

    def __str__(self) -> str:
        same = "equal" if self.same_losses and self.same_winner else "OTHER"
        return (
            f"lost {self.lost}, trained again {self.trained_again}, repeated steps {self.repeated} "
            f"of {self.allowed} allowed, losses and winner {same}"
        )


def judge(command: Witnessed, whole: Witnessed, abreast: int) -> Verdict:
    """Against `whole`, which ran undisturbed; `abreast` trials run at once."""
    events, reference = command.events(), whole.events()
    completed = {e["trial"] for e in of(events, "end") if e["state"] == "completed"}
    return Verdict(
        lost=len({e["trial"] for e in of(reference, "end")} - completed),
        trained_again=trained_after_end(events),
        repeated=command.repeated(),
        allowed=command.kills * abreast * INTERVAL,
        same_losses=losses(events) == losses(reference),
        same_winner=winner(command) == winner(whole),
    )


def trained_after_end(events: Events) -> int:
    """Trials that were started again after they had ended."""
    ended: set[str] = set()
    again: set[str] = set()
    for event in events:
        if event["event"] == "end":
            ended.add(event["trial"])
        elif event["event"] == "start" and event["trial"] in ended:
            again.add(event["trial"])
    return len(again)


def winner(command: Command) -> tuple[object, ...]:
    """The best trial, its step and its loss, as best/ has them."""
    import yaml

    found = yaml.safe_load((command.run_dir / "best" / "trial.yaml").read_text())
    return found["trial"], found["step"], found["eval_loss"]
