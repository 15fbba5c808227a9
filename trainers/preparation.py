"""From raw rows to tokens: split, tokenized, cut at max_length, counted, refused where unfit."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset

from sweeps.errors import ConfigError, Problem, SweepError
from sweeps.spec import DataSpec, TrainSpec
from trainers.data_report import DataReport, labelled_tokens, lengths
from trainers.model_source import context_tokens, load_config
from trainers.rows import RawData
from trainers.split import Split, split
from trainers.tokenization import Tokenizing
from trainers.tokenizer import load_tokenizer


def tokenized(train: TrainSpec, raw: RawData) -> tuple[dict[str, Dataset], DataReport]:
    """The splits `train`, `eval` and, where asked for, `test` as token ids and labels.

    Raises:
        ConfigError, SweepError: max_length beyond the model's context, a tokenizer that cannot do
            what the rows need, an empty split, too many rows cut, or no labels left.
    """
    _refuse_long_context(train)
    parts = split(train.data, raw)
    notes = _source_notes(raw, train.data)
    tokenizing = Tokenizing(
        load_tokenizer(train.model, notes),
        train.trainer,
        is_chat=raw.layout.is_chat,
        has_completions="completion" in raw.layout.columns,
    )
    limit = train.data.max_length
    given = {"train": parts.train, "eval": parts.evaluation, "test": parts.test or []}
    whole = {name: tokenizing.tokenized(part, name) for name, part in given.items() if part}
    _refuse_truncation(train.data, whole)
    cut = {name: tokenizing.cut(part, limit, name) for name, part in whole.items()}
    for name, part in cut.items():
        _refuse_masked(name, part, before=len(whole[name]), limit=limit)
    notes += tokenizing.notes
    return cut, _report(train.data, raw, parts, whole, cut, notes)


def _report(
    spec: DataSpec,
    raw: RawData,
    parts: Split,
    whole: Mapping[str, Dataset],
    cut: Mapping[str, Dataset],
    notes: list[str],
) -> DataReport:
    truncated, count = _truncated(spec, whole)
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
        overlap_prompts=parts.overlap_prompts,
        notes=tuple(notes),
    )


def _source_notes(raw: RawData, spec: DataSpec) -> list[str]:
    notes = []
    if raw.layout.unused:
        notes.append(f"columns not used: {', '.join(raw.layout.unused)}")
    if spec.limit is not None and raw.evaluation is None:
        notes.append(f"data.limit={spec.limit} takes the first rows of the source")
    return notes


def _truncated(spec: DataSpec, whole: Mapping[str, Dataset]) -> tuple[int, int]:
    """(rows longer than max_length, rows), over all splits."""
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
