"""Finds the data files that a path, a glob, a folder or a list of these names."""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps.core.commands import typed
from sweeps.core.errors import SweepError, nearest
from trainers.data import decoding

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
# What `datasets` writes beside the rows of a folder, and where it says which these are.
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_BESIDE = (_STATE, _SPLITS, "dataset_info.json", "dataset_infos.json")
_DELTA = "_delta_log"
_SPLIT = re.compile(
    r"(?:^|[-_. ])(?:(train|training)|valid|validation|val|dev|eval|evaluation|test)(?=[-_. ]|$)"
)


def matching(key: str, named: str | Sequence[str]) -> list[Path]:
    """Find the files that paths, globs and folders name: in their order, those of each sorted.

    Raises:
        SweepError: one names no file, or a file is named twice; `key` is the config key that asked.
    """
    patterns = [named] if isinstance(named, str) else named
    files = [file for pattern in patterns for file in _matching(key, pattern)]
    twice = [file for file, count in Counter(files).items() if count > 1]
    if twice:
        raise SweepError(f"{key}: {twice[0]} is named twice; its rows would count twice")
    return files


def in_words(named: str | Sequence[str] | None) -> str:
    """A source of files for messages: the first few of a list."""
    if named is None or isinstance(named, str):
        return str(named)
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return ", ".join(named[:3]) + more


def rows_of_files(counts: Mapping[Path, int]) -> str:
    """The names of files and the rows of each, for a note."""
    names = [path.name for path in counts]
    shown = [
        f"{path if names.count(path.name) > 1 else path.name} ({count:,} rows)"
        for path, count in counts.items()
    ]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return f"{len(shown)} files: {', '.join(shown[:20])}{more}"


def _matching(key: str, pattern: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))
    if path.is_file():
        return [path]
    if path.is_dir():
        return _in_folder(key, path)
    # `**` matches folders at any depth.
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


def _in_folder(key: str, folder: Path) -> list[Path]:
    """The data files right in a folder; of one that `datasets` saved, those that it lists."""
    if (folder / _DELTA).is_dir():
        pattern = str(Path(glob.escape(str(folder)), "*.parquet"))
        raise SweepError(
            f"{key} = {folder}: is a Delta table, in whose folder deleted and replaced rows lie, "
            "too. Write its rows to plain Parquet and name that; if none was ever changed, this "
            f"reads them: {typed(key, pattern)}"
        )
    if splits := _json(folder / _SPLITS).get("splits"):
        train = "train" if "train" in splits else splits[0]
        others = [each for each in splits if each != train][:1]
        raise _apart(key, folder, [folder / train], [folder / each for each in others])
    if saved := _json(folder / _STATE).get("_data_files"):
        return [folder / each["filename"] for each in saved]
    files = sorted(path for path in folder.iterdir() if _is_data(path))
    if not files:
        raise SweepError(f"{key} = {folder}: {_no_files(key, folder)}")
    splits = {path: found for path in files if (found := _SPLIT.search(path.stem.lower()))}
    train = [path for path, found in splits.items() if found[1]]
    others = [path for path, found in splits.items() if not found[1]]
    if train and others:
        raise _apart(key, folder, train, others)
    return files


def _is_data(path: Path) -> bool:
    name = path.name
    is_ours = decoding.suffix(path) in FORMATS and name not in _BESIDE
    return is_ours and not name.startswith((".", "_")) and path.is_file()


def _apart(key: str, folder: Path, train: Sequence[Path], others: Sequence[Path]) -> SweepError:
    """Refuse a folder that holds rows of several splits."""
    words = [typed("data.path", _shortest(folder, train))]
    if others:
        words.append(typed("data.eval_path", _shortest(folder, others)))
    return SweepError(
        f"{key} = {folder}: is a folder with rows of several splits. Say what is trained on and "
        f"what is measured on: {' '.join(words)}"
    )


def _shortest(folder: Path, files: Sequence[Path]) -> str | list[str]:
    """One file, a glob of exactly these, or their list."""
    names = [str(file) for file in files]
    if len(names) == 1:
        return names[0]
    common = re.split(r"[-_.]", files[0].name)[0]
    pattern = str(Path(glob.escape(str(folder)), f"{glob.escape(common)}*"))
    return pattern if sorted(glob.glob(pattern)) == names else names


def _no_files(key: str, folder: Path) -> str:
    """Why a folder has no data right in it."""
    deeper = next((path for path in sorted(folder.rglob("*")) if _is_data(path)), None)
    if deeper is None:
        return f"is a folder without a file that ends in {', '.join(FORMATS)}"
    pattern = str(Path(glob.escape(str(folder)), "**", f"*{''.join(deeper.suffixes)}"))
    return (
        "is a folder whose files lie in folders of their own; this reads them all: "
        f"{typed(key, pattern)}"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _nearby(path: Path) -> str:
    """Name the files that are there instead, for a message."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor is there a folder {folder}. Relative paths start at {Path.cwd()}"
    names = sorted(each.name for each in folder.iterdir() if decoding.suffix(each) in FORMATS)
    if close := nearest(path.name, names):
        return f". Did you mean {folder / close}?"
    there = ", ".join(names[:10]) or f"no file that ends in {', '.join(FORMATS)}"
    return f". {folder.absolute()} has {there}"
