"""Splits, tokenizes, cuts and counts raw rows, and refuses rows that cannot be trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from sweeps.config.spec import DataSpec, TrainSpec
from sweeps.core.errors import ConfigError, Problem, SweepError
from sweeps.results.intervals import few_rows, shared_text
from trainers.data.readers import BadRow
from trainers.data.rows import RawData, bad_rows_error
from trainers.data.split import Split, prompt_numbers, split
from trainers.data.tokenization import PROMPT, Tokenizing, roles
from trainers.model.source import context_tokens, embedded_tokens, load_config
from trainers.model.tokenizer import IGNORED, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Counts of one prepared data set. Rows are counted after bad and fully masked ones are gone.

    Attributes:
        source: the data's source in words.
        shape: what the rows hold.
        rows_read: good rows of the source.
        skipped_rows: bad rows left out.
        train_tokens: tokens of the training rows, prompt included.
        eval_labelled_tokens: evaluation tokens with a label: eval_loss is the mean over them.
        mean_tokens, max_tokens: length of the training rows, after the cut.
        truncated_rows: rows cut at max_length, of all splits.
        truncated_share: of all rows.
        masked_rows: rows dropped because the cut left none of their labels.
        overlap_prompts: evaluation rows whose prompt is a training row's too.
        eval_prompts: different prompts of the evaluation rows; 0 in reports of older versions.
        notes: other things that a user should know.
        stops: ids of the tokens at which generation stops; empty in reports of older versions.
        turns: role -> turns of chats, of all rows.
    """

    source: str
    shape: str
    rows_read: int
    skipped_rows: int
    train_rows: int
    eval_rows: int
    test_rows: int
    train_tokens: int
    eval_labelled_tokens: int
    mean_tokens: float
    max_tokens: int
    max_length: int
    truncated_rows: int
    truncated_share: float
    masked_rows: int
    overlap_prompts: int
    notes: tuple[str, ...] = ()
    stops: tuple[int, ...] = ()
    turns: Mapping[str, int] = dataclasses.field(default_factory=dict)
    eval_prompts: int = 0

    def lines(self) -> list[str]:
        """The report for a person; counts of zero are left out."""
        test = f", {self.test_rows:,} for testing" if self.test_rows else ""
        lines = [
            f"data: {self.source}; {self.shape}",
            f"  {self.train_rows:,} rows to train on, {self.eval_rows:,} to evaluate on{test}",
            f"  {self.train_tokens:,} training tokens, {self.mean_tokens:.0f} a row (longest "
            f"{self.max_tokens:,}); {self.eval_labelled_tokens:,} labelled evaluation tokens",
        ]
        if self.turns:
            counts = ", ".join(f"{role} {count:,}" for role, count in self.turns.items())
            lines.append(f"  turns: {counts}")
        warned = {
            f"{self.skipped_rows:,} bad rows skipped": self.skipped_rows,
            f"{self.truncated_rows:,} rows ({self.truncated_share:.1%}) cut at "
            f"{self.max_length:,} tokens": self.truncated_rows,
            f"{self.masked_rows:,} rows dropped: the cut left no label": self.masked_rows,
            f"{shared_text(self.overlap_prompts, self.eval_rows)}": self.overlap_prompts,
        }
        lines += [f"  {words}" for words, count in warned.items() if count]
        lines += [f"  {line}" for line in few_rows(self.eval_rows, self._prompts)]
        return lines + [f"  note: {note}" for note in self.notes]

    @property
    def _prompts(self) -> int:
        return self.eval_prompts or self.eval_rows

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DataReport:
        tuples = {name: tuple(data.get(name, ())) for name in ("notes", "stops")}
        return cls(**{**data, **tuples})


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Tokenized rows before the cut.

    Attributes:
        rows: split -> its rows, as token ids and labels.
        places: split -> the file and line of each row.
        raw: the rows as they were read, without those that could not be tokenized.
        parts: the same rows, split.
        tokenizing: what made them.
        notes: what a user should know of them.
    """

    rows: Mapping[str, Dataset]
    places: Mapping[str, Sequence[str]]
    raw: RawData
    parts: Split
    tokenizing: Tokenizing
    notes: Sequence[str]


def tokenized(train: TrainSpec, raw: RawData) -> tuple[dict[str, Dataset], DataReport]:
    """Make the splits `train`, `eval` and, if asked for, `test`, as token ids and labels.

    Rows to measure on have a third column, `tokenization.PROMPT`.

    Raises:
        ConfigError, SweepError: max_length beyond the model's context, a tokenizer that cannot do
            what the rows need, an empty split, too many rows cut, or no labels left.
    """
    return counted(train.data, tokenized_whole(train, raw))


def tokenized_whole(train: TrainSpec, raw: RawData) -> Whole:
    """Split and tokenize raw rows; raises as `tokenized`."""
    _refuse_long_context(train)
    parts = split(train.data, raw)
    notes = [*_source_notes(raw, train.data), *parts.notes]
    tokenizer = load_tokenizer(train.model, notes)
    tokenizing = Tokenizing(
        tokenizer,
        train.trainer,
        is_chat=raw.layout.is_chat,
        has_completions="completion" in raw.layout.columns,
    )
    given = {"train": parts.train, "eval": parts.evaluation, "test": parts.test or []}
    bad: list[BadRow] = []
    whole = {name: tokenizing.tokenized(part, bad) for name, part in given.items() if part}
    raw = _without(raw, bad, train.data)
    _refuse_none_left(whole, bad, train.data, raw)
    every = [row for part in given.values() for row in part]
    notes += [*tokenizing.notes, *tokenizing.template_notes(every), *tokenizing.seam_notes()]
    left_out = {each.where for each in bad}
    places = {
        name: [row.where for row in part if row.where not in left_out]
        for name, part in given.items()
    }
    for name, part in whole.items():
        _refuse_unembedded(train, tokenizer, part, places[name])
    for name in [name for name in whole if name != "train"]:
        kept = [row.values for row in given[name] if row.where not in left_out]
        whole[name] = whole[name].add_column(PROMPT, np.array(prompt_numbers(kept), np.int32))
    return Whole(
        rows=whole, places=places, raw=raw, parts=parts, tokenizing=tokenizing, notes=notes
    )


def counted(spec: DataSpec, found: Whole) -> tuple[dict[str, Dataset], DataReport]:
    """Cut the rows of each split, and count them; raises as `tokenized`."""
    whole, limit = found.rows, spec.max_length
    _refuse_truncation(spec, whole)
    cut = {name: found.tokenizing.cut(part, limit, name) for name, part in whole.items()}
    for name, part in cut.items():
        _refuse_masked(name, part, before=len(whole[name]), limit=limit)
    return cut, _report(spec, found, cut)


def _without(raw: RawData, bad: list[BadRow], spec: DataSpec) -> RawData:
    """Leave out the rows that could not be tokenized, if they may be skipped; else refuse."""
    if not bad:
        return raw
    if spec.on_bad_row == "error":
        raise bad_rows_error(spec, bad, read=raw.read)
    places = {each.where for each in bad}
    evaluation = raw.evaluation_rows
    kept = dataclasses.replace(
        raw,
        train_rows=[row for row in raw.train_rows if row.where not in places],
        evaluation_rows=(
            None if evaluation is None else [row for row in evaluation if row.where not in places]
        ),
    )
    return dataclasses.replace(kept, skipped=raw.skipped + raw.read - kept.read)


def _refuse_none_left(
    whole: Mapping[str, Dataset], bad: list[BadRow], spec: DataSpec, raw: RawData
) -> None:
    """Refuse a split that lost all its rows with the skipped ones."""
    if bad and not all(len(part) for part in whole.values()):
        raise bad_rows_error(spec, bad, read=raw.read + len(bad))


def _refuse_unembedded(
    train: TrainSpec, tokenizer: PreTrainedTokenizerBase, part: Dataset, places: Sequence[str]
) -> None:
    """Raise SweepError if rows hold tokens beyond the model's embedding.

    Nothing is resized for them: LoRA would leave the new rows of the embedding as they were drawn.

    Args:
        places: of the rows.
    """
    most = embedded_tokens(load_config(train.model))
    column = part.with_format("arrow")[:].column("input_ids")
    ids = pc.list_flatten(column).to_numpy()
    beyond = np.flatnonzero(ids >= most) if most is not None else ids[:0]
    if not len(beyond):
        return
    rows = np.searchsorted(np.cumsum(lengths(part)), beyond, side="right")
    token = int(ids[beyond[0]])
    raise SweepError(
        f"{len(np.unique(rows)):,} of {len(part):,} rows hold tokens that the model cannot read: "
        f"{tokenizer.convert_ids_to_tokens(token)!r} in {places[rows[0]]} has the id {token:,}, "
        f"and {train.model.path} has embeddings for {most:,} tokens. Make it larger once, by "
        "model.resize_token_embeddings(len(tokenizer)), save it with its tokenizer and set "
        "model.path=FOLDER with peft.modules_to_save=[embed_tokens], which trains the new ones; or "
        "write the rows without these tokens (model.chat_template=FILE.jinja, if they are its)"
    )


def lengths(dataset: Dataset) -> np.ndarray:
    """Count the tokens of each row, [rows]."""
    table = dataset.with_format("arrow")[:]
    counts = pc.list_value_length(table.column("input_ids"))
    return np.asarray(counts.to_numpy(), dtype=np.int64)


def labelled_tokens(dataset: Dataset) -> int:
    """Count tokens that a loss is taken over: labelled, and not a row's first token."""
    table = dataset.with_format("arrow")[:]
    labels = pc.list_flatten(table.column("labels")).to_numpy()  # all rows in one
    counts = np.asarray(pc.list_value_length(table.column("labels")).to_numpy(), dtype=np.int64)
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    return int((labels != IGNORED).sum() - (labels[firsts] != IGNORED).sum())


