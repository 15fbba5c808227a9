"""WHERE and WHEN trials run: the only layer that knows Ray, W&B, signals and the terminal."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.api import Outcome

__version__ = "0.1.0"


def sweep(overrides: Sequence[str], *, config_dir: str | os.PathLike[str] | None = None) -> Outcome:
    """Run a sweep or go on with it; see `orchestrator.api.sweep`."""
    with warnings.catch_warnings():  # tqdm's in a notebook: a package for bars that are not shown
        warnings.filterwarnings("ignore", "IProgress not found")
        from orchestrator.api import sweep as run  # here: every worker imports this package

    return run(overrides, config_dir=config_dir)
