"""Opens and closes runs with the wandb package, and sees to it that its process ends.

wandb does its uploads in a process of its own, `wandb-core`, which writes every run to disk first.
It never falls back to offline by itself: `wandb.init` raises after its timeout, and `run.finish`
waits. So both get short timeouts here, and a run whose upload failed goes on offline under the
same id; `wandb sync` puts the parts together.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.config.spec import TrackingSpec

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

INIT_S = 10.0  # for the server to accept a run
FINISH_S = 10.0  # for the rest of a run to be uploaded
FLUSH_S = 0.5  # what a kill may cost; wandb's own 15 s would lose short runs whole
_KILL_S = 1.0


class WandbService:
    """Opens and closes the runs of one sweep. Used from one thread, but for `abandon`."""

    def __init__(self, tracking: TrackingSpec, root: Path, *, group: str, online: bool) -> None:
        self.online = online
        self.abandoned = False
        self.unsent: list[Path] = []  # folders of online runs that were not uploaded whole
        self._tracking = tracking
        self._root = root.absolute()
        self._group = group
        self._live: list[Run] = []
        self._process: Any = _service_process()

    def open(self, run_id: str, *, name: str, job_type: str, config: Mapping[str, Any]) -> Run:
        """Begin the run of this id, or go on with it.

        Raises:
            Exception: wandb's, where the server does not take the run within `INIT_S`.
        """
        import wandb

        self._check_wanted()
        (self._root / "wandb").mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=self._tracking.project,
            entity=self._tracking.entity,
            dir=str(self._root),
            id=run_id,
            name=name,
            group=self._group,
            job_type=job_type,
            tags=self._tracking.tags,
            config=dict(config),
            mode="online" if self.online else "offline",
            resume="allow",
            reinit="create_new",
            settings=_run_settings(),
        )
        self._live.append(run)
        return run

    def close(self, endings: Sequence[tuple[Run, int]], timeout_s: float) -> bool:
        """End runs with their exit codes, all at once; whether all were uploaded in time."""
        ended: list[Run] = []
        until = time.monotonic() + timeout_s
        enders = [
            threading.Thread(target=_end, args=(run, code, ended.append), daemon=True)
            for run, code in endings
        ]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join(max(0.0, until - time.monotonic()))
        runs = [run for run, _ in endings]
        late = [run for run in runs if run not in ended]
        self._live = [run for run in self._live if run not in runs]
        self._note_unsent(late)
        return not late

    def go_offline(self) -> None:
        """Leave the server alone from now on; what runs wrote so far stays on disk."""
        self._note_unsent(self._live)
        self._live.clear()
        self.online = False
        self._check_wanted()
        time.sleep(2 * FLUSH_S)  # the files are complete; an orderly end would wait for the server
        self._kill()
        tear_down()
        self._check_wanted()
        set_up()
        self._process = _service_process()

    def abandon(self) -> None:
        """End wandb-core at once, from any thread. What waits for it fails; no run opens again."""
        self.abandoned = True
        self._kill()

    def _check_wanted(self) -> None:
        if self.abandoned:
            raise RuntimeError("the driver is leaving")

    def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(Exception):
            process.terminate()
            try:
                process.wait(_KILL_S)
            except Exception:
                process.kill()
                process.wait(_KILL_S)

    def _note_unsent(self, runs: list[Run]) -> None:
        if self.online:
            self.unsent += [Path(run.dir).parent for run in runs]


def _end(run: Run, code: int, ended: Callable[[Run], None]) -> None:
    try:
        run.finish(exit_code=code)
        ended(run)
    except Exception as error:  # its timeout, or wandb-core is gone: the files are there
        log.debug("closing a W&B run: %s", error)


def set_up() -> Any:
    """wandb's session, silent from its first word; begins wandb-core."""
    # Its crash reports would carry local paths, and only listed keys may leave the machine.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    hooks = sys.exit, sys.excepthook
    session = wandb.setup(settings=wandb.Settings(silent=True, quiet=True))
    # It wraps these for good, and one more time at each set-up: tracebacks would come out twice.
    sys.exit, sys.excepthook = hooks
    return session


def tear_down() -> None:
    """End wandb-core, and wait for it."""
    import wandb

    with suppress(Exception):  # it may be gone already
        wandb.teardown()


def _run_settings() -> Any:
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
        "init_timeout": INIT_S,
        "finish_timeout": FINISH_S,
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


def _refuse_stop() -> None:
    """The stop button of W&B's page would interrupt the driver, and so the whole sweep."""
    log.warning("W&B: its stop button does nothing here; stop the sweep with Ctrl-C")


def _service_process() -> Any:
    """wandb-core's process where this one started it, else None. wandb keeps it private."""
    try:
        from wandb.sdk import wandb_setup

        connection: Any = wandb_setup.singleton()._connection
        return connection._proc._process
    except AttributeError:
        return None
