"""Controls wandb's own process: its settings, the end of its runs, and its own end.

wandb does its uploads in a process of its own, `wandb-core`, which writes every run to disk first.
It never falls back to offline by itself: `wandb.init` raises after its timeout, and `run.finish`
waits. So both get short timeouts here, and a run whose upload failed goes on offline under the
same id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from orchestrator.tracking.tracker import Patience, kill

if TYPE_CHECKING:
    from wandb import Run

# What an agent or a script sets for a run of its own; of ours there is one for each trial.
_OF_ONE_RUN = (
    *("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_LAUNCH", "WANDB_RUN_ID"),
    *("WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"),
)
_OF_A_NAME = ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE")  # as above; ours are given
FLUSH_S = 0.5  # what a kill may cost; wandb's own 15 s would lose short runs whole


def unused_variables() -> list[str]:
    """The variables of the environment that name one run, and are not used. Before `set_up`."""
    return [name for name in (*_OF_ONE_RUN, *_OF_A_NAME) if name in os.environ]


def finish_runs(endings: Mapping[Run, int], timeout_s: float) -> list[Run]:
    """End runs with their exit codes, all at once; returns those not uploaded in time."""
    pool = ThreadPoolExecutor(len(endings))
    ends = {pool.submit(run.finish, exit_code=code): run for run, code in endings.items()}
    wait(ends, timeout_s)
    pool.shutdown(wait=False)
    return [run for end, run in ends.items() if not end.done() or end.exception() is not None]


def restart() -> None:
    """Kill wandb-core, once its files are complete, and start another: its runs are lost to it."""
    time.sleep(2 * FLUSH_S)  # an orderly end would wait for the server
    kill(psutil.Process().children())
    tear_down()
    set_up()


def run_settings(patience: Patience, sweep_id: str | None, stop: Callable[[], None]) -> Any:
    """Build settings without charts, files or facts of this machine: workers do the training.

    Args:
        sweep_id: of W&B's sweep object that the run belongs to.
        stop: is called, in another thread, if the run is stopped on W&B's page; asked each 15 s.
    """
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
        "init_timeout": patience.init_s,
        "finish_timeout": patience.finish_s,
        "finish_timeout_raises": True,
        "stop_fn": stop,
        "sweep_id": sweep_id,
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
    for name in _OF_ONE_RUN:
        os.environ.pop(name, None)
    import wandb

    return wandb.setup(settings=wandb.Settings(silent=True, quiet=True))


def tear_down() -> None:
    """End wandb-core, and wait for it."""
    import wandb

    with suppress(Exception):  # it may be gone already
        wandb.teardown()
