"""Starts Ray on this machine or joins a cluster, and stops it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

from orchestrator.cluster.gpus import given_to_ray, let_segments_grow
from orchestrator.cluster.limits import usable_cpus
from orchestrator.cluster.nodes import alive_nodes
from orchestrator.cluster.surroundings import find_ray_folder
from sweeps.config.spec import ClusterSpec
from sweeps.core.errors import SweepError, first_line
from sweeps.core.secrets import scrub

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else Tune's thread starts another Ray once ours is stopped
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` is run for each worker, on a packed copy
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; ours is fed by the ledger
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's snapshots are never read back
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # else a worker waits until the one before has started
}
_STOP_S = 10.0
_HEAD = ("gcs_server", "raylet")  # Ray's processes without which nothing goes on
_FIRST = ("dashboard", "log_monitor")  # a signal ends these at once, the head 0.1 to 10 s later
_ANSWER_S = 10.0  # for a cluster that is only asked for its resources
_OBJECT_STORE_BYTES = 128 * 2**20  # workers exchange a few kilobytes; data goes by files


def import_ray(cluster: ClusterSpec) -> None:
    """Import Ray, which reads its settings from the environment as it is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if cluster.kind == "local":
        find_ray_folder()
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token is written into ~/.ray
        # Without it Ray listens on the machine's outer address, whatever _node_ip_address says.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        let_segments_grow()  # in the workers, which take over this environment
    # In a notebook it advises a package that only Ray's own tables would need.
    logging.getLogger("ray.widgets.util").setLevel(logging.ERROR)
    from ray._private import auto_init_hook

    # As RAY_ENABLE_AUTO_CONNECT=0, which is too late if the program has imported Ray before.
    auto_init_hook.enable_auto_connect = False


def begin_ray(cluster: ClusterSpec) -> None:
    """Start Ray or join a cluster in the background; does nothing if that was begun.

    Raises:
        SweepError: the program that runs the sweep has a Ray of its own.
    """
    global _ray
    if _ray is None:
        import_ray(cluster)  # in this thread: another one might import at the same time
        import ray

        if ray.is_initialized():
            raise SweepError(
                "Ray runs in this process already, and a process has one: ray.shutdown() ends it"
            )
        _ray = _Ray(cluster)


def start_ray(cluster: ClusterSpec) -> None:
    """Start Ray on this machine, on loopback, or join a cluster, and wait until it runs.

    Raises:
        SweepError: Ray does not start, or the cluster cannot be reached.
    """
    begin_ray(cluster)
    assert _ray is not None
    _ray.wait()
    if _ray.error is not None:
        raise _ray.error


def ask_cluster(cluster: ClusterSpec) -> None:
    """Join a cluster to see what it has; leave it again if it does not answer soon."""
    begin_ray(cluster)
    assert _ray is not None
    _ray.wait(_ANSWER_S)
    if not _ray.runs:
        stop_ray()


def gpus_of_cluster() -> int | None:
    """GPUs of the Ray that was begun; None if none was, or if it could not be joined."""
    if _ray is None:
        return None
    _ray.wait()
    if not _ray.runs:
        return None
    return int(sum(node["Resources"].get("GPU", 0) for node in alive_nodes()))


class _Ray(threading.Thread):
    """Starts Ray, and stays as long as it runs: its processes end with the thread that started
    them. In the main thread `ray.init` would set a handler of its own for SIGTERM, and a signal in
    the middle of it would leave processes behind."""

    def __init__(self, cluster: ClusterSpec) -> None:
        super().__init__(name="ray", daemon=True)
        self.error: Exception | None = None
        self._cluster = cluster
        self._is_started, self._is_over = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.start()

    def run(self) -> None:
        try:
            _init(self._cluster)
        except Exception as error:
            self.error = error
        finally:
            with self._lock:
                self._is_started.set()
                was_ended = self._is_over.is_set()
        if was_ended and self.error is None:
            import ray

            ray.shutdown()  # a process whose Ray goes without it is ended by Ray a minute later
        self._is_over.wait()

    @property
    def runs(self) -> bool:
        return self._is_started.is_set() and self.error is None

    def wait(self, seconds: float | None = None) -> None:
        """Wait until Ray runs or has failed to start."""
        self._is_started.wait(seconds)

    def end(self) -> None:
        """Stop Ray; while it starts, this is left to its thread."""
        import ray

        with self._lock:
            if not self._is_started.is_set():
                self._is_over.set()
                return
        if own_ray_is_ending():  # `ray.shutdown` would wait for it; what is left of it is ended
            _own_node().kill_all_processes(check_alive=False, allow_graceful=False)
        else:
            ray.shutdown()
        self._is_over.set()


_ray: _Ray | None = None


