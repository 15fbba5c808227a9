"""Finds a sweep's run folder on this machine, and the store of its copy, if there is one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sweeps.config.spec import Spec
from sweeps.core.errors import Problem, SweepError, first_line, nearest
from sweeps.core.secrets import scrub
from sweeps.storage.driver_lease import Lease
from sweeps.storage.object_store import Store, is_uri, place_problem
from sweeps.storage.run_folder import RunFolder, folder_text

MOST_NEIGHBOURS = 8


def places_of(spec: Spec) -> tuple[RunFolder, Store | None]:
    """The run folder, and the store of its copies: run_dir itself, or a folder under `storage`."""
    folder = folder_of(spec)
    if is_uri(spec.run_dir):
        return folder, Store(spec.run_dir)
    store = Store(spec.storage).under(folder.root.name) if spec.storage else None
    return folder, store


def folder_of(spec: Spec) -> RunFolder:
    """The run folder on this machine."""
    if is_uri(spec.run_dir):
        return local_folder(spec.run_dir)
    return RunFolder(Path(spec.run_dir).absolute())


def local_folder(place: str) -> RunFolder:
    """The run folder on this machine for a run_dir=s3://..."""
    name = place.rstrip("/").rpartition("/")[2] or "run"
    digest = hashlib.sha256(place.rstrip("/").encode()).hexdigest()[:8]
    return RunFolder(Path("outputs", f"{name}-{digest}").absolute())


def place_problems(spec: Spec) -> list[Problem]:
    """What is wrong with run_dir and storage as written."""
    found = []
    if is_uri(spec.run_dir) and (why := place_problem(spec.run_dir)):
        found.append(Problem(key="run_dir", value=scrub(spec.run_dir), message=why))
    if spec.storage is not None and (why := place_problem(spec.storage)):
        found.append(Problem(key="storage", value=scrub(spec.storage), message=why))
    if spec.storage is not None and is_uri(spec.run_dir):
        message = "run_dir is a storage already; leave one of the two out."
        found.append(Problem(key="storage", value=scrub(spec.storage), message=message))
    return found


def fetched(run_dir: str) -> Path:
    """The local folder of the run_dir that `status` or `export` is given; fetched from a store.

    Raises:
        SweepError: the store has no sweep, or does not answer.
    """
    run_dir = run_dir.removeprefix("run_dir=")  # as it is written for the other verbs
    if not is_uri(run_dir):
        return Path(os.path.expanduser(run_dir))
    from orchestrator.storage.sync import bring_back

    folder = local_folder(run_dir)
    try:
        bring_back(Store(run_dir), folder, checkpoints=False)
    except OSError as error:
        raise unanswered(Store(run_dir), error) from None
    return folder.root


@contextmanager
def held(store: Store, folder: RunFolder, spec: Spec) -> Iterator[Lease]:
    """Hold a sweep in its store for this driver, and fetch what is there.

    Raises:
        FolderHeldError: another driver holds it.
        SweepError: the store does not answer.
    """
    from orchestrator.storage.sync import bring_back

    lease = Lease(store)
    try:
        lease.take(say=print)
        bring_back(store, folder, checkpoints=spec.cluster.kind == "local")
    except OSError as error:
        raise unanswered(store, error) from None
    try:
        yield lease
    finally:
        with suppress(OSError):
            lease.release()


def unanswered(store: Store, error: OSError) -> SweepError:
    words = first_line(error)[:300]
    return SweepError(
        f"{store} cannot be used: {words}. Each node needs the credentials in its environment, or "
        "a role; AWS_ENDPOINT_URL names a server of your own."
    )


def require_sweep(folder: RunFolder) -> None:
    """Raise SweepError if the folder holds no sweep; the message names some nearby."""
    if not folder.ledger.is_file():
        raise SweepError(not_found(folder))


def not_found(folder: RunFolder) -> str:
    looked = f"{folder_text(folder.root)} holds no sweep: there is no {folder.ledger.name} in it."
    if not folder.root.is_dir():
        looked = (
            f"{folder_text(folder.root)} is no folder; looked for {folder_text(folder.ledger)}."
        )
    around = [
        parent for parent in folder.root.absolute().parents if RunFolder(parent).ledger.is_file()
    ]
    if around:
        return f"{looked} Did you mean {folder_text(around[0])}?"
    found = _neighbours(folder.root)
    if not found:
        return f"{looked} No run folder lies beside it or in outputs/."
    close = nearest(folder.root.name, [path.name for path in found])
    found.sort(key=lambda path: path.name != close)
    names = ", ".join(folder_text(path) for path in found[:MOST_NEIGHBOURS])
    more = f" and {len(found) - MOST_NEIGHBOURS} more" if len(found) > MOST_NEIGHBOURS else ""
    return f"{looked} Run folders nearby, the likeliest first: {names}{more}."


def _neighbours(root: Path) -> list[Path]:
    """Run folders in, beside, and in outputs/; the latest first."""
    places = dict.fromkeys(p.resolve() for p in (root, root.parent, Path("outputs")))
    ledgers = {ledger for place in places for ledger in place.glob("*/ledger.jsonl")}
    newest_first = sorted(ledgers, key=lambda ledger: -ledger.stat().st_mtime)
    return [ledger.parent for ledger in newest_first]
