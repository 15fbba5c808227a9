"""A sweep that is killed and gone on with, judged by a witness outside its run folder.

The witness has a line for every optimizer step that was done, whoever did it. So what was repeated
is counted, and not what the ledger says of itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from support.real_sweeps import LR, SCHEDULE, Command, Events, losses, of, under_way

from sweeps.core import fault_injection

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
# For what has to happen while it runs: 48 steps, a checkpoint at every other.
LONG = 8 * 48
LONG_GRID = (GRID, "sweep.evaluations=24")
# Trials that GRID trains at once, on two cores.
ABREAST = {"solo": 2, "packed": 4}
# Relative, of a loss after a resume. A lane may go on beside others than before, and float sums of
# another shape are rounded otherwise.
BOUND = {"solo": 0.0, "packed": 1e-5}
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
        self.environment[fault_injection.WITNESS] = str(self.witness)
        self.environment.pop(fault_injection.FAULT, None)
        if self.fault:
            self.environment[fault_injection.FAULT] = self.fault
        super().start(f"sweep.budget.examples={self.examples}", f"engine={self.engine}", *more)

    def arm(self, action: str, point: str, number: int | str, *, once: bool = True) -> None:
        """From the next start on; `once`: in one process of all that pass there."""
        flag = f":{self.root / f'fired-{point}-{number}'}" if once else ""
        self.fault += f"{action}:{point}:{number}{flag};"

    @property
    def fired(self) -> set[str]:
        """What was armed and has happened: point and number."""
        return {path.name.removeprefix("fired-") for path in self.root.glob("fired-*")}

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

    def repeated_at_once(self) -> int:
        """Of the steps that one attempt at a trial did, how many were done before; the most."""
        done: set[tuple[str, int]] = set()
        again: Counter[tuple[str, int]] = Counter()
        for key, step, attempt in self.steps():
            again[key, attempt] += (key, step) in done
            done.add((key, step))
        return max(again.values(), default=0)

    def kill(self) -> None:
        """kill -9 of the driver; whoever outlives it is left alone."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.kills += 1

    def wait_for_work(self) -> str:
        """A trial of this start, as soon as it has committed a checkpoint and goes on."""
        assert self.process is not None
        pid = self.process.pid

        def found(events: Events) -> str | None:
            begun = [event["pid"] == pid for event in of(events, "attempt")]
            return under_way(events) if any(begun) else None

        return str(self.wait_until(found))

    def worker_pids(self) -> set[int]:
        """Of the last start."""
        events = self.events()
        begun = max((i for i, event in enumerate(events) if event["event"] == "attempt"), default=0)
        starts = of(events[begun:], "start")
        return {int(event["worker"].rpartition(":")[2]) for event in starts}

    def coordinator_pids(self) -> list[int]:
        """The process that holds the Coordinator, where it has come up."""
        return [pid for pid, name in self.living() if name.startswith("ray::CoordinatorActor")]

    def living(self) -> list[tuple[int, str]]:
        """Pid and name of all that lives of the last start, Ray's processes too."""
        assert self.process is not None
        found = []
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with contextlib.suppress(OSError):  # it has ended since
                name = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if os.getsid(pid) == self.process.pid and is_alive(pid):
                    found.append((pid, name))
        return found

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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of an interrupted sweep, against one that was not.

    Attributes:
        lost: trials that completed there and not here.
        trained_again: trials that were started again after they had ended.
        repeated: optimizer steps that were done more than once.
        allowed: one checkpoint interval for each trial under way and kill.
        at_once: steps that one start of a trial repeated, at the most.
        apart: the largest relative difference of two losses; infinite where a report is missing.
        bound: what `apart` may be.
    """

    lost: int
    trained_again: int
    repeated: int
    allowed: int
    at_once: int
    apart: float
    bound: float
    same_winner: bool

    @property
    def is_good(self) -> bool:
        none_lost = self.lost == 0 and self.trained_again == 0
        few_again = self.repeated <= self.allowed and self.at_once <= INTERVAL
        return none_lost and few_again and self.apart <= self.bound and self.same_winner

    def __str__(self) -> str:
        losses = f"within {self.apart:.0e}" if self.apart else "equal to the last bit"
        return (
            f"lost {self.lost}, trained again {self.trained_again}, repeated steps {self.repeated} "
            f"of {self.allowed} allowed ({self.at_once} in one start), losses {losses}, "
            f"winner {'the same' if self.same_winner else 'ANOTHER'}"
        )


def judge(command: Witnessed, whole: Witnessed, abreast: int | None = None) -> Verdict:
    """Against `whole`, which ran undisturbed; `abreast` trials run at once."""
    events, reference = command.events(), whole.events()
    completed = {e["trial"] for e in of(events, "end") if e["state"] == "completed"}
    abreast = ABREAST[command.engine] if abreast is None else abreast
    return Verdict(
        lost=len({e["trial"] for e in of(reference, "end")} - completed),
        trained_again=trained_after_end(events),
        repeated=command.repeated(),
        allowed=command.kills * abreast * INTERVAL,
        at_once=command.repeated_at_once(),
        apart=apart(losses(events), losses(reference)),
        bound=BOUND[command.engine],
        same_winner=winner(command) == winner(whole),
    )


def apart(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """The largest relative difference of two losses of the same report."""
    if {key: len(values) for key, values in ours.items()} != {
        key: len(values) for key, values in theirs.items()
    }:
        return math.inf
    pairs = [pair for key in theirs for pair in zip(ours[key], theirs[key], strict=True)]
    return max(abs(one / other - 1) for one, other in pairs)


def has_losses_of(command: Witnessed, whole: Witnessed) -> bool:
    """Whether each report's loss is that of `whole`, as near as the engine has it."""
    found, expected = losses(command.events()), losses(whole.events())
    return apart(found, expected) <= BOUND[command.engine]


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
    """The best trial and its step, as best/ has them; their loss is among those compared."""
    import yaml

    found = yaml.safe_load((command.run_dir / "best" / "trial.yaml").read_text())
    return found["trial"], found["step"]
