"""A sweep without training: trials whose losses are a formula, driven through the Coordinator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.sweep_events import BOX

from sweeps.config.spec import (
    BudgetSpec,
    ClusterSpec,
    DataSpec,
    EngineSpec,
    ModelSpec,
    SearchSpec,
    Spec,
    TrackingSpec,
    TrainSpec,
)
from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.trial import Decision, Report, State, Trial
from sweeps.ledger.events import End
from sweeps.ledger.history import Record
from sweeps.space.parser import parse_space
from sweeps.space.space import Space
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"
OPTIM = "trainer.optim"
MIXED = {LR: "tag(log, interval(1e-5, 1e-2))", OPTIM: "choice(sgd, adamw_torch)"}
SMALL = {LR: "choice(1e-4, 1e-3)", OPTIM: "choice(sgd, adamw_torch)"}
EVALUATIONS = 4


def make(
    space: Mapping[str, Any] = MIXED, when: Mapping[str, str] | None = None, **sweep: Any
) -> tuple[Spec, Space]:
    """A spec over `space`, and that space; `sweep` sets fields of SearchSpec."""
    problems: list[Any] = []
    parsed = parse_space(space, when or {}, problems)
    assert not problems, problems
    search = SearchSpec(
        space=space,
        when=when or {},
        budget=BudgetSpec(examples=64),
        evaluations=EVALUATIONS,
        **{"search": "random", "trials": 6, **sweep},
    )
    base = {
        "model": {"path": "tiny"},
        "data": {"source": "docstrings"},
        "peft": {"method": "lora", "r": 8},
        "trainer": {"learning_rate": 1e-4, "optim": "sgd", "weight_decay": 0.0},
    }
    train = TrainSpec(
        model=ModelSpec(path="tiny"),
        data=DataSpec(source="docstrings"),
        peft=base["peft"],
        trainer=base["trainer"],
        seed=0,
        budget=search.budget,
        evaluations=EVALUATIONS,
    )
    settings = {
        "metric": search.metric,
        "direction": search.direction,
        "repeats": search.repeats,
        "finalists": search.finalists,
        "trials": search.trials,
        "space": dict(space),
        "when": dict(when or {}),
        "budget": {"examples": 64, "epochs": None},
        "reuse": list(search.reuse),
    }
    spec = Spec(
        name="made",
        run_dir="made",
        storage=None,
        seed=0,
        engine=EngineSpec(),
        sweep=search,
        tracking=TrackingSpec(mode="off"),
        cluster=ClusterSpec(),
        train=train,
        base=base,
        public={"name": "made", "sweep": settings, **base},
    )
    return spec, parsed


def open_sweep(made: tuple[Spec, Space], root: Path) -> Coordinator:
    """As a driver does at its start; the same folder again is a restart."""
    root.mkdir(parents=True, exist_ok=True)
    coordinator = Coordinator(*made, RunFolder(root))
    coordinator.begin(BOX)
    return coordinator


def loss(trial: Trial, index: int) -> float:
    """Best at a learning rate of 1e-3; far from it, it rises in the end."""
    distance = abs(math.log10(trial.values.get(LR, 1e-4)) + 3)
    rise = 2.0 * index if distance > 0.5 else 0.0
    return distance + 2 / index + rise + 0.3 * (trial.values.get(OPTIM) == "sgd")


def report(index: int, value: float) -> Report:
    step = 2 * index
    metrics = {"eval_loss": value}
    return Report(index=index, step=step, examples=16 * index, tokens=90 * index, metrics=metrics)


def begin(coordinator: Coordinator, trial: Trial) -> int:
    attempt = coordinator.start(trial.key, worker="box:2", device="cpu", step=0)
    assert attempt is not None
    return attempt


def ending(key: str, attempt: int, state: State, **how: Any) -> End:
    return End(trial=key, attempt=attempt, state=state, **how)


def train(
    coordinator: Coordinator,
    trial: Trial,
    losses: Callable[[Trial, int], float] = loss,
    stop_after: int = EVALUATIONS,
) -> State:
    """Train a trial as a worker does; with `stop_after` it dies there without a word."""
    attempt = begin(coordinator, trial)
    for index in range(1, stop_after + 1):
        decision = coordinator.report(trial.key, attempt, report(index, losses(trial, index)))
        if decision is Decision.PRUNE:
            coordinator.end(ending(trial.key, attempt, State.PRUNED))
            return State.PRUNED
    if stop_after < EVALUATIONS:
        return State.RUNNING
    coordinator.end(ending(trial.key, attempt, State.COMPLETED))
    return State.COMPLETED


def drive(
    coordinator: Coordinator,
    most: int | None = None,
    losses: Callable[[Trial, int], float] = loss,
) -> int:
    """Train trials one after another, `most` of them; returns how many were trained."""
    count = 0
    while most is None or count < most:
        trial = coordinator.ask()
        if trial is None:
            break
        train(coordinator, trial, losses)
        count += 1
    return count


def drive_abreast(coordinator: Coordinator, width: int, most: int | None = None) -> None:
    """Train `width` trials side by side, a report of each in turn; stop in the middle at `most`."""
    running: dict[str, tuple[Trial, int]] = {}
    reports = 0
    while most is None or reports < most:
        while len(running) < width and (trial := coordinator.ask()) is not None:
            running[trial.key] = trial, begin(coordinator, trial)
        if not running:
            return
        for trial, attempt in list(running.values()):
            done = coordinator.history.trials[trial.key].reports
            index = len(done) + 1
            decision = Decision.CONTINUE
            if index <= EVALUATIONS:
                said = report(index, loss(trial, index))
                decision = coordinator.report(trial.key, attempt, said)
                reports += 1
            if decision is Decision.PRUNE or index >= EVALUATIONS:
                pruned = decision is Decision.PRUNE
                state = State.PRUNED if pruned else State.COMPLETED
                coordinator.end(ending(trial.key, attempt, state))
                del running[trial.key]
            if most is not None and reports >= most:
                return


def story(coordinator: Coordinator) -> list[tuple[Any, ...]]:
    """What a sweep did, trial by trial, whatever driver did it."""

    def told(record: Record) -> tuple[Any, ...]:
        values = [record.reports[index].metrics["eval_loss"] for index in sorted(record.reports)]
        return record.number, record.key, dict(record.values), record.state, values

    return [told(record) for record in coordinator.history.trials.values()]
