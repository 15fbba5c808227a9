"""Ray and Tune: start or join a cluster, place workers on its devices, replace those that die."""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.gpus import given_to_ray, idle_beside, let_segments_grow
from orchestrator.nodes import alive_nodes, share_of_gpu
from sweeps.errors import ConfigError, Problem, SweepError, first_line
from sweeps.secrets import scrub
from sweeps.spec import ClusterSpec, EngineSpec

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; ours is fed by the ledger
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's snapshots are never read back
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # else a worker waits until the one before has started
}
_STOP_S = 10.0
_HEAD = ("gcs_server", "raylet")  # Ray's processes without which nothing goes on
_ANSWER_S = 10.0  # of a cluster that is only asked what it has
_PLACED_S = 60.0  # more than a worker's imports take from a slow disk
_NEXT_TO_NOTHING = 0.0001  # of a node; Tune places no trial that asks for nothing
_OBJECT_STORE_BYTES = 128 * 2**20  # workers exchange a few kilobytes; data goes by files


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a worker takes of each of its devices, and how many workers fit.

    Attributes:
        memory_mb: of main memory for each, where a node is full of them.
    """

    cpus: float
    gpus: float
    memory_mb: float
    devices: int
    slots: int
    nodes: int
    where: str


def import_ray(cluster: ClusterSpec) -> None:
    """Import Ray, which reads its settings from the environment as it is imported."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if cluster.kind == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a token is written into ~/.ray
        # Without it Ray listens on the machine's outer address, whatever _node_ip_address says.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        let_segments_grow()  # in the workers, which take over this environment
    import ray  # noqa: F401


def begin_ray(cluster: ClusterSpec) -> None:
    """Start Ray on this machine, on loopback, or join a running cluster; once, and wait not."""
    global _ray
    if _ray is None:
        import_ray(cluster)  # not where another thread imports, too
        _ray = _Ray(cluster)


def start_ray(cluster: ClusterSpec) -> None:
    """The same, and wait until it runs.

    Raises:
        SweepError: it does not start, or the cluster cannot be reached.
    """
    begin_ray(cluster)
    assert _ray is not None
    _ray.wait()
    if _ray.error is not None:
        raise _ray.error


def ask_cluster(cluster: ClusterSpec) -> None:
    """Join a cluster to see what it has; one that does not answer soon is let go of again."""
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
        self.start()

    def run(self) -> None:
        try:
            _init(self._cluster)
        except Exception as error:
            self.error = error
        finally:
            self._is_started.set()
        self._is_over.wait()

    @property
    def runs(self) -> bool:
        return self._is_started.is_set() and self.error is None

    def wait(self, seconds: float | None = None) -> None:
        """Until it runs, or has failed to."""
        self._is_started.wait(seconds)

    def end(self) -> None:
        import ray

        if own_ray_is_gone():  # `ray.shutdown` would wait for it; what is left of it is ended
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
                num_cpus=cluster.cpus or len(os.sched_getaffinity(0)),
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
        path = f"{Path(__file__).parents[1]}:${{PYTHONPATH}}"
        common["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
        ray.init(address=cluster.address, **common)
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_answer(cluster, error) from None


def knock(cluster: ClusterSpec) -> None:
    """See whether anything listens at a cluster's host:port; Ray itself would try for minutes.

    Raises:
        SweepError: nothing does.
    """
    if cluster.kind == "local":
        return
    host, sign, port = str(cluster.address).removeprefix("ray://").rpartition(":")
    if sign and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError, OverflowError) as error:
            raise _no_answer(cluster, error) from None


