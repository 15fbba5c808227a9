"""Which search finds the best setting, at which cost: python -m benchmarks.replay

The product's own Coordinator and searches, over tables of real results instead of training: a trial
has the result of the table's nearest setting. Without arguments, the public results in
`benchmarks/data/`; `--table FILE.csv` gives another table of the same columns. One line for each
search: the share of panels in which its best is within 0.001 nats of the best of the grid, its mean
and worst regret against that, and the trials that it took as a share of the grid's settings.

    python -m benchmarks.replay --at-once 1 4 8 16     # so many trials train at the same time
    python -m benchmarks.replay --table benchmarks/data/embedded_grid.csv --trials 24
    python -m benchmarks.replay --pruners              # early stopping, over the curves
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import random
import statistics
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import table
from benchmarks.result_tables import RANK, RATE, Cell, Panel, read_panels, with_curves
from orchestrator.config.command import Command
from orchestrator.coordinator.assignment import assignment_rules
from sweeps.config.spec import Spec
from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.trial import Decision, Report, State, Trial
from sweeps.ledger.events import Attempt, End
from sweeps.results.ranking import best
from sweeps.search.samplers import search_problems
from sweeps.space.parser import parse_space
from sweeps.space.space import Space
from sweeps.storage.run_folder import RunFolder

DATA = Path(__file__).with_name("data")
PUBLIC = DATA / "tinker_sft_sweep.csv"
CURVES = DATA / "tinker_sft_curves_digitised.csv"
CLOSE = 0.001  # nats
EVALUATIONS = 8  # of a trial with a curve
TRIALS = 10  # of a search that does not end by itself
PRIORS = ({RATE: 3e-4}, {RATE: 1e-3})


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A search as it is replayed.

    Attributes:
        sweep: keys of the sweep section.
        rates: how learning rates are searched: any within the grid's, the grid's own, or alone, at
            the highest rank.
        is_random: whether it differs from seed to seed.
        is_capped: it trains no more at once than the product lets it; else as many as there is
            room for.
    """

    name: str
    sweep: Mapping[str, Any]
    rates: str = "interval"
    is_random: bool = True
    is_capped: bool = True