def _report(
    spec: DataSpec,
    found: Whole,
    cut: Mapping[str, Dataset],
) -> DataReport:
    raw = found.raw
    truncated, count = _truncated(spec, found.rows)
    train_lengths = lengths(cut["train"])
    return DataReport(
        source=raw.source,
        shape=raw.layout.words,
        rows_read=raw.read,
        skipped_rows=raw.skipped,
        train_rows=len(cut["train"]),
        eval_rows=len(cut["eval"]),
        test_rows=len(cut.get("test", ())),
        train_tokens=int(train_lengths.sum()),
        eval_labelled_tokens=labelled_tokens(cut["eval"]),
        mean_tokens=round(float(train_lengths.mean()), 1),
        max_tokens=int(train_lengths.max()),
        max_length=spec.max_length,
        truncated_rows=truncated,
        truncated_share=truncated / count,
        masked_rows=count - sum(len(part) for part in cut.values()),
        overlap_prompts=found.parts.overlap_prompts,
        notes=tuple(found.notes),
        stops=found.tokenizing.stops,
        eval_prompts=len(set(cut["eval"][PROMPT])),
        turns=roles(row.values for row in [*raw.train_rows, *(raw.evaluation_rows or ())]),
    )


def _source_notes(raw: RawData, spec: DataSpec) -> list[str]:
    notes = list(raw.notes)
    if raw.layout.unused:
        names = [name or "the one without a name" for name in raw.layout.unused]
        notes.append(f"columns not used: {', '.join(names)}")
    if spec.limit is not None and raw.evaluation is None:
        notes.append(f"data.limit={spec.limit} takes the first rows of the source")
    return notes


