"""Builds the summary that is printed at the end of a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import fmean

from rich.console import RenderableType
from rich.text import Text

from orchestrator.best.model_card import is_ready, proof_of, tested_text
from orchestrator.config.device_hours import used_lines
from orchestrator.terminal.cost_lines import cost_lines
from orchestrator.terminal.format import duration_text, loss_text, unbroken
from orchestrator.terminal.importance_table import knob_legend, knobs_grid
from orchestrator.terminal.progress import planned_configs, planned_trials
from orchestrator.terminal.tables import counts_text, ranking_grid
from sweeps.core.commands import UnwritableError, command_line, in_a_shell, typed
from sweeps.core.naming import trial_name
from sweeps.core.trial import State
from sweeps.ledger.history import History
from sweeps.results import row_losses
from sweeps.results.importance import Effect
from sweeps.results.intervals import few_rows, shared_text
from sweeps.results.outlook import Hint, outlook
from sweeps.results.ranking import Best, completed_values, config_ranks, gain
from sweeps.results.significance import Comparison, compare, margin
from sweeps.results.trials_csv import Row, ranked
from sweeps.storage.run_folder import RunFolder, folder_text

MOST_ROWS = 30  # of the ranking; trials.csv has them all
MOST_FAILURES = 10  # different reasons


def summary(
    history: History,
    folder: RunFolder,
    knobs: Sequence[Effect],
    importance: Mapping[str, float] | None,
    best: Best | None,
    *,
    proof: Mapping[str, float] | None = None,
    notes: Iterable[str] = (),
    again: str | None = None,
    proof_error: str = "",
) -> list[RenderableType]:
    """The sweep's result in parts to print with `format.show`; the last lines name the best trial.

    Args:
        importance: of `sweeps.results.importance.importance`; None leaves the column out.
        proof: what was measured of best/, if it holds the best checkpoint.
        notes: what else the user should know, a line each.
        again: command that trains the winner again.
        proof_error: why the best checkpoint could not be made ready.
    """
    comparison = compare(history, folder)
    rows = ranked(history, comparison)
    parts: list[RenderableType] = [title(history), Text()]
    parts += ranking(history, folder, rows)
    said = (*verdicts(history, folder, comparison), *cost_lines(history))
    parts += [Text(note) for note in (*said, *notes, *used_lines(history))]
    parts += hints(history, folder)
    parts += knob_part(history, knobs, importance)
    parts += failures(rows, folder)
    parts += _best_values(best)
    parts += tested(history, best, proof)
    # The winner of one is trained again by the command that was typed.
    again = again if len(history.trials) > 1 or proof_error else None
    parts += _next_commands(history, folder, best, again)
    return [*parts, Text(), *closing(history, folder, best, proof_error)]


def ranking(history: History, folder: RunFolder, rows: Sequence[Row]) -> list[RenderableType]:
    """The ranked table, cut to the rows that matter most."""
    if not rows:
        return [Text("No trial has been asked for yet.")]
    table = folder_text(folder.table)
    parts: list[RenderableType] = [ranking_grid(history, rows[:MOST_ROWS], table)]
    if len(rows) > MOST_ROWS:
        parts.append(
            Text(f"... and {len(rows) - MOST_ROWS:,} more trials: see {table}", style="dim")
        )
    if any(row.behind is not None for row in rows):
        behind = "behind: eval_loss above the best's, with its 95% interval; "
        parts.append(Text(f"{behind}~: not distinguishable from the best", style="dim"))
    return [*parts, Text()]


def verdicts(history: History, folder: RunFolder, comparison: Comparison | None) -> list[str]:
    """What the ranking does not say by itself: chance, missing repeats, no gain over the base."""
    found = []
    ranks = config_ranks(history)
    values = completed_values(history)
    first = min(ranks, key=ranks.__getitem__, default=None)
    if first is None:
        return []
    if (gain(history, history.config_mean(first)) or 1) <= 0:
        found.append(
            "No trial is better than the base model: tuning with these settings only hurts. "
            "Try lower learning rates, or look at the data."
        )
    ahead = margin(history)
    if comparison is not None and comparison.lines():
        found += comparison.lines()
    elif ahead is not None:
        found.append(_noise_text(ahead.gap, ahead.noise, ahead.runner_up))
        found += _few_rows(folder)
    shared, rows = row_losses.shared_prompts(folder)
    found += [shared_text(shared, rows)] if shared else []
    means = {config: history.sign * fmean(values[config]) for config in ranks}
    lucky = [c for c in ranks if len(values[c]) < len(values[first]) and means[c] < means[first]]
    if lucky:
        numbers = ", ".join(str(min(r.number for r in history.repeats(c))) for c in lucky)
        found.append(
            f"Better by mean, but ranked lower for want of completed repeats: trial {numbers}."
        )
    return found


def hints(history: History, folder: RunFolder) -> list[RenderableType]:
    """What a wider or longer sweep may find, each with its command, once this one has ended."""
    return [
        part
        for hint in outlook_at_the_end(history, folder)
        for part in (Text(hint.text), unbroken(f"  {hint.command}"))
    ]


def outlook_at_the_end(history: History, folder: RunFolder) -> list[Hint]:
    """`outlook` of a sweep that has ended; empty while trials are still to come."""
    total = planned_trials(history, planned_configs(history.spec))
    if history.unfinished() or len(history.trials) < (total or 0):
        return []
    return outlook(history, folder)


def knob_part(
    history: History, knobs: Sequence[Effect], importance: Mapping[str, float] | None
) -> list[RenderableType]:
    """What each knob did, under its heading; nothing if no knob varied."""
    if not knobs:
        return []
    return [
        Text(),
        Text(f"What each knob did to {history.metric}", style="bold"),
        knobs_grid(history, knobs, importance),
        *(Text(line, style="dim") for line in knob_legend(history, knobs, importance)),
    ]


def failures(rows: Sequence[Row], folder: RunFolder) -> list[RenderableType]:
    """Trials that diverged or failed, and those that went on with less memory, by reason."""
    bad = [
        row
        for row in rows
        if row.status in (State.DIVERGED, State.FAILED) or (row.status.is_finished() and row.error)
    ]
    if not bad:
        return []
    by_reason = sorted(
        bad, key=lambda row: (row.status is not State.FAILED, row.status, row.error, row.number)
    )
    parts: list[RenderableType] = [Text(), Text("What went wrong", style="bold")]
    groups = [list(group) for _, group in groupby(by_reason, lambda row: (row.status, row.error))]
    for group in groups[:MOST_FAILURES]:
        numbers = ", ".join(str(row.number) for row in group[:8])
        more = f" and {len(group) - 8} more" if len(group) > 8 else ""
        word = "trial" if len(group) == 1 else "trials"
        style = "red" if group[0].status is State.FAILED else "yellow"
        parts.append(
            Text(f"{group[0].status}: {word} {numbers}{more}", style=style)
            + Text(f": {group[0].error or 'no reason was given'}", style="default")
        )
        error = folder.error(group[0].key)
        if error.exists():
            parts.append(unbroken(f"  traceback: {folder_text(error)}", "dim"))
    if len(groups) > MOST_FAILURES:
        parts.append(Text(f"... and {len(groups) - MOST_FAILURES} other reasons", style="dim"))
    return parts


def closing(
    history: History, folder: RunFolder, best: Best | None, proof_error: str = ""
) -> list[RenderableType]:
    """The last lines: the best trial and its folder; or why best/ was not made, and what to do.

    Args:
        proof_error: why the best checkpoint could not be made ready; empty if nothing went wrong,
            or it was not tried yet.
    """
    if best is None:
        reason = "no trial has completed" if history.trials else "no trial was trained"
        return [Text(f"No best checkpoint: {reason}.", style="bold red")]
    line = best_line(history, best)
    if is_ready(folder, best):
        return [
            Text(line, style="bold green"),
            Text(f"{folder_text(folder.best)}/", style="bold green"),
        ]
    return [Text(line, style="bold green"), *_not_ready(folder, best, proof_error)]


def best_line(history: History, best: Best) -> str:
    """The best trial, its value, and how much better than the base model that is."""
    value = best.report.metrics[history.metric]
    name = trial_name(best.record.values)
    line = f"Best: trial {best.record.number}" + (f" ({name})" if name else "")
    line += f", {history.metric} {loss_text(value)} at step {best.report.step}"
    if best.spread is not None:
        line += f"; mean of its repeats {loss_text(best.mean)} +- {loss_text(best.spread)}"
    improved = gain(history, value)
    if improved is not None:
        word = "better" if improved >= 0 else "worse"
        line += f"; {loss_text(abs(improved))} {word} than the base model"
    return line


def _not_ready(folder: RunFolder, best: Best, proof_error: str) -> list[RenderableType]:
    """Where the best checkpoint lies that best/ does not hold, and what became of best/."""
    checkpoint = f"{folder_text(folder.checkpoint(best.record.key, best.report.step))}/"
    parts: list[RenderableType] = []
    older = proof_of(folder)
    if older is not None:
        held = f"{folder_text(folder.best)}/ holds trial {older['number']}, step {older['step']}, "
        parts.append(unbroken(f"{held}which was the best of an earlier start."))
    if not proof_error:
        return [*parts, unbroken(f"{checkpoint} (so far; best/ is written at the end)")]
    why = f"The best checkpoint could not be made ready: {proof_error.rstrip('.')}."
    return [
        Text(why, style="bold red"),
        *parts,
        unbroken(f"The checkpoint, as it was saved: {checkpoint}"),
        Text(
            "The same command tries it again. If it fails again, train the winner again by the "
            "command above."
        ),
    ]


def title(history: History) -> Text:
    title = Text(history.name or "sweep", style="bold")
    if history.began is not None and history.latest is not None:
        title += Text(f"  {duration_text(history.latest - history.began)}  ", style="default")
    return title + counts_text(history)


def _few_rows(folder: RunFolder) -> list[str]:
    prompts = row_losses.prompts(folder)
    return [] if prompts is None else few_rows(len(prompts), len(set(prompts.tolist())))


def _noise_text(gap: float, noise: float | None, runner_up: int) -> str:
    ahead = f"The best is {loss_text(abs(gap))} {'ahead of' if gap >= 0 else 'behind'} the next"
    ahead += f" (trial {runner_up})"
    if noise is None:
        return (
            f"{ahead}. One seed each cannot tell that from chance; sweep.repeats=3 "
            "sweep.finalists=3, added to the same command, could."
        )
    if gap > noise:
        return f"{ahead}: more than chance, which explains up to {loss_text(noise)} (95%)."
    return (
        f"{ahead}: within chance, which explains up to {loss_text(noise)} (95%). Take the cheaper "
        "of the two, or run more repeats."
    )


def _best_values(best: Best | None) -> list[RenderableType]:
    if best is None or not best.record.values:
        return []
    values = [unbroken(f"  {_exact(*each)}") for each in best.record.values.items()]
    return [Text(), Text("Best values", style="bold"), *values]


def tested(
    history: History, best: Best | None, proof: Mapping[str, float] | None
) -> list[RenderableType]:
    """The winner's loss on the test split, if there is one and it was measured."""
    text = tested_text(history, best, proof) if best is not None and proof else ""
    return [Text(), Text(text)] if text else []


def _exact(key: str, value: object) -> str:
    """A searched value as it is typed, every digit kept."""
    try:
        return typed(key, value)
    except UnwritableError:
        return in_a_shell(f"{key}={json.dumps(value)}")


def _next_commands(
    history: History, folder: RunFolder, best: Best | None, again: str | None
) -> list[RenderableType]:
    is_adapter = (history.spec.get("peft") or {}).get("method") != "full"
    run_dir = folder_text(folder.root)
    commands = [(command_line(["status", run_dir]), "this table again")]
    if is_adapter and best is not None and is_ready(folder, best):
        merge = command_line(["export", run_dir, "--merge"])
        commands.append((merge, "one model, no adapter"))
    commands += [(again, "train the winner again")] if again else []
    lines = [unbroken(f"  {command}") + Text(f"  # {what}", "dim") for command, what in commands]
    table = unbroken(f"Every trial, every column: {folder_text(folder.table)}")
    return [Text(), Text("Next", style="bold"), *lines, Text(), table]
