"""Opens and closes W&B runs, and ends wandb's process if its server does not answer any more.

wandb does its uploads in a process of its own, `wandb-core`, which writes every run to disk first.
It never falls back to offline by itself: `wandb.init` raises after its timeout, and `run.finish`
waits. So both get short timeouts here, and a run whose upload failed goes on offline under the
same id; `wandb sync` puts the parts together.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from orchestrator.tracking.tracker import Job, kill

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

FLUSH_S = 0.5  # what a kill may cost; wandb's own 15 s would lose short runs whole


class WandbProcess:
    """Opens and closes the runs of one sweep, in one thread.

    Attributes:
        online: whether runs are sent to the server.
        unsent: folders of online runs that were not uploaded whole.
    """

    def __init__(self, job: Job) -> None:
        self.online = False
        self.unsent: list[Path] = []
        self._job = job
        self._live: list[Run] = []

    def open(self, run_id: str, *, name: str, job_type: str, config: Mapping[str, Any]) -> Run:
        """Begin the run of this id, or go on with it.

        Raises:
            Exception: wandb's, if the server does not take the run in time.
        """
        import wandb

        self._job.folder.tracking.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self._job.tracking.project,
            entity=self._job.tracking.entity,
            dir=str(self._job.root.absolute()),
            id=run_id,
            name=name,
            group=self._job.sweep_name,
            job_type=job_type,
            tags=self._job.tracking.tags,
            config=dict(config),
            mode="online" if self.online else "offline",
            resume="allow",
            reinit="create_new",
            settings=self._settings(),
        )
        self._live.append(run)
        return run

    def close(self, endings: Sequence[tuple[Run, int]], timeout_s: float) -> bool:
        """End runs with their exit codes, all at once; whether all were uploaded in time."""
        pool = ThreadPoolExecutor(len(endings))
        ends = {pool.submit(run.finish, exit_code=code): run for run, code in endings}
        wait(ends, timeout_s)
        pool.shutdown(wait=False)
        late = [run for end, run in ends.items() if not end.done() or end.exception() is not None]
        self._live = [run for run in self._live if run not in ends.values()]
        self._note_unsent(late)
        return not late

    def go_offline(self) -> None:
        """Leave the server alone from now on; what runs wrote so far stays on disk."""
        self._note_unsent(self._live)
        self._live.clear()
        self.online = False
        time.sleep(2 * FLUSH_S)  # the files are complete; an orderly end would wait for the server
        kill(psutil.Process().children())
        tear_down()
        set_up()

    def _note_unsent(self, runs: Sequence[Run]) -> None:
        if self.online:
            self.unsent += [Path(run.dir).parent for run in runs]

    def _settings(self) -> Any:
        """No charts, files or facts of this machine: the workers' machines do the training."""
        import wandb

        chosen: dict[str, Any] = {
            "silent": True,
            "quiet": True,
            "console": "off",
            "disable_code": True,
            "disable_git": True,
            "save_code": False,
            "host": "",
            "program": "",
            "symlink": False,
            "use_dot_wandb": False,
            "init_timeout": self._job.patience.init_s,
            "finish_timeout": self._job.patience.finish_s,
            "finish_timeout_raises": True,
            "stop_fn": _refuse_stop,
            "x_disable_stats": True,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
            "x_transaction_log_flush_interval": FLUSH_S,
        }
        known = wandb.Settings.model_fields
        return wandb.Settings(**{name: value for name, value in chosen.items() if name in known})


def set_up() -> Any:
    """Start wandb-core; returns wandb's session, silent from its first word."""
    # Its crash reports would carry local paths, and only listed keys may leave the machine.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb.setup(settings=wandb.Settings(silent=True, quiet=True))


def tear_down() -> None:
    """End wandb-core, and wait for it."""
    import wandb

    with suppress(Exception):  # it may be gone already
        wandb.teardown()


def _refuse_stop() -> None:
    """The stop button of W&B's page would interrupt this process."""
    log.warning("W&B: its stop button does nothing here; stop the sweep with Ctrl-C")
