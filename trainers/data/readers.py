"""Reads rows from files of JSON, CSV, Parquet or Arrow, each with its file and line.

No other format is read: these hold data only, so that no file can run code by being opened.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from sweeps.core.errors import SweepError
from trainers.data import decoding
from trainers.data.files import FORMATS

_DELIMITERS = (",", ";", "\t", "|")
# Keys of the one object in a file under which others keep the list of rows.
_LISTS = ("data", "rows", "train", "examples", "instances", "records", "items", "results")
_SPLITS = ("train", "validation", "valid", "val", "dev", "eval", "test")
_BATCH_ROWS = 1000
_BOOK, _ARCHIVE = "is a workbook: save it as CSV UTF-8", "is an archive: unpack it"
_PICKLE = "may run code when it is opened, and is not read: write it as Parquet or JSON lines"
# What to do with files of endings that are not read.
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _BOOK),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".bin"), _PICKLE),
}


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of JSON; Python would take the last of two values in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


_NOT_BLANK = re.compile(r"\S")
_DECODER = json.JSONDecoder(object_pairs_hook=_object_of)


class FileRow(NamedTuple):
    """One row of a file, and its place there: `train.jsonl:3`."""

    where: str
    values: dict[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be used, and why not."""

    where: str
    why: str


Found = Iterator[FileRow | BadRow]


