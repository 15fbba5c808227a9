"""Prepared data: what SFTTrainer would have made of the rows, split without leaks, and counted."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset

from sweeps.config.spec import BudgetSpec, DataSpec, ModelSpec, TrainSpec
from sweeps.config.trial_config import trial_key
from sweeps.core.errors import ConfigError, SweepError
from trainers.data import dataset as data_dataset
from trainers.data import docstrings
from trainers.data import fingerprint as data_fingerprint
from trainers.data.preparation import DataReport, tokenized
from trainers.data.readers import FileRow
from trainers.data.rows import read
from trainers.data.schema import spec_problems
from trainers.data.split import limited, place, split
from trainers.model.loading import load_base
from trainers.model.source import resolve_path
from trainers.model.tokenizer import load_tokenizer

TINY = ModelSpec(path="tiny")
CONF = Path(__file__).parents[3] / "conf"


def train_spec(
    path: Path | None = None,
    *,
    model: ModelSpec = TINY,
    trainer: dict[str, Any] | None = None,
    **values: Any,
) -> TrainSpec:
    source: dict[str, Any] = {"source": "docstrings"}
    if path is not None:
        source = {"source": "file", "path": str(path)}
    defaults = {"limit": None if path else 200, "eval_fraction": 0.2, "max_length": 128}
    return TrainSpec(
        model=model,
        data=DataSpec(**{**source, **defaults, **values}),
        peft={"method": "lora"},
        trainer=trainer or {},
        seed=0,
        budget=BudgetSpec(examples=100),
        evaluations=2,
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"What is {i} + {i}?"},
                {"role": "assistant", "content": f"It is {i + i}."},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Yes."},
            ]
        }
        for i in range(count)
    ]


def chat_pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": row["messages"][:2], "completion": row["messages"][2:3]} for row in chats(count)
    ]


def model_without(tmp_path: Path, *names: str) -> ModelSpec:
    """The embedded model, its tokenizer without a chat template, a pad or an eos token."""
    folder = tmp_path / "without"
    shutil.copytree(resolve_path("tiny"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for name in names:
        settings.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if "chat_template" in names:
        (folder / "chat_template.jinja").unlink()
    return ModelSpec(path=str(folder))


def model_with(tmp_path: Path, **special: str) -> ModelSpec:
    """The embedded model, with tokens in its tokenizer that it has no embedding for."""
    folder = tmp_path / "with"
    shutil.copytree(resolve_path("tiny"), folder)
    tokenizer = load_tokenizer(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"], **special})
    tokenizer.save_pretrained(str(folder))
    return ModelSpec(path=str(folder))


def columns(dataset: Dataset) -> list[tuple[list[int], list[int]]]:
    return list(zip(dataset["input_ids"], dataset["labels"], strict=True))


@pytest.mark.parametrize(
    ("rows", "max_length", "trainer"),
    [
        (docstrings.rows, 32, {}),
        (docstrings.rows, 32, {"completion_only_loss": False}),
        (lambda: [{"text": row["completion"]} for row in docstrings.rows()], 12, {}),
        (lambda: chats(40), 50, {"assistant_only_loss": True}),
        (lambda: chats(40), 50, {}),
        (lambda: chat_pairs(40), 40, {}),
    ],
    ids=["pairs", "pairs_whole", "text", "chats_assistant", "chats", "chat_pairs"],
)
def test_rows_equal_what_sfttrainer_makes_of_them(
    tmp_path: Path, rows: Any, max_length: int, trainer: dict[str, Any]
) -> None:
    from trl import SFTConfig, SFTTrainer

    given = rows()[:40]
    path = write_rows(tmp_path / "rows.jsonl", given)
    spec = train_spec(path, trainer=trainer, max_length=max_length, max_truncated=1)
    splits, report = tokenized(spec, read(spec.data))
    split_rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    for row in given:
        split_rows["eval" if place(row) < spec.data.eval_fraction else "train"].append(row)
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_length=max_length, bf16=False, use_cpu=True, **trainer
    )
    reference = SFTTrainer(
        load_base(TINY, "cpu"),
        args=arguments,
        train_dataset=Dataset.from_list(split_rows["train"]),
        eval_dataset=Dataset.from_list(split_rows["eval"]),
        processing_class=load_tokenizer(TINY),
    )
    assert splits["train"].column_names == ["input_ids", "labels"]
    assert columns(splits["train"]) == columns(reference.train_dataset)
    assert columns(splits["eval"]) == columns(reference.eval_dataset)
    assert report.truncated_rows > 0  # so that the cut is compared too
    assert report.masked_rows == 40 - sum(len(part) for part in splits.values())


def test_prepared_rows_pass_through_sfttrainer_unchanged(tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    prepared = data_dataset.prepare(train_spec(), tmp_path / "data")
    rows = data_dataset.stream(prepared.train, 300, seed=1)
    trainer = SFTTrainer(
        load_base(TINY, "cpu"),
        args=SFTConfig(output_dir=str(tmp_path), max_length=128, bf16=False, use_cpu=True),
        train_dataset=rows,
        processing_class=load_tokenizer(TINY),
    )
    assert columns(trainer.train_dataset) == columns(rows)


def test_prepare_saves_loads_and_counts(tmp_path: Path) -> None:
    spec = train_spec(test_fraction=0.2, eval_limit=20)
    prepared = data_dataset.prepare(spec, tmp_path / "data")
    report = prepared.report
    assert prepared.test is not None
    counts = (len(prepared.train), len(prepared.evaluation), len(prepared.test))
    assert counts == (report.train_rows, report.eval_rows, report.test_rows)
    assert report.eval_rows == 20
    assert report.rows_read == 200
    tokens = [len(ids) for ids in prepared.train["input_ids"]]
    assert (report.train_tokens, report.max_tokens) == (sum(tokens), max(tokens))
    labels = prepared.evaluation["labels"]
    assert report.eval_labelled_tokens == sum(x != -100 for row in labels for x in row[1:])
    assert DataReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert any("20 to evaluate on" in line for line in report.lines())
    loaded = data_dataset.load(tmp_path / "data")
    assert loaded.train.cache_files  # memory-mapped, not read
    assert columns(loaded.train) == columns(prepared.train)


def test_first_token_of_a_text_is_not_counted_as_labelled(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "def a(b):"}, {"text": "return b + c"}])
    spec = train_spec(path, eval_path=str(path))
    splits, report = tokenized(spec, read(spec.data))
    tokens = sum(len(ids) for ids in splits["eval"]["input_ids"])
    assert report.eval_labelled_tokens == tokens - 2  # nothing predicts them


def test_second_prepare_reuses_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", docstrings.rows()[:60])
    spec = train_spec(path)
    first = data_dataset.prepare(spec, tmp_path / "data")
    moved = path.rename(tmp_path / "moved.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(data_dataset, "tokenized", lambda *_: pytest.fail("prepared again"))
        again = data_dataset.prepare(train_spec(moved), tmp_path / "data")
    assert again.fingerprint == first.fingerprint
    write_rows(moved, docstrings.rows()[:61])
    grown = data_dataset.prepare(train_spec(moved), tmp_path / "data")
    assert grown.fingerprint != first.fingerprint
    assert grown.report.rows_read == 61


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 64},
        {"eval_fraction": 0.3},
        {"trainer": {"completion_only_loss": False}},
        {"limit": 100},
    ],
)
def test_fingerprint_follows_what_decides_the_rows(change: dict[str, Any]) -> None:
    assert data_fingerprint.fingerprint(train_spec(**change)) != data_fingerprint.fingerprint(
        train_spec()
    )
    other_rate = train_spec(trainer={"learning_rate": 0.1})
    assert data_fingerprint.fingerprint(other_rate) == data_fingerprint.fingerprint(train_spec())


def test_a_run_folder_of_the_first_release_keeps_its_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder whose fingerprint changes is refused, though its rows are the same."""
    monkeypatch.setattr(sys, "version", "3.x")
    content = "\n".join(data_fingerprint._content(DataSpec(source="docstrings")))
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "b04b4b7e976938d3"


