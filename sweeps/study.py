"""study.db: a copy of the study for optuna-dashboard. It is written, and never read back."""

from __future__ import annotations

import os
from pathlib import Path

import optuna


def export_study(study: optuna.Study, path: Path) -> None:
    """Write `study` as an SQLite file; an older one is replaced as a whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{draft}")
    try:
        copy = optuna.create_study(
            storage=storage, study_name=study.study_name, direction=study.direction
        )
        copy.add_trials(study.get_trials(deepcopy=False))
    finally:
        storage.engine.dispose()
    os.replace(draft, path)