def _no_answer(cluster: ClusterSpec, error: Exception) -> SweepError:
    return SweepError(
        f"cluster.address = {scrub(str(cluster.address))}: no Ray cluster answers "
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


def stop_ray(*, keep_logs: bool = False) -> None:
    """Let go of Ray, but do not wait long for a Ray that is gone.

    Args:
        keep_logs: of the Ray that was started here; else its folder is removed.
    """
    global _ray
    if _ray is None:
        return
    _ray.wait(_STOP_S)
    session = None if keep_logs else own_session()
    closing = threading.Thread(target=_ray.end, daemon=True)
    closing.start()
    closing.join(_STOP_S)
    _ray = None
    if session is not None:
        shutil.rmtree(session, ignore_errors=True)  # Ray itself leaves a folder of logs each time


def own_session() -> Path | None:
    """The folder of the Ray that this process has started; None where it has joined one."""
    node = _own_node()
    return Path(node.get_session_dir_path()) if node else None


def own_ray_is_gone() -> bool:
    """Whether the Ray that this process has started has lost its head, as by a signal to the whole
    process group. Ray ends this process some time later, and with an exit code of its own."""
    node = _own_node()
    return node is not None and any(name in _HEAD for name, _ in node.dead_processes())


def _own_node() -> Any:
    from ray._private import worker  # there is no public way to ask

    node = getattr(worker, "_global_node", None)
    return node if node is not None and node.head else None


def place(engine: EngineSpec, cluster: ClusterSpec, most: int = 10**6) -> Placement:
    """How many workers fit on the cluster as it is now.

    Args:
        most: workers that there is work for.

    Raises:
        ConfigError: not even one does; says what there is.
    """
    nodes = [node["Resources"] for node in alive_nodes()]
    seen = int(sum(node.get("GPU", 0) for node in nodes))
    gpus, idle = engine.gpus_per_trial, ""
    if gpus and cluster.kind == "local":
        idle = idle_beside(seen, engine, cluster)
    if gpus == "auto":
        gpus = 1.0 if seen and not idle else 0.0
    gpus = share_of_gpu(gpus, seen, most)
    here_each = [slots_of(node, engine.cpus_per_trial, gpus) for node in nodes]
    devices = sum(here_each)
    here = "this machine" if cluster.kind == "local" else f"the largest of {len(nodes)} nodes"
    if devices < 1:
        raise ConfigError(_too_much(engine.cpus_per_trial, gpus, nodes, here))
    slots = devices // engine.devices_per_trial
    if slots < 1:
        raise ConfigError([_too_many(engine.devices_per_trial, devices)])
    what = f"{gpus:.3g} GPU" if gpus else f"{engine.cpus_per_trial:g} CPU"
    if engine.devices_per_trial > 1:
        what = f"{engine.devices_per_trial} x {what}"
    what += " each"
    if 0 < gpus < 1:
        what += f": {int(1 / gpus + 1e-9)} share a GPU, which Ray fills before the next"
    where = "this machine" if cluster.kind == "local" else f"{len(nodes)} nodes of the cluster"
    shares = [
        node.get("memory", math.inf) / min(count, most)
        for node, count in zip(nodes, here_each, strict=True)
        if count
    ]
    return Placement(
        cpus=engine.cpus_per_trial,
        gpus=gpus,
        memory_mb=min(shares) / 2**20,
        devices=engine.devices_per_trial,
        slots=slots,
        nodes=len(nodes),
        where="; ".join(filter(None, [f"{slots} at once on {where}, {what}", idle])),
    )


def _too_many(asked: int, there: int) -> Problem:
    message = f"a trial would wait for ever: there is room for {there} in all."
    return Problem(key="engine.devices_per_trial", value=asked, message=message)


def _too_much(
    cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]], here: str
) -> list[Problem]:
    """What a worker asks for and no node has."""
    problems = []
    for key, name, asked in (
        ("engine.gpus_per_trial", "GPU", gpus),
        ("engine.cpus_per_trial", "CPU", cpus),
    ):
        most = max((node.get(name, 0) for node in nodes), default=0)
        if asked > most:
            message = f"{here} has {most:g} {name}s."
            problems.append(Problem(key=key, value=asked, message=message))
    return problems or [Problem(key="engine", message="no node has both the CPUs and the GPUs.")]


