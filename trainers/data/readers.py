"""Reads rows from files of JSON lines, a JSON list, CSV or Parquet, each with its file and line.

No other format is read: these hold data only, so that no file can run code by being opened.
"""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sweeps.core.errors import SweepError, nearest

_BY_SUFFIX = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_BATCH_ROWS = 1000


class FileRow(NamedTuple):
    """One row of a file, and its place there: `train.jsonl:3`."""

    where: str
    values: dict[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be used, and why not."""

    where: str
    why: str


Found = Iterator[FileRow | BadRow]


def matching(key: str, pattern: str) -> list[Path]:
    """Find the files that a path or a glob names, sorted; `**` matches folders at any depth.

    Raises:
        SweepError: there are none; `key` is the config key that asked.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        raise SweepError(f"{key} = {pattern}: is a folder. Name its files: {pattern}/*.jsonl")
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [file for file in found if file.is_file()]
    if not files and "://" in pattern:
        raise SweepError(
            f"{key} = {pattern}: data is read from files on this machine. Download it and name the "
            "file, or take data=hub with the name of a data set on the Hugging Face Hub"
        )
    if not files:
        raise SweepError(f"{key} = {pattern}: no such file{_nearby(path)}")
    return files


def _nearby(path: Path) -> str:
    """Name the files that are there instead, for a message."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor is there a folder {folder}. Relative paths start at {Path.cwd()}"
    names = sorted(each.name for each in folder.iterdir() if each.suffix in _BY_SUFFIX)
    if close := nearest(path.name, names):
        return f". Did you mean {folder / close}?"
    there = ", ".join(names[:10]) or "no .jsonl, .json, .csv or .parquet file"
    return f". {folder.absolute()} has {there}"


def read(key: str, pattern: str, format_name: str) -> Found:
    """Read every row of the files that `pattern` names, in order.

    Raises:
        SweepError: a file is missing, of no known format, or damaged as a whole.
    """
    for path in matching(key, pattern):
        reader = _reader(key, path, format_name)
        try:
            yield from reader(path)
        except OSError as error:
            raise SweepError(f"{key}: {path} cannot be read: {error.strerror or error}") from error


def _reader(key: str, path: Path, format_name: str) -> Callable[[Path], Found]:
    readers = {"json": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}
    chosen = _BY_SUFFIX.get(path.suffix.lower()) if format_name == "auto" else format_name
    if chosen is None:
        raise SweepError(
            f"{key}: {path} has none of the endings {', '.join(_BY_SUFFIX)}. Say what it holds: "
            "data.format=json (a list or lines), csv or parquet"
        )
    return readers[chosen]


def _json_rows(path: Path) -> Found:
    """Read a file that starts with [ as one JSON list, any other as one JSON object a line."""
    with open(path, "rb") as file:
        start = file.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()
    yield from _json_list(path) if start.startswith(b"[") else _json_lines(path)


def _json_lines(path: Path) -> Found:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                yield BadRow(where, _json_fault(error))
            else:
                yield _object(where, value)


def _json_list(path: Path) -> Found:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
        raise SweepError(
            f"{path}:{error.lineno}: not valid JSON: {why}. The file starts with [ and so is read "
            "as one list; a file of lines has one {...} a line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SweepError(f"{path}: {_json_fault(error)}") from None
    for number, value in enumerate(values, start=1):
        yield _object(f"{path}: item {number}", value)


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"not valid UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
    return f"not valid JSON: {error}"


def _object(where: str, value: object) -> FileRow | BadRow:
    if isinstance(value, dict):
        return FileRow(where, value)
    return BadRow(where, f"a row is an object {{...}}, and this is a {type(value).__name__}")


def _csv_rows(path: Path) -> Found:
    """Read CSV whose first line names the columns.

    Undecodable bytes become surrogates, which the check of rows refuses.
    """
    csv.field_size_limit(sys.maxsize)  # the default of 128 KB is less than a long document
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(f"{path}:{start}", f"not valid CSV: {error}")
                continue
            if header is None:
                header = cells
            elif cells and len(cells) != len(header):
                yield BadRow(f"{path}:{start}", f"{len(cells)} cells under {len(header)} columns")
            elif cells:
                yield FileRow(f"{path}:{start}", dict(zip(header, cells, strict=True)))


def _parquet_rows(path: Path) -> Found:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield FileRow(f"{path}: row {number}", values)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise SweepError(f"{path}: not a readable Parquet file: {reason}") from None