def read(key: str, path: Path, format_name: str, encoding: str | None = None) -> Found:
    """Read every row of a file, in order.

    Args:
        key: the config key that named the file.

    Raises:
        SweepError: the file is of no known format, or damaged as a whole.
    """
    reader = _reader(key, path, format_name)
    try:
        decoding.refuse_stranger(path)
        yield from reader(path, encoding)
    except OSError as error:
        if decoding.is_damage(error):
            raise decoding.damaged(path, error) from None
        raise SweepError(f"{key}: {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if decoding.is_damage(error):
            raise decoding.damaged(path, error) from None
        raise


def _reader(key: str, path: Path, format_name: str) -> Callable[[Path, str | None], Found]:
    readers = {
        "json": _json_rows,
        "csv": _csv_rows,
        "parquet": _parquet_rows,
        "arrow": _arrow_rows,
    }
    chosen = FORMATS.get(decoding.suffix(path)) if format_name == "auto" else format_name
    if chosen is None and (advice := _ADVICE.get(decoding.suffix(path))):
        raise SweepError(f"{key}: {path} {advice}")
    if chosen is None:
        raise SweepError(
            f"{key}: {path} has none of the endings {', '.join(FORMATS)}. Say what it holds: "
            "data.format=json (a list or lines), csv, parquet or arrow"
        )
    return readers[chosen]


def _json_rows(path: Path, encoding: str | None) -> Found:
    """Read a JSON list, objects over several lines, one that holds the rows, or one a line."""
    with decoding.opened(path, encoding) as file:
        start, following = _first_lines(file)
        file.seek(0)
        if start.startswith(b"["):
            yield from _json_list(path, _without_mark(file.read()))
        elif any(line.startswith(b"{") and not _is_row(line) for line in (start, following)):
            content = _without_mark(file.read())
            whole = _json_objects(path, content)
            yield from whole if whole is not None else _json_lines(path, io.BytesIO(content))
        else:
            yield from _json_lines(path, file)


def _first_lines(file: IO[bytes]) -> tuple[bytes, bytes]:
    """The first two lines with anything on them; empty if there are fewer."""
    lines = (line for each in file if (line := _without_mark(each).strip()))
    return next(lines, b""), next(lines, b"")


def _without_mark(content: bytes) -> bytes:
    return content.removeprefix(b"\xef\xbb\xbf")


def _is_row(line: bytes) -> bool:
    """Whether a line is one whole object, and not one that holds all the rows."""
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and _held(value) is None


def _json_objects(path: Path, content: bytes) -> list[FileRow | BadRow] | None:
    """Read objects that may each go over several lines; None if the content is anything else."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    at, line, values = 0, 1, []
    while at < len(text):
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        values.append((value, line))
        following = _NOT_BLANK.search(text, end)
        end = following.start() if following else len(text)
        line, at = line + text.count("\n", at, end), end
    held = _held(values[0][0]) if len(values) == 1 else None
    if held is not None:
        _refuse_splits(path, values[0][0])
        return [_object(f"{path}: item {number}", row) for number, row in enumerate(held, 1)]
    return [_object(f"{path}:{line}", value) for value, line in values]


def _refuse_splits(path: Path, value: Mapping[str, Any]) -> None:
    """Refuse an object that holds the rows of several splits, of which one would be read."""
    splits = [name for name in _SPLITS if _are_rows(value.get(name)) and value[name]]
    if len(splits) > 1:
        raise SweepError(
            f"{path}: holds rows of several splits: {', '.join(splits)}. Write each to a file of "
            "its own and say with data.path what is trained on, with data.eval_path what is "
            "measured on"
        )


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _held(value: object) -> list[Any] | None:
    """The rows in an object that holds them all, as a list or as columns; None if it does not."""
    if not isinstance(value, dict) or not value:
        return None
    for key in _LISTS:
        rows = value.get(key)
        if isinstance(rows, list) and _are_rows(rows) and (rows or len(value) == 1):
            if any(map(_is_message, rows)):
                return None  # they are one row's
            return [row["row"] if _is_numbered(row) else row for row in rows]
    if (split := _of_cells(value)) is not None:
        return split
    columns = list(value.values())
    if all(isinstance(each, dict) for each in columns):  # pandas: column, then row; or row by row
        indexes = list(columns[0])
        if not all(list(each) == indexes for each in columns):
            return None
        if "0" not in indexes:
            is_row = len(columns) > 1 and not any(map(_is_message, columns))
            return columns if is_row and len(indexes) > 1 else None
        columns = [list(each.values()) for each in columns]
    elif not all(isinstance(each, list) and each for each in columns):
        return None
    elif any(_is_message(cell) for each in columns for cell in each):
        return None  # they are one row's
    if len({len(each) for each in columns}) != 1:
        return None
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _is_numbered(row: Mapping[str, Any]) -> bool:
    """Whether it is a row as the server of data sets gives it."""
    return "row_idx" in row and isinstance(row.get("row"), dict)


def _of_cells(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows of a table that pandas wrote with its columns' names apart; None if it is none."""
    names, rows = value.get("columns"), value.get("data")
    if set(value) - {"index"} != {"columns", "data"} or not isinstance(names, list):
        return None
    if not isinstance(rows, list) or not rows:
        return None
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return None
    return [dict(zip(map(str, names), row, strict=True)) for row in rows]


def _is_message(cell: object) -> bool:
    return isinstance(cell, dict) and ("role" in cell or "from" in cell)


def _json_lines(path: Path, file: IO[bytes]) -> Found:
    for number, each in enumerate(file, start=1):
        line = _without_mark(each) if number == 1 else each
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = _DECODER.decode(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield BadRow(where, _json_fault(error))
        else:
            yield _object(where, value)


def _json_list(path: Path, content: bytes) -> Found:
    try:
        values = _DECODER.decode(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
        raise SweepError(
            f"{path}:{error.lineno}: not valid JSON: {why}. The file starts with [ and so is read "
            "as one list; a file of lines has one {...} a line"
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SweepError(f"{path}:{line}: {_json_fault(error)}") from None
    except (ValueError, RecursionError) as error:
        raise SweepError(f"{path}: {_json_fault(error)}") from None
    for number, value in enumerate(values, start=1):
        yield _object(f"{path}: item {number}", value)


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        place = f"byte {error.object[error.start]:#04x} at {error.start}"
        return f"not valid UTF-8: {place}; {decoding.explained(error.object, error.start)}"
    return f"not valid JSON: {error}"


def _object(where: str, value: object) -> FileRow | BadRow:
    if isinstance(value, dict):
        return FileRow(where, value)
    return BadRow(where, f"a row is an object {{...}}, and this is a {type(value).__name__}")


def _csv_rows(path: Path, encoding: str | None) -> Found:
    """Read CSV whose first line names the columns, with the delimiter that this line has.

    Undecodable bytes become surrogates, which the check of rows refuses.
    """
    csv.field_size_limit(sys.maxsize)  # the default of 128 KB is less than a long document
    with io.TextIOWrapper(
        decoding.opened(path, encoding), "utf-8-sig", errors="surrogateescape", newline=""
    ) as file:
        first, skipped = file.readline(), 0
        named = re.fullmatch(r"sep=(.)\s*", first)  # a line that spreadsheet programs write
        if named:
            first, skipped = file.readline(), 1
        delimiter = named[1] if named else _delimiter(path, first)
        others = _cells(first, delimiter)[1:]
        spaced = bool(others) and all(cell.startswith(" ") for cell in others)
        lines = itertools.chain([first] if first else [], file)
        reader = csv.reader(lines, strict=True, delimiter=delimiter, skipinitialspace=spaced)
        header: list[str] | None = None
        while True:
            start = reader.line_num + 1 + skipped
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                twice = '; a quote within quotes is written twice: ""'
                about = twice if "expected after" in str(error) else ""
                yield BadRow(f"{path}:{start}", f"not valid CSV: {error}{about}")
                continue
            if header is not None and len(cells) > 1 and not any(cells):
                continue  # an empty row, of which spreadsheet programs write many
            if header is None:
                header = _header(f"{path}:{start}", cells)
            elif cells and len(cells) != len(header):
                yield BadRow(f"{path}:{start}", f"{len(cells)} cells under {len(header)} columns")
            elif cells:
                yield FileRow(f"{path}:{start}", dict(zip(header, cells, strict=True)))


def _delimiter(path: Path, first: str) -> str:
    """The delimiter of the line that names the columns: the one that parts it most often."""
    is_tabbed = decoding.suffix(path) in (".tsv", ".tab")
    counts = {each: len(_cells(first, each)) for each in _DELIMITERS}
    if is_tabbed and (counts["\t"] > 1 or max(counts.values()) <= 1):
        return "\t"
    if counts[","] > 1 and "\t" not in first and ";" not in first:
        return ","
    return max(_DELIMITERS, key=lambda each: counts[each])


def _cells(line: str, delimiter: str) -> list[str]:
    """The cells of a line; none if its quotes do not go with the delimiter."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _header(where: str, cells: list[str]) -> list[str]:
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    doubled = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if doubled:
        raise SweepError(
            f"{where}: two columns have the name {doubled[0]!r}; rename one of them: only one "
            "could be read"
        )
    for name in names:
        if why := decoding.surrogates_explained(name):
            raise SweepError(f"{where}: the name of a column: {why}")
    return names


def _parquet_rows(path: Path, _encoding: str | None) -> Found:
    import pyarrow.parquet

    with _readable(path, "Parquet"), pyarrow.parquet.ParquetFile(path) as file:
        yield from _table_rows(path, file.iter_batches(batch_size=_BATCH_ROWS))


def _arrow_rows(path: Path, _encoding: str | None) -> Found:
    """Read an Arrow file, an Arrow stream, or a Feather file of either version."""
    import pyarrow.feather
    import pyarrow.ipc

    with _readable(path, "Arrow"), pyarrow.memory_map(str(path)) as file:
        mark = file.read(6)
        file.seek(0)
        if mark.startswith(b"FEA1"):
            yield from _table_rows(path, pyarrow.feather.read_table(path).to_batches(_BATCH_ROWS))
        elif mark == b"ARROW1":
            found = pyarrow.ipc.open_file(file)
            batches = (found.get_batch(index) for index in range(found.num_record_batches))
            yield from _table_rows(path, batches)
        else:
            yield from _table_rows(path, pyarrow.ipc.open_stream(file))


@contextlib.contextmanager
def _readable(path: Path, form: str) -> Iterator[None]:
    """Say in one sentence that a file is none of its form."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise SweepError(f"{path}: not a readable {form} file: {reason}") from None


def _table_rows(path: Path, batches: Iterable[Any]) -> Found:
    rows = (row for batch in batches for row in batch.to_pylist(maps_as_pydicts="strict"))
    for number, values in enumerate(rows, start=1):
        yield FileRow(f"{path}: row {number}", own_keys(values))


def own_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table, its nested objects without the keys that are null there.

    All rows of a table have the same nested keys: a tool call has the arguments of all others, too,
    as nulls.
    """
    return {name: _own_keys(value) for name, value in row.items()}


def _own_keys(value: Any) -> Any:
    if isinstance(value, list):
        return [_own_keys(each) for each in value]
    if isinstance(value, dict):
        return {name: _own_keys(each) for name, each in value.items() if each is not None}
    return value