def contenders(trials: int = TRIALS) -> list[Contender]:
    """Every search that is compared. `first` is tried at the highest rank of the grid."""
    quick = {"search": "quick", "trials": 8, "first": PRIORS}
    found = [
        Contender(name="grid", sweep={"search": "grid"}, rates="grid", is_random=False),
        Contender(name="quick", sweep=quick, rates="alone", is_random=False),
        Contender(
            name="two prior rates alone",
            sweep={**quick, "trials": 2},
            rates="alone",
            is_random=False,
        ),
    ]
    for search in ("random", "qmc", "tpe", "gp", "cmaes"):
        learns = search in ("tpe", "gp")
        options = {"n_startup_trials": trials // 3} if learns else {}  # as in conf/sweep/joint.yaml
        sweep = {"search": search, "trials": trials, "search_options": options}
        found.append(Contender(name=search, sweep=sweep))
        if learns:
            found.append(Contender(name=f"{search}, not capped", sweep=sweep, is_capped=False))
            found.append(Contender(name=f"first + {search}", sweep={**sweep, "first": PRIORS}))
    return found


def pruned() -> list[Contender]:
    """Settings of pruners over a whole grid in random order."""
    options: list[tuple[str, dict[str, Any]]] = [("none", {})]
    options += [
        ("asha", {"min_resource": start, "reduction_factor": factor})
        for factor, starts in ((2, range(1, 7)), (3, (1, 3, 5)), (4, (1, 3, 5)))
        for start in starts
    ]
    options += [("hyperband", {"min_resource": 1})]
    options += [
        (pruner, {**share, "n_startup_trials": 4, "n_warmup_steps": start})
        for pruner, share in (("median", {}), ("percentile", {"percentile": 75.0}))
        for start in (0, 4)
    ]
    return [
        Contender(
            name=" ".join([pruner, *(f"{name}={value:g}" for name, value in given.items())]),
            sweep={"search": "grid", "pruner": pruner, "pruner_options": given},
            rates="shuffled",
        )
        for pruner, given in options
    ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one replay: nats above the grid's best; trials and examples as shares of the grid's."""

    regret: float
    trials: float
    examples: float


def main() -> None:
    args = _arguments()
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # nothing here has to last
    panels = read_panels(args.table)
    tried = contenders(args.trials)
    if args.pruners:
        panels = with_curves(panels, CURVES, EVALUATIONS)
        tried = pruned()
    if args.searches:
        tried = [each for each in tried if each.name in args.searches]
    _compare(tried, panels, args)
    if args.pruners:  # a search that has found the good rates compares these alone
        print("learning rates from 1e-4 to 1e-3 alone:")
        _compare(tried, [panel.between(1e-4, 1e-3) for panel in panels], args)


def _compare(tried: Sequence[Contender], panels: Sequence[Panel], args: argparse.Namespace) -> None:
    """Print a table for each number of trials at once, with a line for each contender."""
    cells = sum(len(panel.cells) for panel in panels)
    print(f"{len(panels)} panels, {cells} settings; the mean over {args.seeds} seeds")
    for at_once in args.at_once:
        figures = (f"within {CLOSE}", "mean regret", "worst", "trials", "examples")
        print(table((f"{at_once} at once", *figures)), flush=True)
        for one in tried:
            if one.name == "cmaes" and not {RATE, RANK} >= {k for p in panels for k in p.keys}:
                continue  # it searches numbers alone
            seeds = range(args.seeds if one.is_random else 1)
            found = [replay(one, panel, at_once, seed) for panel in panels for seed in seeds]
            print(table((one.name, *_figures(found))).splitlines()[0], flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay")
    parser.add_argument("--table", type=Path, default=PUBLIC, help="results to replay (CSV)")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=TRIALS, help="of what does not end by itself")
    parser.add_argument("--searches", nargs="+", help="these lines alone")
    parser.add_argument("--pruners", action="store_true", help="early stopping, over the curves")
    return parser.parse_args()


def _figures(found: Sequence[Outcome]) -> Iterator[str]:
    yield f"{sum(one.regret <= CLOSE for one in found) / len(found):.0%}"
    yield f"{statistics.fmean(one.regret for one in found):.4f}"
    yield f"{max(one.regret for one in found):.4f}"
    yield f"{statistics.fmean(one.trials for one in found):.1%}"
    yield f"{statistics.fmean(one.examples for one in found):.1%}"


def replay(one: Contender, panel: Panel, at_once: int, seed: int) -> Outcome:
    """Run a sweep over a panel; a panel's best is never worse than its worst setting."""
    spec, space = _sweep(one, panel, seed)
    if one.is_capped:
        at_once = min(at_once, assignment_rules(spec, space, workers=1, lanes=at_once).at_once)
    shared = Path("/dev/shm")  # many small files
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as root:
        coordinator = Coordinator(spec, space, RunFolder(Path(root)))
        try:
            coordinator.begin(Attempt(host="replay", pid=0))
            reports = _train(coordinator, panel, at_once)
        finally:
            coordinator.close()
    found = best(coordinator.history)
    cell = panel.cells[panel.nearest(found.record.values)] if found else Cell()
    evaluations = max(len(cell.losses) for cell in panel.cells.values())
    return Outcome(
        regret=(cell.losses[-1] if cell.losses else panel.worst) - panel.best,
        trials=len(coordinator.history.trials) / len(panel.cells),
        examples=reports / evaluations / len(panel.cells),
    )


def _sweep(one: Contender, panel: Panel, seed: int) -> tuple[Spec, Space]:
    spec = _base()
    sweep = dict(one.sweep)
    written = _space(one, panel, seed)
    if sweep.get("first") and one.rates != "alone":
        top = {key: panel.usual(key) for key in written if key != RATE}
        sweep["first"] = tuple(_within(panel, {**entry, **top}) for entry in sweep["first"])
    evaluations = max(len(cell.losses) for cell in panel.cells.values())
    search = dataclasses.replace(spec.sweep, space=written, evaluations=evaluations, **sweep)
    space = parse_space(written, {}, [])
    own = zlib.crc32(panel.model.encode()) // 2 + seed  # panels are independent draws
    problems = search_problems(search, space)
    assert not problems, problems
    public = {**spec.public, "sweep": {**spec.public["sweep"], "space": written}}
    return dataclasses.replace(spec, sweep=search, seed=own, public=public), space


@functools.cache
def _base() -> Spec:
    spec = Command.read(["sweep=base", "tracking=off"]).spec
    assert spec is not None
    return spec


def _within(panel: Panel, entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `sweep.first` with the nearest rate that the interval holds."""
    rates = panel.values(RATE)
    return {**entry, RATE: min(max(entry[RATE], rates[0]), rates[-1])}


def _space(one: Contender, panel: Panel, seed: int) -> dict[str, Any]:
    if one.rates == "alone":
        return {RATE: "tag(log, interval(1e-7, 1.0))"}
    if one.rates in ("grid", "shuffled"):
        settings = [dict(setting) for setting in panel.cells]
        if one.rates == "shuffled":
            random.Random(seed).shuffle(settings)
        return {"setting": settings}
    rates = panel.values(RATE)
    space: dict[str, Any] = {RATE: f"tag(log, interval({rates[0]}, {rates[-1]}))"}
    for key in panel.keys:
        values = panel.values(key)
        if len(values) == 1:
            continue  # `nearest` takes it
        if key == RANK and one.sweep["search"] == "cmaes":
            space[key] = f"tag(log, int, interval({values[0]}, {values[-1]}))"
        elif key != RATE:
            space[key] = values
    return space


def _train(coordinator: Coordinator, panel: Panel, at_once: int) -> int:
    """Give each trial the losses of its setting, side by side; returns how many were given."""
    running: dict[str, tuple[Trial, int]] = {}
    given = 0
    while True:
        while len(running) < at_once and (trial := coordinator.ask()) is not None:
            attempt = coordinator.start(trial.key, worker="replay", device="cpu", step=0)
            assert attempt is not None
            running[trial.key] = trial, attempt
        if not running:
            return given
        for trial, attempt in list(running.values()):
            losses = panel.cells[panel.nearest(trial.values)].losses
            given += 1
            state = State.DIVERGED
            if losses:
                index = len(coordinator.history.trials[trial.key].reports) + 1
                metrics = dict.fromkeys(("eval_loss", "train_loss"), losses[index - 1])
                counts = dict.fromkeys(("index", "step", "examples", "tokens"), index)
                said = Report(**counts, metrics=metrics)
                decision = coordinator.report(trial.key, attempt, said)
                if decision is Decision.CONTINUE and index < len(losses):
                    continue
                state = State.PRUNED if decision is Decision.PRUNE else State.COMPLETED
            coordinator.end(End(trial=trial.key, attempt=attempt, state=state))
            del running[trial.key]


if __name__ == "__main__":
    main()
