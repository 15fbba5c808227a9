"""Reaches the Hugging Face Hub in bounded time, and says what to do if that fails.

By itself the Hub's client tries every file six times before it looks into its own cache: 23
seconds a file without a network, and minutes behind a firewall that answers nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sweeps.core.errors import SweepError, first_line
from sweeps.core.secrets import scrub

Kind = Literal["model", "data set"]

PROBE_TIMEOUT_S = 5.0
_NO_ROOM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)

_KEYS: dict[Kind, str] = {"model": "model.path", "data set": "data.path"}
_PAGES: dict[Kind, str] = {"model": "", "data set": "datasets/"}
_WAYS_OUT: dict[Kind, str] = {
    "model": "set model.path to a folder that holds the model, HF_HOME to a folder whose cache "
    "holds it, HF_TOKEN if it is private, or model=tiny, which is embedded",
    "data set": "set data=file data.path=train.jsonl to read a file, HF_HOME to a folder whose "
    "cache holds it, HF_TOKEN if it is private, or data=docstrings, which is embedded",
}


def is_local(path: str) -> bool:
    """Whether `path` is a folder on this disk and not a Hub id."""
    return Path(os.path.expanduser(path)).is_dir()


def is_reachable() -> bool:
    """Whether the Hub answers one small request; no retries."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
    except Exception:  # every version of the client raises exceptions of its own
        return False
    return bool(answer.status_code < 500)


@contextlib.contextmanager
def reading(kind: Kind, path: str, *, local: bool = False) -> Iterator[None]:
    """Let libraries ask the Hub within only if it answers; else they read its cache on this disk.

    Args:
        local: `path` is on this disk, so nothing is asked of the Hub at all.

    Raises:
        SweepError: for what the libraries raise within, except out of memory.
    """
    if not local and _is_folder_like(path):
        raise SweepError(f"{_KEYS[kind]} = {path}: there is no such folder, seen from {Path.cwd()}")
    reachable = not local and is_reachable()
    try:
        with contextlib.nullcontext() if reachable else _offline():
            yield
    except (SweepError, MemoryError):
        raise
    except Exception as error:
        if kind == "model" and isinstance(error, RuntimeError):
            raise  # torch's own, such as a full GPU: the path is not to blame
        raise SweepError(_message(kind, path, error, local=local, reachable=reachable)) from None


def _is_folder_like(path: str) -> bool:
    """Whether `path` cannot be a Hub id, which is `name` or `owner/name`."""
    return path.startswith((".", "/", "~")) or path.endswith("/") or path.count("/") > 1


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Set HF_HUB_OFFLINE within, in each library's own copy of it.

    `local_files_only=True` would do for models, but datasets.load_dataset has no such argument.
    """
    from huggingface_hub import constants

    holders: list[Any] = [constants, sys.modules.get("datasets.config")]
    before = [(holder, holder.HF_HUB_OFFLINE) for holder in holders if holder is not None]
    try:
        for holder, _ in before:
            holder.HF_HUB_OFFLINE = True
        yield
    finally:
        for holder, value in before:
            holder.HF_HUB_OFFLINE = value


def _message(kind: Kind, path: str, error: Exception, *, local: bool, reachable: bool) -> str:
    from huggingface_hub import constants, errors

    head = f"{_KEYS[kind]} = {scrub(path)}:"
    causes = tuple(_causes(error))
    if local or any(isinstance(cause, ValueError | ImportError) for cause in causes[:1]):
        return f"{head} {_first_line(error)}"
    is_gated = any(isinstance(cause, errors.GatedRepoError) for cause in causes)
    if is_gated or "is a gated dataset" in str(error):  # datasets hides the cause
        page = f"{constants.ENDPOINT}/{_PAGES[kind]}{path}"
        return (
            f"{head} this {kind} is gated. Accept its licence at {page}, then set HF_TOKEN to a "
            "token of that account"
        )
    if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
        return f"{head} the {kind} is on the Hub, but not in the revision asked for"
    if not reachable:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        return (
            f"{head} there is no such folder, it is not in the cache {constants.HF_HUB_CACHE}, and "
            f"the Hub at {scrub(constants.ENDPOINT)} could not be asked: {why}. Connect, "
            f"{_WAYS_OUT[kind]}"
        )
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return (
                f"{head} cannot be fetched into the cache in {constants.HF_HOME} "
                f"({cause.strerror}). Set HF_HOME to a folder that can be written and has room"
            )
    missing = (errors.RepositoryNotFoundError, errors.HFValidationError)
    names = {type(cause).__name__ for cause in causes}
    if any(isinstance(cause, missing) for cause in causes) or "DatasetNotFoundError" in names:
        return (
            f"{head} no such folder, and no such {kind} on the Hub, or a private one. Look at the "
            f"spelling, or {_WAYS_OUT[kind]}"
        )
    return f"{head} {_first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, the one that it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
