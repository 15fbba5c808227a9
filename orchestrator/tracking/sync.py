"""The verb `sync`: uploads a sweep to W&B, from its ledger and its trials' metrics files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from orchestrator.storage.run_dir import not_found
from orchestrator.tracking.tracker import Job, Patience
from orchestrator.tracking.wandb_login import UnusableError
from orchestrator.tracking.wandb_runs import WandbRuns
from sweeps.config.spec import TrackingSpec
from sweeps.core.errors import SweepError
from sweeps.ledger.events import Event
from sweeps.ledger.history import History
from sweeps.ledger.ledger import read_ledger
from sweeps.storage.lock import Lock
from sweeps.storage.run_folder import RunFolder

_PATIENCE = Patience(probe_s=10.0, init_s=60.0, finish_s=60.0)


def sync(run_dir: Path, *, project: str | None = None, entity: str | None = None) -> int:
    """Give W&B's server what it lacks of a sweep; a second time nothing is sent. Returns 0.

    Args:
        run_dir: of a sweep that has ended, or waits.
        project, entity: where to, if not where the sweep's config says.

    Raises:
        SweepError: `run_dir` holds no sweep, or one that runs, or the server cannot be used.
    """
    folder = RunFolder(run_dir)
    if not folder.ledger.is_file():
        raise SweepError(not_found(folder))
    # A driver would send the same at the same time.
    lock = Lock(folder.lock) if os.access(folder.root, os.W_OK) else None
    try:
        return _send(folder, project, entity)
    finally:
        if lock is not None:
            lock.release()


def _send(folder: RunFolder, project: str | None, entity: str | None) -> int:
    past: list[Event] = []
    read_ledger(folder.ledger, past.append)
    history = History()
    for event in past:
        history.apply(event)
    spec = history.spec
    written = spec.get("tracking") or {}
    tracking = TrackingSpec(
        mode="online",
        project=project or written.get("project") or TrackingSpec.project,
        entity=entity or written.get("entity"),
        tags=tuple(written.get("tags") or ()),
        alert=bool(written.get("alert")),
    )
    job = Job(
        tracking=tracking,
        root=folder.root,
        sweep_name=folder.root.resolve().name,
        public=spec,
        patience=_PATIENCE,
    )
    with tempfile.TemporaryDirectory() as files:
        runs = WandbRuns(job, Path(files))
        try:
            print(runs.connect(past))
            runs.upload(_PATIENCE.finish_s)
        except ImportError:
            raise SweepError("wandb is not installed (pip install wandb).") from None
        except UnusableError as error:
            raise SweepError(f"W&B: {error}. Nothing is lost; the same command goes on.") from None
        finally:
            runs.leave()
    print(*runs.last_lines(cut_short=False), sep="\n")
    return 0