def slots_of(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Workers that one node holds; a fraction of a GPU never spans two."""
    by_cpu = int(node.get("CPU", 0) // cpus)
    if not gpus:
        return by_cpu
    count = int(node.get("GPU", 0))
    by_gpu = count * int(1 / gpus + 1e-9) if gpus < 1 else int(count // gpus)
    return min(by_cpu, by_gpu)


class Workers(threading.Thread):
    """Runs Tune until no worker is wanted any more; Tune's loop has a thread of its own.

    Args:
        office: the CoordinatorActor's handle.
        post: what every worker needs to know (`orchestrator.worker.Post`).
        slots: how many workers to keep, asked again as nodes come and go.
        scratch: where Tune keeps its own files; removed by the caller.
    """

    def __init__(
        self, office: Any, post: Any, placement: Placement, slots: Callable[[], int], scratch: Path
    ) -> None:
        super().__init__(name="workers", daemon=True)
        self._office = office
        self._post = post
        self._placement = placement
        self._slots = slots
        self._scratch = scratch
        self._began = time.monotonic()
        self._placed: Callable[[], int] = lambda: 0
        self._told = False
        self.error: Exception | None = None

    def news(self) -> str:
        """Something to say, once: others hold what the cluster has, and nobody would know."""
        late = time.monotonic() - self._began > _PLACED_S
        if self._told or not late or self._placed():
            return ""
        self._told = True
        return "no trial could be placed yet: other jobs hold the cluster. Waiting for them"

    def run(self) -> None:
        try:
            self._fit()
        except Exception as error:
            self.error = error

    def _fit(self) -> None:
        from ray import tune
        from ray.tune.execution import class_cache

        # Tune hands the driver's AWS keys over to its workers, and Ray writes them into its logs.
        # A worker on this machine has them anyway, one elsewhere those of its own node.
        handed = class_cache.ENV_VARS_TO_PROPAGATE
        handed.difference_update([name for name in handed if name.startswith("AWS_")])
        # What goes wrong in a worker is told by the Coordinator; Tune would add its own traceback.
        for name in ("ray", "ray.tune", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from orchestrator.group import GroupWorker
        from orchestrator.searcher import Deaths, WorkerSearcher
        from orchestrator.worker import Worker

        deaths = Deaths(self._office)
        self._placed = lambda: deaths.placed
        one = {"CPU": self._placement.cpus, "GPU": self._placement.gpus}
        is_group = self._placement.devices > 1  # its processes take the devices, not it
        trainable = tune.with_resources(
            tune.with_parameters(
                GroupWorker if is_group else Worker, office=self._office, post=self._post
            ),
            next_to_nothing_here() if is_group else one,
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=WorkerSearcher(self._office, self._slots), num_samples=-1
            ),
            run_config=tune.RunConfig(
                name="workers",
                storage_path=str(self._scratch),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                # A dead worker is not tried again: the searcher suggests a new one, where there is
                # room. Each trial's own budget of failures is the Coordinator's.
                failure_config=tune.FailureConfig(max_failures=0),
                callbacks=[deaths],
                verbose=0,
                log_to_file=False,
            ),
        )
        tuner.fit()


def next_to_nothing_here() -> dict[str, float]:
    """What a worker asks for that holds no device, so that it is placed on the driver's node.

    Ray gives each node a resource that bears its address.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return {f"node:{node['NodeManagerAddress']}": _NEXT_TO_NOTHING}


def live_slots(engine: EngineSpec, gpus: float, most: int) -> Callable[[], int]:
    """How many workers fit now; the cluster is looked at once a second at most."""
    seen: tuple[float, int] = (-1.0, 0)

    def count() -> int:
        nonlocal seen
        if time.monotonic() - seen[0] > 1.0:
            nodes = [node["Resources"] for node in alive_nodes()]
            fit = sum(slots_of(node, engine.cpus_per_trial, gpus) for node in nodes)
            seen = (time.monotonic(), min(fit // engine.devices_per_trial, most))
        return seen[1]

    return count
