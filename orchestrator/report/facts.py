"""What the page says in words: the answer, how sure it is, the facts, the commands to type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.best.model_card import is_ready, proof_of, tested_text
from orchestrator.config.device_hours import used_lines
from orchestrator.report.text import MOST_COMMAND, clean, value_text
from orchestrator.terminal.format import duration_text, loss_text
from orchestrator.terminal.progress import (
    budget_examples,
    planned_configs,
    planned_trials,
    read_progress,
    time_left_s,
)
from orchestrator.terminal.summary import best_line, verdicts
from sweeps.core.commands import command_line
from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results.ranking import Best, base_value
from sweeps.results.significance import Comparison
from sweeps.storage.run_folder import REPORT, RunFolder, folder_text

Facts = Mapping[str, Mapping[str, str]]  # heading -> name -> value, not escaped yet

_MOST_FACT = 200  # characters


@dataclass(frozen=True, kw_only=True)
class Words:
    """The page's sentences, not escaped yet.

    Attributes:
        standing: whether the sweep has ended, and if not, how far it is.
        answer: the best trial in one sentence.
        sureness: what the ranking does not say by itself: noise, no gain, missing repeats.
        commands: (what it does, the command).
    """

    standing: str
    answer: str
    sureness: tuple[str, ...]
    facts: Facts
    commands: tuple[tuple[str, str], ...]


def words_of(
    folder: RunFolder,
    history: History,
    best: Best | None,
    comparison: Comparison | None,
    *,
    holder: str | None,
    again: str | None,
    now: float,
) -> Words:
    """Everything on the page that is a sentence.

    Args:
        comparison: of `sweeps.results.significance.compare`.
        holder: of the run folder's lock, a living driver; None if there is none.
        again: the command that trains the winner again; None to take that of best/, if it is ready.
        now: seconds since the epoch.
    """
    if best is None:
        answer = "No trial has completed yet: there is no best one."
    else:
        answer = f"{best_line(history, best)}."
    proof = proof_of(folder) if best is not None and is_ready(folder, best) else None
    said = [*verdicts(history, folder, comparison), *_tested(history, best, proof)]
    return Words(
        standing=_standing(folder, history, holder, now),
        answer=clean(answer, _MOST_FACT * 2),
        sureness=tuple(clean(line, _MOST_FACT * 4) for line in said),
        facts=_facts(folder, history),
        commands=tuple(_commands(folder, history, proof, again)),
    )


def _standing(folder: RunFolder, history: History, holder: str | None, now: float) -> str:
    total = planned_trials(history, planned_configs(history.spec))
    counts = ", ".join(f"{n} {state}" for state in State if (n := history.count(state)))
    ended = f"{history.ended} of {total or '?'} trials have ended"
    if holder is not None:
        left = time_left_s(history, read_progress(folder, history), total, now)
        more = "" if left is None else f"; about {duration_text(left)} left"
        return f"Unfinished: {ended}{more} ({counts})."
    if history.ended == len(history.trials) and history.ended >= (total or 0):
        return f"Every trial has ended: {counts}."
    return f"Stopped before the end: {ended} ({counts}). The same command goes on from there."


def _tested(history: History, best: Best | None, proof: Mapping[str, Any] | None) -> Iterator[str]:
    """The loss on the test split, if there is one and the best checkpoint was measured on it."""
    text = tested_text(history, best, proof["proof"]) if best and proof else ""
    if text:
        yield text


def _facts(folder: RunFolder, history: History) -> Facts:
    spec = history.spec
    sweep = spec.get("sweep") or {}
    budget = budget_examples(history)
    base = base_value(history)
    began, latest = history.began, history.latest
    return {
        "Model": _chosen(spec, "model", "path", "revision", "dtype", "quantization")
        | _chosen(spec, "peft", "method")
        | ({} if base is None else {f"{history.metric} of the base": loss_text(base)}),
        "Data": _chosen(spec, "data", "source", "path", "name", "split", "max_length")
        | _rows(folder),
        "Budget of a trial": ({} if budget is None else {"examples": f"{budget:,}"})
        | _chosen(sweep, "", "evaluations", "repeats"),
        "Search": _chosen(sweep, "", "search", "pruner", "trials", "metric"),
        "Run": {
            "took": duration_text(None if began is None or latest is None else latest - began),
            "starts": str(history.attempts),
            "used": " ".join(used_lines(history)).removeprefix("Used: ").partition(", over")[0]
            or "nothing yet",
        },
        "Versions": {
            name: clean(str(version)) for name, version in (history.driver.versions or {}).items()
        },
    }


def _chosen(config: Mapping[str, Any], section: str, *names: str) -> dict[str, str]:
    """Settings that have a value; of a path the last part, since the page is for others too."""
    values = (config.get(section) or {}) if section else config
    found = {}
    for name in names:
        if (value := values.get(name)) is not None:
            paths = value if isinstance(value, list | tuple) else [value]
            shown = ", ".join(value_text(f"{section}.{name}", each) for each in paths)
            found[name if name != "path" else section or name] = clean(shown, _MOST_FACT)
    return found


def _rows(folder: RunFolder) -> dict[str, str]:
    """Counts of the prepared data."""
    try:
        report = json.loads((folder.data / REPORT).read_text(encoding="utf-8"))["report"]
        names = ("train_rows", "eval_rows", "test_rows", "train_tokens", "truncated_rows")
        return {
            name.replace("_", " "): f"{int(report[name]):,}" for name in names if name in report
        }
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _commands(
    folder: RunFolder, history: History, proof: Mapping[str, Any] | None, again: str | None
) -> Iterator[tuple[str, str]]:
    run_dir = folder_text(folder.root)
    again = again or (proof or {}).get("again")
    if again is not None:
        yield "Train the winner again", clean(str(again), MOST_COMMAND)
    if history.unfinished() and history.driver.command:
        yield "Go on with the sweep", clean(history.driver.command, MOST_COMMAND)
    yield "This sweep in the terminal", command_line(["status", run_dir])
    yield "This page, written again", command_line(["report", run_dir])
