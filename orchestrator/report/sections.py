"""Fills the page from a sweep's history: each section in its place, in words and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.report.curves import (
    MOST_POINTS,
    curves_scale,
    evaluations,
    training,
)
from orchestrator.report.facts import words_of
from orchestrator.report.figures import (
    cost_figure,
    curves_figure,
    timeline_figure,
    training_figure,
)
from orchestrator.report.knobs import Knob, knobs_of
from orchestrator.report.optuna_figures import (
    MOST_LINES,
    importance_figure,
    parallel_figure,
    slice_figure,
)
from orchestrator.report.page import (
    Figure,
    Section,
    commands_html,
    facts_html,
    hint_html,
    page,
)
from orchestrator.report.table import MOST_ROWS, ranked_table
from orchestrator.report.text import escaped
from orchestrator.report.timeline import Span
from orchestrator.report.view import View
from orchestrator.terminal.summary import outlook_at_the_end
from sweeps.ledger.history import History
from sweeps.results.importance import why_no_importance
from sweeps.results.outlook import Hint
from sweeps.results.ranking import best
from sweeps.results.significance import compare
from sweeps.results.trials_csv import Row, ranked
from sweeps.search.optuna_export import completed_study
from sweeps.storage.run_folder import RunFolder

_COSTS = (
    ("tokens_per_second", "speed alone, tokens per second", True),
    ("peak_memory_mb", "peak memory alone, MiB", False),
    ("optimizer_state_mb", "optimizer state, MiB", False),
)
_MOST_SLICES = 24


def report_html(
    folder: RunFolder,
    history: History,
    spans: Sequence[Span],
    *,
    holder: str | None,
    again: str | None,
    now: float,
) -> str:
    """The whole page.

    Args:
        spans: of `Timeline.until_now`.
        holder: the living driver; None if there is none.
        again: as in `words_of`.
        now: seconds since the epoch.
    """
    found = best(history)
    comparison = compare(history, folder)
    words = words_of(folder, history, found, comparison, holder=holder, again=again, now=now)
    rows = ranked(history, comparison)
    builder = _Builder(
        folder=folder,
        history=history,
        rows=rows,
        spans=spans,
        hints=outlook_at_the_end(history, folder),
        view=View.of(history, rows[:MOST_ROWS], None if found is None else found.record.number),
    )
    sections = [
        *builder.sections(),
        Section(name="facts", title="Data, model and budget", body=facts_html(words.facts)),
        Section(name="commands", title="Commands", body=commands_html(words.commands)),
    ]
    made = f"Written by sft-sweeps, {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    return page(history.name or "sweep", words, sections, made)


@dataclass(frozen=True, kw_only=True)
class _Builder:
    """Makes the sections with figures and the table.

    Attributes:
        rows: of all trials; `view` has the first of them.
    """

    folder: RunFolder
    history: History
    rows: Sequence[Row]
    spans: Sequence[Span]
    hints: Sequence[Hint]
    view: View

    def sections(self) -> Iterator[Section]:
        yield self._table()
        yield from self._curves()
        knobs = knobs_of(self.history, self.view.rows)
        yield from self._slices(knobs)
        yield from self._together(knobs)
        yield from self._costs()
        yield from self._timeline()

    def _table(self) -> Section:
        note = "A click on a column's head sorts by it."
        if any(row.behind is not None for row in self.rows):
            note += " behind: eval_loss above the best's, with the ends of its 95% interval."
        if len(self.rows) > len(self.view.rows):
            most = f"{len(self.view.rows):,} of {len(self.rows):,}"
            note += f" The first {most} trials; trials.csv has all."
        table = ranked_table(self.history, self.rows)
        body = f'<p class="note">{note}</p><div class="table">{table}</div>' if self.rows else ""
        return Section(name="table", title="All trials, ranked", body=body or _EMPTY)

    def _curves(self) -> Iterator[Section]:
        figures = []
        if curves := evaluations(self.history, self.view.rows):
            note = (
                "Dotted curves ended early: a cross where a trial was pruned or failed, a "
                "square where it was stopped, a triangle where it diverged. What lies "
                "far above the base model is cut off; a double click shows it."
            )
            figure = curves_figure(self.view, curves, curves_scale(self.history))
            figures.append(
                Figure(name="curves", figure=figure, title=self.view.metric, note=_note(note))
            )
        if curves := training(self.folder, self.view.rows):
            note = f"Means over a window, thinned to {MOST_POINTS} points for each trial."
            figure = training_figure(self.view, curves)
            figures.append(
                Figure(name="training", figure=figure, title="Training loss", note=_note(note))
            )
        falling = "".join(hint_html(h.text, h.command) for h in self.hints if not h.knob)
        if figures:
            yield Section(name="learning", title="Learning curves", body=falling, figures=figures)

    def _slices(self, knobs: Sequence[Knob]) -> Iterator[Section]:
        edges = {hint.knob: hint_html(hint.text, hint.command) for hint in self.hints}
        figures = [
            Figure(
                name=f"slice-{i}",
                figure=slice_figure(self.view, knob),
                title=escaped(knob.name),
                note=edges.get(knob.name, ""),
            )
            for i, knob in enumerate(knobs[:_MOST_SLICES])
        ]
        if figures and self.view.best is not None:
            note = (
                f"{self.view.metric} of each completed trial, repeats one by one. "
                "Marks at the upper edge are trials that ended early."
            )
            yield Section(name="knobs", title="Each knob", body=_note(note), figures=figures)

    def _together(self, knobs: Sequence[Knob]) -> Iterator[Section]:
        if self.view.best is None or not knobs:
            return
        lines = parallel_figure(self.view, knobs)
        count = sum(row.rank is not None for row in self.rows)
        most = f"the best {MOST_LINES} of {count:,} completed trials" if count > MOST_LINES else ""
        note = "A line is a trial: the best is green, a worse one paler" + (most and f"; {most}")
        if any(knob.of(row) is None for knob in knobs for row in self.view.rows):
            note += "; None: the knob was not active"
        yield Section(
            name="parallel",
            title="All knobs together",
            body=_note(f"{note}."),
            figures=[Figure(name="coordinates", figure=lines, width=140 * (len(knobs) + 1))],
        )
        study = completed_study(self.history)
        why_not = why_no_importance(study)
        if why_not is not None:
            body, figures = _note(f"Not computed: {why_not}."), []
        else:
            heads = {knob.name: knob.head for knob in knobs}
            body = _note("Each knob's share of what sets the best trials apart (PED-ANOVA).")
            figures = [Figure(name="shares", figure=importance_figure(study, heads))]
        yield Section(name="importance", title="Importance", body=body, figures=figures)

    def _costs(self) -> Iterator[Section]:
        figures = []
        for field, title, more_is_cheap in _COSTS:
            figure = cost_figure(self.view, field, title, more_is_cheap=more_is_cheap)
            if figure is not None:
                figures.append(Figure(name=f"cost-{field}", figure=figure, title=title))
        if figures:
            note = _note(
                "The cheap side is on the left in each; in the green corner it is good, too."
            )
            yield Section(name="cost", title="Loss against cost", body=note, figures=figures)

    def _timeline(self) -> Iterator[Section]:
        if not self.spans:
            return
        figure = timeline_figure(self.view, self.spans)
        note = _note("A bar is a trial on a device; trials that share one lie below each other.")
        yield Section(
            name="timeline",
            title="Devices over time",
            body=note,
            figures=[Figure(name="devices", figure=figure, width=560)],
        )


_EMPTY = '<p class="note">No trial has been asked for yet.</p>'


def _note(text: str) -> str:
    return f'<p class="note">{text}</p>'
