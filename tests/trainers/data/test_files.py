"""Several data files: lists, globs and folders of them, of any formats."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sweeps.config.spec import DataSpec
from sweeps.core.errors import ConfigError, SweepError
from sweeps.space.grammar import parse, plain
from trainers.data import rows
from trainers.data.files import matching

PAIRS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows in three formats, beside files that hold none."""
    home = tmp_path / "my rows"
    home.mkdir()
    (home / "a.csv").write_text("prompt,completion\np0,c0\n")
    lines(home / "b.jsonl", PAIRS[1:3])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS[3:]), home / "c.parquet")
    for name in ("README.md", ".hidden.jsonl", "dataset_infos.json", "_SUCCESS"):
        (home / name).write_text("no rows")
    return home


def lines(path: Path, values: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def read(path: object, **data: Any) -> rows.RawData:
    named: Any = path if isinstance(path, tuple) else str(path)
    return rows.read(DataSpec(source="file", path=named, **data))


def pasted(error: pytest.ExceptionInfo[SweepError]) -> Mapping[str, Any]:
    """The keys of the data section that a message's words set."""
    words = [word for word in shlex.split(str(error.value)) if word.startswith("data.")]
    return {
        key.removeprefix("data."): plain(parse(text))
        for key, _, text in (word.partition("=") for word in words)
    }


def test_a_folder_is_its_data_files_by_name(folder: Path) -> None:
    whole = read(folder)
    assert whole.train == PAIRS
    assert whole.notes == ("3 files: a.csv (1 rows), b.jsonl (2 rows), c.parquet (1 rows)",)
    assert read((f"{folder}/*.jsonl", f"{folder}/a.csv")).train == [*PAIRS[1:3], PAIRS[0]]
    assert read(folder, limit=2).notes[0] == "2 files: a.csv (1 rows), b.jsonl (1 rows)"


def test_evaluation_rows_may_be_several_files_too(folder: Path, tmp_path: Path) -> None:
    train = lines(tmp_path / "train.jsonl", PAIRS)
    for named in (str(folder), (f"{folder}/a.csv", f"{folder}/[bc].*")):
        found = read(train, eval_path=named)
        assert found.evaluation == PAIRS
        assert found.notes[0].startswith("3 files: a.csv (1 rows), ")


def test_the_place_of_a_bad_row_names_its_file(folder: Path) -> None:
    lines(folder / "b.jsonl", [PAIRS[1], {"prompt": "p"}])
    with pytest.raises(SweepError, match=r"1 of 4 rows(.|\n)*b\.jsonl:2: completion is missing"):
        read(folder)
    assert read(folder, on_bad_row="skip").skipped == 1


def test_a_file_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(SweepError, match=r"data\.path: .*/b\.jsonl is named twice"):
        read((f"{folder}/b.jsonl", str(folder)))


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("train-0-of-2.jsonl", "train-1-of-2.jsonl", "validation-0.jsonl"),
        ("my_train.jsonl", "x.train.jsonl", "my-dev.jsonl", "Eval.jsonl"),
    ],
)
def test_rows_to_measure_on_are_never_trained_on_with_a_folder(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        lines(tmp_path / "a[1]" / name, PAIRS[:1] if "train" in name else PAIRS[1:])
    with pytest.raises(SweepError, match="is a folder with rows of several splits") as caught:
        read(tmp_path / "a[1]")
    found = rows.read(DataSpec(source="file", **pasted(caught)))
    trains = sum("train" in name for name in names)
    assert found.train == PAIRS[:1] * trains
    assert found.evaluation == PAIRS[1:] * (len(names) - trains)


def test_a_folder_without_data_says_where_there_is_some(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(SweepError, match=r"is a folder without a file that ends in \.jsonl"):
        read(tmp_path)
    lines(tmp_path / "deep er" / "a.jsonl", PAIRS)
    with pytest.raises(SweepError, match="in folders of their own") as caught:
        read(tmp_path)
    assert rows.read(DataSpec(source="file", **pasted(caught))).train == PAIRS


def test_folders_that_datasets_saved_are_read_as_they_are(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list(PAIRS)
    table.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert read(tmp_path / "one").train == PAIRS
    both = datasets.DatasetDict({"train": table, "test": table.select([2])})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(SweepError, match="rows of several splits") as caught:
        read(tmp_path / "both")
    found = rows.read(DataSpec(source="file", **pasted(caught)))
    assert (found.train, found.evaluation) == (PAIRS, PAIRS[2:3])


def test_the_hub_takes_one_data_set() -> None:
    with pytest.raises(ConfigError, match=r"data\.path = a, b: is one data set of the Hub"):
        rows.read(DataSpec(source="hub", path=("a", "b")))


def test_a_delta_table_is_not_read_with_its_deleted_rows(tmp_path: Path) -> None:
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "part-0.parquet").touch()
    with pytest.raises(SweepError, match="is a Delta table, in whose folder deleted") as caught:
        matching("data.path", str(tmp_path))
    (word,) = shlex.split(str(caught.value).rpartition(": ")[2])
    named = plain(parse(word.partition("=")[2]))
    assert matching("data.path", named) == [tmp_path / "part-0.parquet"]
