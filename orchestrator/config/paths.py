"""Paths on a command line: read as they were typed, and made absolute before they are used.

Trials run in other folders than the command, so nothing but the driver may see a relative path.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from orchestrator.storage.run_dir import local_folder
from sweeps.core.commands import override, written
from sweeps.space.parser import lookup
from sweeps.storage.object_store import is_uri
from sweeps.storage.run_folder import RunFolder
from trainers.model.source import EMBEDDED

DATA_KEYS = ("data.path", "data.eval_path")
_IN_KEYS = ("model.path", "model.chat_template", *DATA_KEYS)  # of trials
_FOLDER_KEYS = ("sweep.reuse", "sweep.learn_from")
_LIST_KEYS = (*DATA_KEYS, *_FOLDER_KEYS)
PATH_KEYS = ("run_dir", "storage", *_IN_KEYS, *_FOLDER_KEYS)


def literal(key: str, text: str) -> str:
    """The text after `key=`, in Hydra's grammar: a path that Hydra misreads is quoted for it.

    A path may hold blanks, accents, brackets, equal signs and commas. What Hydra reads as one text
    stays as it is, and so do a list and a choice, unless there is a file of just this name. Several
    data files with commas between them are a list.
    """
    stripped = text.strip()
    if key not in PATH_KEYS or not stripped or stripped.lower() == "null":
        return text
    try:
        parsed: Override | None = OverridesParser.create().parse_override(f"key={text}")
    except (HydraException, ValueError):
        parsed = None
    value = parsed.value() if parsed is not None else None
    if isinstance(value, str | QuotedString):
        return text
    if not os.path.lexists(os.path.expanduser(stripped)):
        if key in _LIST_KEYS and (parts := _parts(value, stripped)):
            return written(parts)
        if isinstance(value, ChoiceSweep | list):
            return text
    if parsed is not None and stripped[0] in "'\"":
        return text
    if "${" in stripped:  # an interpolation is looked up, within the quotes too
        return written(stripped)
    return override("", stripped).removeprefix("=")


def _parts(value: Any, text: str) -> list[str]:
    """The data files of a list as people type it, with commas between them; none if it is another.

    Args:
        value: `text` as Hydra reads it; None if it cannot.
    """
    if isinstance(value, ChoiceSweep) and value.simple_form:
        value = value.list
    elif value is not None:
        return []
    if value is None:
        bare = text[1:-1] if text[0] + text[-1] == "[]" else text
        return [part.strip() for part in bare.split(",") if part.strip()] if "," in bare else []
    texts = [each.text if isinstance(each, QuotedString) else each for each in value]
    return [each for each in texts if each] if all(isinstance(x, str) for x in texts) else []


def make_absolute(config: DictConfig, run_dir: str) -> None:
    """Replace each path by its absolute form, seen from the working folder; `~` is a home.

    Args:
        run_dir: if the config names none. A sweep that began there with another form of a path,
            such as a relative data.path, keeps it: the keys of its trials are made of the path.
    """
    begun = begun_config(str(_value(config, "run_dir") or run_dir))
    for key in PATH_KEYS:
        value = _value(config, key)
        if key in DATA_KEYS and _value(config, "data.source") == "hub":
            continue
        if key in _IN_KEYS and value is not None and value == lookup(begun, key):
            continue
        new: Any = value
        if isinstance(value, str):
            new = _absolute(key, value)
        elif isinstance(value, list) and key in _LIST_KEYS:
            new = [_absolute(key, each) if isinstance(each, str) else each for each in value]
        if new != value:
            OmegaConf.update(config, key, _uninterpolated(new), merge=False, force_add=True)


def _absolute(key: str, text: str) -> str:
    """The path seen from here; a Hub id, an address and an absolute path stay as they are."""
    if not text or is_uri(text):
        return text
    path = os.path.expanduser(text)
    if key == "model.path" and (text == EMBEDDED or not _is_folder(path)):
        return text
    return path if os.path.isabs(path) else str(Path.cwd() / path)


def _is_folder(path: str) -> bool:
    """Whether model.path is written as a folder, or one of this name lies here."""
    return path.startswith(("/", "./", "../", "~")) or path in (".", "..") or Path(path).is_dir()


def _value(config: DictConfig, key: str) -> Any:
    """The resolved value of a key; None if there is none."""
    section, _, name = key.rpartition(".")
    holder = OmegaConf.select(config, section) if section else config
    if not isinstance(holder, DictConfig):
        return None  # refused as no section
    value = holder.get(name)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _uninterpolated(value: Any) -> Any:
    if isinstance(value, list):
        return [_uninterpolated(each) for each in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value


def begun_config(run_dir: str) -> dict[str, Any]:
    """The sweep.yaml of the sweep that began in `run_dir`; empty if none did."""
    folder = (
        local_folder(run_dir) if is_uri(run_dir) else RunFolder(Path(os.path.expanduser(run_dir)))
    )
    found: Any = None
    with suppress(OSError, ValueError, yaml.YAMLError, RuntimeError):
        if folder.has_begun:
            found = yaml.safe_load(folder.spec.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