def test_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            data_dataset.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
        )
        with pytest.raises(OSError, match="disk full"):
            data_dataset.prepare(train_spec(), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_kill_in_the_middle_of_saving_leaves_nothing_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized(train_spec(), read(train_spec().data))  # imports, so that the child need not
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(
            data_dataset, "write_text", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        )
        data_dataset.prepare(train_spec(), tmp_path / "data")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    assert (leftover / "train").is_dir()  # it died between the rows and the report
    assert data_dataset.prepare(train_spec(), tmp_path / "data").report.rows_read == 200
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("damage", ["report.json", "train/dataset_info.json", "eval"])
def test_damaged_prepared_data_is_refused(tmp_path: Path, damage: str) -> None:
    data_dataset.prepare(train_spec(), tmp_path / "data")
    target = tmp_path / "data" / damage
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.write_text("{")
    with pytest.raises(SweepError, match=r"holds no whole prepared data .* Remove it"):
        data_dataset.load(tmp_path / "data")


def test_split_is_by_content(tmp_path: Path) -> None:
    rows = docstrings.rows()[:300]
    doubled = write_rows(tmp_path / "rows.jsonl", [*reversed(rows), *rows])
    spec = train_spec(doubled)
    splits, report = tokenized(spec, read(spec.data))
    sides = [{json.dumps(row) for row in columns(part)} for part in splits.values()]
    assert not sides[0] & sides[1]
    assert report.overlap_prompts == 0
    assert len(splits["eval"]) == 2 * sum(place(row) < 0.2 for row in rows)
    assert 0.12 < len(splits["eval"]) / 600 < 0.28


def test_eval_limit_takes_rows_by_content_and_keeps_their_order() -> None:
    rows = [FileRow("", values) for values in docstrings.rows()[:200]]
    chosen = limited(rows, 50)
    assert [row for row in rows if row in chosen] == chosen
    assert len(chosen) == 50
    assert chosen != rows[:50]
    other_order = limited(rows[::-1], 50)
    assert other_order[::-1] == chosen


def test_prompts_on_both_sides_are_counted(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c"}] * 3)
    evaluation = write_rows(
        tmp_path / "b.jsonl",
        [{"prompt": "p", "completion": "d"}, {"prompt": "q", "completion": "c"}],
    )
    spec = train_spec(train, eval_path=str(evaluation))
    _, report = tokenized(spec, read(spec.data))
    assert (report.train_rows, report.eval_rows, report.overlap_prompts) == (3, 2, 1)
    (line,) = (line for line in report.lines() if "that is also trained on" in line)
    assert "1 of 2 evaluation rows have a prompt" in line
    assert "data.shared_prompts=move" in line


@pytest.mark.parametrize(
    ("what", "train", "evaluation", "note"),
    [
        ("move", "aa ba ca bd", "qe", "2 evaluation rows share a prompt with training rows: moved"),
        ("drop", "aa ba ca", "qe", "2 evaluation rows share a prompt with training rows: left out"),
    ],
)
def test_rows_whose_prompt_is_trained_on_are_kept_out_of_the_measure(
    tmp_path: Path, what: str, train: str, evaluation: str, note: str
) -> None:
    def rows(words: str) -> list[dict[str, str]]:
        return [{"prompt": word[0], "completion": word[1]} for word in words.split()]

    ours = write_rows(tmp_path / "a.jsonl", rows("aa ba ca"))
    theirs = write_rows(tmp_path / "b.jsonl", rows("bd qe bd"))
    spec = train_spec(ours, eval_path=str(theirs), shared_prompts=what)
    found = split(spec.data, read(spec.data))
    words = [
        ["".join(row.values.values()) for row in part] for part in (found.train, found.evaluation)
    ]
    assert words == [[*train.split(), *(["bd"] if what == "move" else [])], evaluation.split()]
    assert found.overlap_prompts == 0
    assert found.notes[0].startswith(note)
    _, report = tokenized(spec, read(spec.data))
    assert any(note in line for line in report.lines())
    none_left = train_spec(ours, eval_path=str(ours), shared_prompts=what)
    with pytest.raises(SweepError, match=f"evaluation split is empty: .*shared_prompts={what}"):
        tokenized(none_left, read(none_left.data))


def test_rows_that_are_split_by_us_keep_their_order_and_share_no_prompt(tmp_path: Path) -> None:
    """Of the test rows, too: with the evaluation's as well as with those trained on."""
    rows = [{"prompt": str(row % 60), "completion": str(row)} for row in range(200)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    plain = train_spec(file, eval_fraction=0.2, test_fraction=0.2)
    before = split(plain.data, read(plain.data))
    assert before.overlap_prompts > 0
    for what in ("move", "drop"):
        spec = train_spec(file, eval_fraction=0.2, test_fraction=0.2, shared_prompts=what)
        found = split(spec.data, read(spec.data))
        parts = [
            [row.values for row in part]
            for part in (found.train, found.evaluation, found.test or [])
        ]
        prompts = [{values["prompt"] for values in part} for part in parts]
        assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
        numbers = [[int(values["completion"]) for values in part] for part in parts]
        assert all(each == sorted(each) for each in numbers)
        assert sum(map(len, numbers)) == 200 if what == "move" else sum(map(len, numbers)) < 200
        assert {row.where for row in before.train} <= {row.where for row in found.train}


def test_a_folder_begun_before_there_was_shared_prompts_goes_on() -> None:
    spec = train_spec()
    moved = dataclasses.replace(spec, data=dataclasses.replace(spec.data, shared_prompts="move"))
    fingerprint = data_fingerprint.fingerprint
    assert fingerprint(moved) != fingerprint(spec)
    config = {"data": {"source": "docstrings"}}
    assert trial_key(config) == trial_key(
        {"data": {"source": "docstrings", "shared_prompts": None}}
    )
    assert trial_key(config) != trial_key({"data": {**config["data"], "shared_prompts": "drop"}})


def test_it_is_kept_which_rows_to_measure_on_share_a_prompt(tmp_path: Path) -> None:
    """Also if the cut at max_length leaves nothing of a row."""
    pairs = [("p", "a"), ("q" * 400, "b"), ("r", "c"), ("p", "d"), ("s", "e"), ("r", "f")]
    train = write_rows(tmp_path / "a.jsonl", [{"prompt": "t", "completion": "x"}] * 3)
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    evaluation = write_rows(tmp_path / "b.jsonl", rows)
    spec = train_spec(train, eval_path=str(evaluation), max_length=60)
    folder = tmp_path / "data"
    data = data_dataset.prepare(spec, folder)
    numbers = np.load(folder / "eval_prompts.npy")
    assert len(numbers) == len(data.evaluation) == 5
    assert data.evaluation.column_names == ["input_ids", "labels"]
    assert [list(numbers).index(each) for each in numbers] == [0, 1, 0, 3, 1]
    assert data.test_prompts is None
    (folder / "eval_prompts.npy").unlink()  # as older versions left it
    assert data_dataset.load(folder).evaluation.to_dict() == data.evaluation.to_dict()


def test_empty_splits_are_refused_with_the_counts(tmp_path: Path) -> None:
    few = write_rows(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": "two"}])
    with pytest.raises(SweepError, match=r"evaluation split is empty: 2 rows .* gave 2 to train"):
        data_dataset.prepare(train_spec(few, eval_fraction=0.0), tmp_path / "data")
    with pytest.raises(SweepError, match=r"the test split is empty: .*data\.test_fraction=1e-09"):
        data_dataset.prepare(train_spec(test_fraction=1e-9), tmp_path / "data")
    with pytest.raises(SweepError, match=r"no row is left to train on: 2 rows"):
        data_dataset.prepare(train_spec(few, eval_fraction=0.9999), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_truncated_rows_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    short = {"prompt": "def a():\n", "completion": " b"}
    long = {"prompt": "def a():\n", "completion": " b" * 100}
    path = write_rows(tmp_path / "a.jsonl", [short] * 8 + [long] * 2)
    evaluation = write_rows(tmp_path / "b.jsonl", [short])
    spec = train_spec(path, eval_path=str(evaluation), max_length=32, max_truncated=0.2)
    _, report = tokenized(spec, read(spec.data))
    assert (report.truncated_rows, report.truncated_share) == (2, pytest.approx(2 / 11))
    assert report.max_tokens == 32
    strict = dataclasses.replace(spec.data, max_truncated=0.1)
    with pytest.raises(
        SweepError, match=r"2 of 11 rows \(18%\) are longer than data.max_length=32"
    ):
        tokenized(dataclasses.replace(spec, data=strict), read(strict))


def test_rows_masked_by_the_cut_are_counted_and_all_masked_is_refused(tmp_path: Path) -> None:
    fits = {"prompt": "def a():\n", "completion": " b"}
    buried = {"prompt": "def a(b, c, d, e, f, g):\n" * 4, "completion": " b"}
    path = write_rows(tmp_path / "a.jsonl", [fits, buried, buried])
    evaluation = write_rows(tmp_path / "b.jsonl", [fits])
    spec = train_spec(path, eval_path=str(evaluation), max_length=16, max_truncated=1)
    _, report = tokenized(spec, read(spec.data))
    assert (report.train_rows, report.masked_rows) == (1, 2)
    hopeless = train_spec(path, eval_path=str(path), max_length=4, max_truncated=1)
    with pytest.raises(
        SweepError, match=r"every label of the train split is masked: 3 rows before"
    ):
        tokenized(hopeless, read(hopeless.data))


def test_max_length_beyond_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_length = 513: tiny reads at most 512 tokens"):
        data_dataset.prepare(train_spec(max_length=513), tmp_path / "data")


def test_chats_need_a_template(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", chats(40))
    bare = model_without(tmp_path, "chat_template")
    with pytest.raises(
        SweepError, match=r"no chat template(.|\n)*model\.chat_template=FILE\.jinja"
    ):
        data_dataset.prepare(train_spec(path, model=bare), tmp_path / "data")
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    mended = dataclasses.replace(bare, chat_template=str(template))
    prepared = data_dataset.prepare(train_spec(path, model=mended), tmp_path / "data")
    text = load_tokenizer(mended).decode(prepared.train[0]["input_ids"])
    assert text.startswith("[system] Be brief.[user] What is")


def test_assistant_only_loss_needs_chats_and_a_marked_template(tmp_path: Path) -> None:
    only = {"assistant_only_loss": True}
    with pytest.raises(ConfigError, match=r"trainer\.assistant_only_loss = True: needs rows of"):
        data_dataset.prepare(train_spec(trainer=only), tmp_path / "data")
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    model = ModelSpec(path="tiny", chat_template=str(template))
    path = write_rows(tmp_path / "rows.jsonl", chats(40))
    with pytest.raises(SweepError, match=r"does not mark the assistant's words"):
        data_dataset.prepare(train_spec(path, model=model, trainer=only), tmp_path / "data")


def test_refusal_of_the_chat_template_is_one_error(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ raise_exception('System role not supported') }}")
    path = write_rows(tmp_path / "rows.jsonl", chats(40))
    model = ModelSpec(path="tiny", chat_template=str(template))
    with pytest.raises(SweepError, match="cannot be tokenized: TemplateError: System role not"):
        data_dataset.prepare(train_spec(path, model=model), tmp_path / "data")


def test_no_eos_token(tmp_path: Path) -> None:
    model = model_without(tmp_path, "eos_token")
    with pytest.raises(SweepError, match=r"has no eos token(.|\n)*trainer\.eos_token"):
        data_dataset.prepare(train_spec(model=model), tmp_path / "data")
    mended = train_spec(model=model, trainer={"eos_token": "<|im_end|>"})
    prepared = data_dataset.prepare(mended, tmp_path / "data")
    end = load_tokenizer(model).convert_tokens_to_ids("<|im_end|>")
    assert {ids[-1] for ids in prepared.train["input_ids"]} == {end}
    wrong = train_spec(model=model, trainer={"eos_token": "<|im_ned|>"})
    with pytest.raises(
        ConfigError, match=r"not in the tokenizer's vocabulary\. Did you mean <\|im_"
    ):
        data_dataset.prepare(wrong, tmp_path / "other")


def test_a_pad_token_beyond_the_embedding_is_replaced_and_said(tmp_path: Path) -> None:
    model = model_with(tmp_path, pad_token="[PAD]")
    prepared = data_dataset.prepare(train_spec(model=model), tmp_path / "data")
    (note,) = [each for each in prepared.report.notes if "pads instead" in each]
    assert note == (
        "the model has no embedding for the tokenizer's pad token [PAD]; <|pad|> pads instead"
    )
    assert load_tokenizer(model).pad_token == "<|pad|>"


def test_rows_with_tokens_beyond_the_embedding_are_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    model = model_with(tmp_path)
    rows = [{"text": f"row {n} of text"} for n in range(40)]
    fine = write_rows(tmp_path / "fine.jsonl", rows)
    assert data_dataset.prepare(train_spec(fine, model=model), tmp_path / "data").report.train_rows
    rows[7]["text"] = "here <|new|> is one"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(SweepError) as refused:
        data_dataset.prepare(train_spec(path, model=model), tmp_path / "other")
    said = str(refused.value)
    assert "1 of " in said
    assert f"'<|new|>' in {path}:8 has the id 4,096" in said
    assert "has embeddings for 4,096 tokens" in said
    assert "resize_token_embeddings" in said
    assert "peft.modules_to_save=[embed_tokens]" in said


def test_missing_pad_token_is_replaced_and_said(tmp_path: Path) -> None:
    model = model_without(tmp_path, "pad_token")
    prepared = data_dataset.prepare(train_spec(model=model), tmp_path / "data")
    assert "the tokenizer has no pad token; <|pad|> pads instead" in prepared.report.notes
    assert load_tokenizer(model).pad_token == "<|pad|>"


@pytest.mark.parametrize("path", sorted(CONF.glob("data/*.yaml")), ids=lambda path: path.stem)
def test_every_field_is_in_the_yaml_so_that_overrides_need_no_plus(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert values.keys() == {field.name for field in dataclasses.fields(DataSpec)}
    if values["path"] == "???":
        values["path"] = "given"
    assert spec_problems(DataSpec(**values)) == []


def test_tools_and_tool_calls_reach_the_template(tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{{ tools[0].name }}:{% for m in messages %}{{ m.content or m.tool_calls[0].name }};"
        "{% endfor %}"
    )
    call = {"role": "assistant", "tool_calls": [{"name": "clock"}]}
    row = {"messages": [{"role": "user", "content": "Time?"}, call], "tools": [{"name": "clock"}]}
    path = write_rows(tmp_path / "rows.jsonl", [row])
    model = ModelSpec(path="tiny", chat_template=str(template))
    spec = train_spec(path, eval_path=str(path), model=model)
    splits, _ = tokenized(spec, read(spec.data))
    text = load_tokenizer(model).decode(splits["train"][0]["input_ids"])
    assert text == "clock:Time?;clock;"


def test_stream_unrolls_epochs_of_fresh_permutations(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"input_ids": [[i] for i in range(10)]})

    def order(examples: int, seed: int) -> list[int]:
        return [ids[0] for ids in data_dataset.stream(rows, examples, seed)["input_ids"]]

    long = order(25, seed=3)
    epochs = [long[:10], long[10:20], long[20:]]
    assert Counter(itertools.chain(*epochs[:2])) == dict.fromkeys(range(10), 2)
    assert epochs[0] != epochs[1]
    assert len(set(epochs[2])) == 5
    assert order(7, seed=3) == long[:7]
    assert order(25, seed=4) != long
