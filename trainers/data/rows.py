"""Reads the raw rows of a data set, maps them to our columns, and checks them.

A row comes out in one of three shapes, TRL's own: `prompt` + `completion` (text, or lists of
messages), `messages`, or `text`. All rows of a data set have the same shape. A bad row is named by
its file and line. No torch, no model: bad rows are found before anything slow begins.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.config.spec import DataSpec
from sweeps.core.commands import typed
from sweeps.core.errors import ConfigError, SweepError
from trainers.data import readers
from trainers.data.columns import reached
from trainers.data.files import in_words, matching, rows_of_files
from trainers.data.messages import message_notes
from trainers.data.readers import BadRow, FileRow
from trainers.data.schema import Layout, checked, describe, layout, spec_problems
from trainers.model import hub

_SHOWN_BAD_ROWS = 20

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RawData:
    """Rows as they were read, before any split.

    Attributes:
        source: the data's source in words.
        train_rows: the rows to split; all are training rows if `evaluation` has its own source.
        evaluation_rows: rows of `eval_path` or `eval_split`; None if they are split off `train`.
        layout: shape and columns, the same for all rows.
        skipped: bad rows left out because of `on_bad_row=skip`.
        notes: what a user should know of how the rows were read.
    """

    source: str
    train_rows: list[FileRow]
    evaluation_rows: list[FileRow] | None
    layout: Layout
    skipped: int
    notes: tuple[str, ...] = ()

    @property
    def train(self) -> list[Values]:
        return [row.values for row in self.train_rows]

    @property
    def evaluation(self) -> list[Values] | None:
        rows = self.evaluation_rows
        return None if rows is None else [row.values for row in rows]

    @property
    def read(self) -> int:
        """The number of good rows of both sources."""
        return len(self.train_rows) + len(self.evaluation_rows or ())


def read(spec: DataSpec) -> RawData:
    """Read the rows that `spec` names.

    Raises:
        ConfigError: `spec` contradicts itself, or maps columns that are not there.
        SweepError: a missing or damaged source, no rows at all, or bad rows (up to twenty shown).
    """
    if problems := spec_problems(spec):
        raise ConfigError(problems)
    bad: list[BadRow] = []
    columns = {ours: str(theirs) for ours, theirs in spec.columns.items()}
    train_files: Counter[Path] = Counter()
    evaluation_files: Counter[Path] = Counter()
    raw_train = itertools.islice(_train_rows(spec, train_files), spec.limit)
    raw = _collect(_reaching(raw_train, columns), bad)
    own = _own_evaluation(spec, evaluation_files)
    evaluation = None if own is None else _collect(_reaching(own, columns), bad)
    if not raw and not bad:
        raise SweepError(f"{describe(spec)}: there are no rows in it")
    if not raw:
        raise bad_rows_error(spec, bad, read=len(bad))
    form = layout(spec, raw)
    count = len(raw) + len(evaluation or ()) + len(bad)
    good = _collect((checked(row, form) for row in raw), bad)
    good_evaluation = None
    if evaluation is not None:
        _check_same_layout(spec, form, evaluation)
        good_evaluation = _collect((checked(row, form) for row in evaluation), bad)
    if bad and (spec.on_bad_row == "error" or not good):
        raise bad_rows_error(spec, bad, read=count)
    return RawData(
        source=describe(spec),
        train_rows=good,
        evaluation_rows=good_evaluation,
        layout=form,
        skipped=len(bad),
        notes=(
            *(rows_of_files(each) for each in (train_files, evaluation_files) if len(each) > 1),
            *_notes(form, [*raw, *(evaluation or ())]),
        ),
    )


def _notes(form: Layout, rows: Sequence[FileRow]) -> list[str]:
    """The schema that was recognised, and what messages hold that is read otherwise or not."""
    notes = []
    if form.known_as:
        mapping = typed("data.columns", dict(form.columns))
        notes.append(f"the rows are read as {form.known_as}; to read them otherwise: {mapping}")
    if not form.is_chat:
        return notes
    fields = [theirs for ours, theirs in form.columns.items() if ours not in ("tools", "system")]
    return notes + message_notes(row.values.get(name) for row in rows for name in fields)


def _train_rows(spec: DataSpec, files: Counter[Path]) -> Iterator[FileRow | BadRow]:
    if spec.source == "docstrings":
        from trainers.data import docstrings

        for number, values in enumerate(docstrings.rows(), start=1):
            yield FileRow(f"docstrings: row {number}", dict(values))
        return
    assert spec.path is not None
    if spec.source == "file":
        yield from _file_rows("data.path", spec.path, spec, files)
    else:
        assert isinstance(spec.path, str)
        yield from _hub_rows(spec, spec.path, spec.split, "data.split")


def _file_rows(
    key: str, named: str | Sequence[str], spec: DataSpec, files: Counter[Path]
) -> Iterator[FileRow | BadRow]:
    """Read the rows of files, and count those of each."""
    for path in matching(key, named):
        files[path] = 0
        for row in readers.read(key, path, spec.format, spec.encoding):
            files[path] += 1
            yield row


def _own_evaluation(spec: DataSpec, files: Counter[Path]) -> Iterator[FileRow | BadRow] | None:
    if spec.eval_path:
        return _file_rows("data.eval_path", spec.eval_path, spec, files)
    if spec.eval_split:
        assert isinstance(spec.path, str)
        return _hub_rows(spec, spec.path, spec.eval_split, "data.eval_split")
    return None


def _hub_rows(spec: DataSpec, path: str, split: str, key: str) -> Iterator[FileRow | BadRow]:
    """Read rows of a data set of the Hub, or of a local folder laid out like one."""
    import datasets

    with hub.reading("data set", path, local=hub.is_local(path)):
        table = datasets.load_dataset(path, spec.name, split=split, revision=spec.revision)
    if not isinstance(table, datasets.Dataset):
        raise SweepError(f"{key} = {split}: names several splits; name one")
    for number, values in enumerate(table, start=1):
        yield FileRow(f"{path}[{split}]: row {number}", readers.own_keys(values))


def _reaching(
    found: Iterable[FileRow | BadRow], columns: Mapping[str, str]
) -> Iterator[FileRow | BadRow]:
    """The rows with the nested values that `data.columns` names."""
    for each in found:
        if isinstance(each, FileRow) and columns:
            yield FileRow(each.where, reached(each.values, columns))
        else:
            yield each


def _collect(found: Iterable[FileRow | BadRow], bad: list[BadRow]) -> list[FileRow]:
    """Collect the good rows; add the others to `bad`."""
    good = []
    for each in found:
        if isinstance(each, FileRow):
            good.append(each)
        else:
            bad.append(each)
    return good


def _check_same_layout(spec: DataSpec, form: Layout, evaluation: list[FileRow]) -> None:
    """Raise SweepError if the evaluation rows do not have the shape of the training rows."""
    source = in_words(spec.eval_path or spec.eval_split)
    if not evaluation:
        raise SweepError(
            f"the evaluation data {source} has no usable rows; without any, no trial can be ranked"
        )
    other = layout(spec, evaluation)
    if (other.shape, other.is_chat) != (form.shape, form.is_chat):
        raise SweepError(
            f"the training rows are {form.words} and the evaluation rows of {source} are "
            f"{other.words}; bring both into one shape"
        )


def bad_rows_error(spec: DataSpec, bad: Sequence[BadRow], *, read: int) -> SweepError:
    """The refusal that names bad rows, and how to go on without them."""
    count = len(bad)
    shown = [f"  {each.where}: {each.why}" for each in bad[:_SHOWN_BAD_ROWS]]
    more = f", the first {_SHOWN_BAD_ROWS} of them" if count > _SHOWN_BAD_ROWS else ""
    head = f"{count} of {read} rows cannot be used{more}:"
    left = "none would be left" if count == read else "data.on_bad_row=skip leaves them out"
    return SweepError("\n".join([head, *shown, f"Mend them in {describe(spec)}; {left}"]))