def _truncated(spec: DataSpec, whole: Mapping[str, Dataset]) -> tuple[int, int]:
    """Count (rows longer than max_length, rows) over all splits."""
    counts = [lengths(part) for part in whole.values()]
    return (
        sum(int((count > spec.max_length).sum()) for count in counts),
        sum(len(count) for count in counts),
    )


def _refuse_truncation(spec: DataSpec, whole: Mapping[str, Dataset]) -> None:
    truncated, count = _truncated(spec, whole)
    if truncated > spec.max_truncated * count:
        longest = max(int(lengths(part).max()) for part in whole.values())
        raise SweepError(
            f"{truncated} of {count} rows ({truncated / count:.0%}) are longer than "
            f"data.max_length={spec.max_length} tokens and would be cut; data.max_truncated allows "
            f"{spec.max_truncated:.0%}. The longest has {longest}: raise data.max_length, shorten "
            "the rows, or raise data.max_truncated"
        )


def _refuse_masked(name: str, part: Dataset, *, before: int, limit: int) -> None:
    if len(part) and labelled_tokens(part):
        return
    raise SweepError(
        f"every label of the {name} split is masked: {before} rows before the cut at "
        f"data.max_length={limit}, {len(part)} after it, none with a token to learn. Prompts that "
        "fill max_length leave no room for an answer: raise data.max_length"
    )


def _refuse_long_context(train: TrainSpec) -> None:
    context = context_tokens(load_config(train.model))
    if context is not None and train.data.max_length > context:
        message = (
            f"{train.model.path} reads at most {context} tokens; set data.max_length={context} or "
            "less, or take a model with a longer context"
        )
        raise ConfigError(
            [Problem(key="data.max_length", value=train.data.max_length, message=message)]
        )