def _init(cluster: ClusterSpec) -> None:
    import ray

    # It would say that it sets and resets no signal handler here: `Signals` does that.
    logging.getLogger("ray._private.worker").setLevel(logging.CRITICAL)
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "namespace": "sweeps",
    }
    if cluster.kind == "local":
        try:
            ray.init(
                address="local",  # else it joins a cluster that runs on this machine
                num_cpus=own_cpus(cluster),
                num_gpus=given_to_ray(cluster),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **common,
            )
        except Exception as error:
            raise _no_start(error) from error
        # The autoscaler has nothing to scale here, and at the end it would be waited for.
        _own_node().kill_monitor(check_alive=False)
        return
    knock(cluster)
    try:
        # Its nodes know nothing of our packages, which lie at the same place on each.
        path = f"{Path(__file__).parents[2]}:${{PYTHONPATH}}"
        common["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
        ray.init(address=cluster.address, **common)
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_answer(cluster, error) from None


def address_line(cluster: ClusterSpec) -> str:
    """What RAY_ADDRESS means for a sweep; empty if it is not set, or if an address was typed."""
    named = scrub(os.environ.get("RAY_ADDRESS", ""))
    if named and cluster.kind == "local":
        return f"RAY_ADDRESS is not used: trials stay on this machine; cluster=ray joins {named}"
    if named and cluster.address == "auto":
        return f"cluster: {named}, which RAY_ADDRESS names"
    return ""


def _address(cluster: ClusterSpec) -> str:
    """Where a cluster is; for `auto` Ray looks at RAY_ADDRESS first."""
    named = os.environ.get("RAY_ADDRESS") if cluster.address == "auto" else None
    return named or str(cluster.address)


def own_cpus(cluster: ClusterSpec) -> int:
    """CPUs of this machine that a Ray of our own is told of."""
    return cluster.cpus or usable_cpus()


def knock(cluster: ClusterSpec) -> None:
    """See whether anything listens at a cluster's host:port; Ray itself would try for minutes.

    Raises:
        SweepError: nothing listens, or RAY_ADDRESS names no cluster.
    """
    if cluster.kind == "local":
        return
    address = _address(cluster)
    if address == "local":
        raise SweepError(
            "RAY_ADDRESS = local: cluster=ray joins a cluster. Unset it, or take cluster=local."
        )
    host, sign, port = address.removeprefix("ray://").rpartition(":")
    if sign and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError, OverflowError) as error:
            raise _no_answer(cluster, error) from None


def _no_answer(cluster: ClusterSpec, error: Exception) -> SweepError:
    return SweepError(
        f"cluster.address = {scrub(_address(cluster))}: no Ray cluster answers "
        f"({first_line(error)}). Start one with `ray start --head`, name its address, or take "
        "cluster=local. One that asks for a token wants RAY_AUTH_MODE=token here, too."
    )


def _no_start(error: Exception) -> SweepError:
    words = first_line(error)[:300]
    return SweepError(
        f"Ray cannot be started on this machine ({type(error).__name__}: {words}). It keeps files "
        "in /dev/shm and in the folder that RAY_TMPDIR names, else TMPDIR, else /tmp: there must "
        "be room, and the folder's path must be short, since sockets lie in it."
    )


def stop_ray(*, keep_logs: bool = False, leaves: bool = False) -> None:
    """Stop Ray or leave the cluster, without waiting long for a Ray that is gone.

    Args:
        keep_logs: of the Ray that was started here; else its folder is removed.
        leaves: this process ends now. Its Ray's processes end with it; if a signal has reached
            them already, whoever waited for them would be ended by Ray first, with code 1.
    """
    global _ray
    if _ray is None:
        return
    _ray.wait(_STOP_S)
    session = None if keep_logs else own_session()
    if not (leaves and own_ray_is_ending()):
        closing = threading.Thread(target=_ray.end, daemon=True)
        closing.start()
        closing.join(_STOP_S)
    _ray = None
    if session is not None:
        shutil.rmtree(session, ignore_errors=True)  # Ray itself leaves a folder of logs each time


def own_session() -> Path | None:
    """The folder of the Ray that this process has started; None if it has joined a cluster."""
    node = _own_node()
    return Path(node.get_session_dir_path()) if node else None


def own_ray_is_gone() -> bool:
    """Whether the Ray that this process has started has lost its head, as by a signal to the whole
    process group. Ray ends this process some time later, and with an exit code of its own."""
    return any(name in _HEAD for name in _dead_processes())


def own_ray_is_ending() -> bool:
    """Whether a signal to the whole process group has reached the Ray that this process has
    started: its head is gone, or what ends before it."""
    return own_ray_is_gone() or set(_FIRST) <= _dead_processes()


def _dead_processes() -> set[str]:
    node = _own_node()
    return {name for name, _ in node.dead_processes()} if node is not None else set()


def _own_node() -> Any:
    from ray._private import worker  # there is no public way to ask

    node = getattr(worker, "_global_node", None)
    return node if node is not None and node.head else None
