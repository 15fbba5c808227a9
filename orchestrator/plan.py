"""Runs the verb `plan`: checks everything that a sweep would, and says what it would do."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from orchestrator.cluster.gpus import given_to_ray, idle_cards, usable
from orchestrator.cluster.placement import Placement, place
from orchestrator.cluster.ray_cluster import (
    address_line,
    gpus_of_cluster,
    knock,
    own_cpus,
    stop_ray,
)
from orchestrator.config.command import Command, asks_cluster, checked, guess_device
from orchestrator.config.device_hours import expected_lines
from orchestrator.config.engine_choice import choose, most_workers
from orchestrator.config.preflight import Findings, check_place
from orchestrator.config.prepare import dry_run_line, prepare_training
from orchestrator.config.run_folder_claim import refuse_another, refuse_strangers
from orchestrator.storage.run_dir import places_of
from orchestrator.terminal.live_table import Display
from orchestrator.terminal.row_view import legend, row_view
from orchestrator.tracking.tracker import look_for_server
from sweeps.config.spec import Spec
from sweeps.coordinator.other_folders import found_elsewhere
from sweeps.core.commands import command_line
from sweeps.ledger.history import History, read_history
from sweeps.search.pruning import misled
from sweeps.space.space import Space
from sweeps.storage.run_folder import RunFolder

_LARGE_GRID = 1000
_ROWS, _LETTERS = 2, 600  # shown of the data


def plan(argv: Sequence[str], *, as_json: bool = False) -> int:
    """Check everything that `run` would and say what it would do; trains nothing.

    Args:
        as_json: print one JSON object; docs/steer.md describes the fields.
    """
    try:
        return _plan(*checked(Command.read(argv)), argv, as_json=as_json)
    finally:
        stop_ray()


def _plan(spec: Spec, space: Space, argv: Sequence[str], *, as_json: bool) -> int:
    folder, _ = places_of(spec)
    refuse_strangers(folder)
    grown = refuse_another(folder, spec)
    from trainers.preview import first_rows  # imports torch, which a refusal need not wait for

    display = Display(folder, spec.public)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(1) as pool:
        # If the sweep has begun, its data is there, and what has changed since can be told.
        begun = folder.ledger.exists() and not spec.accept_changes
        past = read_history(folder.ledger) if begun else History()
        place = folder if begun else RunFolder(Path(scratch))
        tracking = pool.submit(look_for_server, spec.tracking)
        findings = Findings()
        with findings.part():
            check_place(folder.root)
            knock(spec.cluster)
        with findings.part():
            ready = prepare_training(spec, space, place, past, argv)
            elsewhere = found_elsewhere(spec, space, past, ready.facts)
        placement = None
        with findings.part():
            placement = _placement(spec, space)
        findings.refuse()
        device = guess_device(spec)
        engine = choose(spec, space, on_gpu=device == "cuda")
        about = [f"{engine.why}; {placement.where}" if placement else engine.why]
        about += _about_devices(spec)
        place_of_step, packed = Path(scratch, "dry_run"), engine.lanes > 1
        expected = partial(expected_lines, spec, space, ready.tokens)
        step = dry_run_line(
            ready,
            past,
            place_of_step,
            device,
            spec.strategy,
            packed=packed,
            kernels=spec.engine.kernels,
            more=expected,
        )
        lines = [*ready.lines, *elsewhere.lines, *about, step, tracking.result()]
        rows = first_rows(spec.train, ready.data.train, _ROWS)
    if as_json:
        told = {
            "name": spec.name,
            "run_dir": str(folder.root),
            "search": spec.sweep.search,
            "configs": space.planned(spec.sweep.trials),
            "repeats": spec.sweep.repeats,
            "searched": [dimension.name for dimension in space.dimensions],
            "examples": ready.examples,
            "device": device,
            "lanes": engine.lanes,
            "lines": [*plan_lines(spec, space, folder), *grown, *lines],
        }
        print(json.dumps(told))
        return 0
    display.say(*plan_lines(spec, space, folder), *grown, *lines)
    console = display.console
    display.say(f"the first rows to train on, {legend(console)}")
    display.show(*(row_view(row, console, _LETTERS) for row in rows))
    display.say(f"more of them: {command_line(['show', *argv])}", "nothing was started")
    return 0


def _placement(spec: Spec, space: Space) -> Placement | None:
    """Where workers will be placed; None if a cluster that was not asked decides.

    Raises:
        ConfigError: not even one fits.
    """
    nodes: Sequence[Mapping[str, float]] | None = None
    if spec.cluster.kind == "local":  # what a Ray of our own will be told of
        gpus = given_to_ray(spec.cluster)
        own = {"CPU": own_cpus(spec.cluster), "GPU": usable() if gpus is None else gpus}
        nodes = [own]
    elif gpus_of_cluster() is None:
        return None
    return place(spec.engine, spec.cluster, most_workers(spec, space), nodes)


def _about_devices(spec: Spec) -> list[str]:
    """Lines on the devices, before a Ray of our own could count them."""
    if asks_cluster(spec) and gpus_of_cluster() is None:
        return ["no Ray cluster answers: this machine stood for its nodes"]
    line = idle_cards(spec.engine, spec.cluster)
    return [line] if line else []


def plan_lines(spec: Spec, space: Space, folder: RunFolder) -> list[str]:
    """Lines on what will run."""
    configs = space.planned(spec.sweep.trials)
    more, best = spec.sweep.repeats - 1, spec.sweep.finalists
    repeats = f" x {more + 1} seeds" if more and best is None else ""
    count = f"at most {configs}" if spec.sweep.search == "quick" else _count(configs)
    pruner = "" if spec.sweep.pruner == "none" else f", pruned by {spec.sweep.pruner}"
    finals = ""
    if best is not None:
        seeds = "1 more seed" if more == 1 else f"{more} more seeds"
        finals = f", then {seeds} of the best {'config' if best == 1 else best}"
    return [
        f"sweep {spec.name}: {count} trials{repeats} by {spec.sweep.search}{pruner}{finals}",
        "searched: " + (", ".join(dimension.name for dimension in space.dimensions) or "nothing"),
        *space.notes,
        *_about_grid(spec, space),
        *filter(None, [address_line(spec.cluster)]),
        *misled(spec.sweep, space, spec.train.trainer),
        f"folder: {folder.root}",
    ]


def _count(configs: int | None) -> str:
    return "inf" if configs is None else f"{configs:,}"


def _about_grid(spec: Spec, space: Space) -> list[str]:
    """Lines on a grid that is large, or of which only the first combinations are tried."""
    size, trials = space.size(), spec.sweep.trials
    if spec.sweep.search != "grid" or size is None:
        return []
    if trials is not None and trials < size:
        return [
            f"the first {trials:,} of the grid's {size:,}, in the order in which it is written; "
            "sweep.search=random draws from all of them"
        ]
    if trials is None and size > _LARGE_GRID:
        return [
            f"a grid of {size:,} is trained whole; sweep.trials=50 sweep.search=random tries 50 "
            "of them"
        ]
    return []
