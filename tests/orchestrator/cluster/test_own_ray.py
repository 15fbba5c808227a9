"""A Ray of our own: how it is set up, and that the end of its head is seen at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from orchestrator.cluster import placement, ray_cluster
from sweeps.config.spec import ClusterSpec, EngineSpec
from sweeps.core.errors import SweepError


@pytest.mark.parametrize(
    ("dead", "is_gone", "is_ending"),
    [
        ([], False, False),
        (["log_monitor"], False, False),  # it may die by itself
        (["dashboard", "log_monitor"], False, True),
        (["raylet"], True, True),
        (["gcs_server"], True, True),
    ],
)
def test_a_head_that_has_ended_or_will_is_seen(
    monkeypatch: pytest.MonkeyPatch, dead: list[str], is_gone: bool, is_ending: bool
) -> None:
    node = SimpleNamespace(dead_processes=lambda: [(name, None) for name in dead])
    monkeypatch.setattr(ray_cluster, "_own_node", lambda: node)
    assert ray_cluster.own_ray_is_gone() is is_gone
    assert ray_cluster.own_ray_is_ending() is is_ending


@pytest.mark.parametrize(
    ("is_ending", "leaves", "is_ended"),
    [(True, True, False), (True, False, True), (False, True, True)],
)
def test_whoever_leaves_does_not_wait_for_a_ray_that_is_ending(
    monkeypatch: pytest.MonkeyPatch, is_ending: bool, leaves: bool, is_ended: bool
) -> None:
    ended: list[bool] = []
    own = SimpleNamespace(wait=lambda seconds: None, end=lambda: ended.append(True))
    monkeypatch.setattr(ray_cluster, "_ray", own)
    monkeypatch.setattr(ray_cluster, "own_session", lambda: None)
    monkeypatch.setattr(ray_cluster, "own_ray_is_ending", lambda: is_ending)
    ray_cluster.stop_ray(leaves=leaves)
    assert bool(ended) is is_ended


def test_a_cluster_that_was_joined_has_a_head_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_own_node", lambda: None)
    assert not ray_cluster.own_ray_is_gone()


def test_a_ray_that_is_stopped_while_it_starts_is_shut_down_once_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its processes end with the thread that started them, and Ray would end this one then."""
    may_run, shut_down = threading.Event(), threading.Event()
    monkeypatch.setattr(ray_cluster, "_init", lambda cluster: may_run.wait())
    monkeypatch.setattr(ray, "shutdown", shut_down.set)
    own = ray_cluster._Ray(ClusterSpec())
    own.end()
    assert not shut_down.is_set()
    may_run.set()
    assert shut_down.wait(10)
    own.join(10)
    assert not own.is_alive()


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_ray_without_a_head_is_not_asked_to_shut_down(
    monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    called: list[str] = []
    dead = [("raylet", None)] if is_gone else []
    node = SimpleNamespace(
        dead_processes=lambda: dead,
        kill_all_processes=lambda **options: called.append(f"kill {options}"),
    )
    monkeypatch.setattr(ray_cluster, "_own_node", lambda: node)
    monkeypatch.setattr(ray_cluster, "_init", lambda cluster: None)
    monkeypatch.setattr(ray, "shutdown", lambda: called.append("shutdown"))
    cluster: Any = None
    own = ray_cluster._Ray(cluster)
    own.wait()
    own.end()
    wanted = "kill {'check_alive': False, 'allow_graceful': False}" if is_gone else "shutdown"
    assert called == [wanted]


AFTERWARDS = """
import ray
from orchestrator.cluster.ray_cluster import import_ray
from sweeps.config.spec import ClusterSpec
import_ray(ClusterSpec())
try:
    ray.wait([])
except Exception as error:
    print(error)
"""


@pytest.mark.slow
def test_no_other_ray_starts_once_ours_is_stopped_even_if_the_program_imported_it_first() -> None:
    """Tune's thread may still ask something of a Ray that an impatient user has ended."""
    command = [sys.executable, "-c", AFTERWARDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "Ray has not been started" in done.stdout, done


def test_rays_node_still_has_what_is_asked_of_it() -> None:
    from ray._private.node import Node

    assert all(hasattr(Node, name) for name in ("dead_processes", "kill_all_processes"))


READS = """
from orchestrator.cluster.ray_cluster import import_ray
from sweeps.config.spec import ClusterSpec
import_ray(ClusterSpec())
from ray._private import ray_constants
print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)
"""


@pytest.mark.slow
def test_workers_start_under_uv_run_as_they_do_without_it() -> None:
    """Else Ray packs the folder that a command is typed in, and runs uv for each worker."""
    done = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_containers_memory_bounds_that_of_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Resources": {"CPU": 4.0, "memory": 64.0 * 2**30}}
    monkeypatch.setattr(placement, "alive_nodes", lambda: [node])
    monkeypatch.setattr(placement, "usable_memory_mb", lambda: 2048.0)
    engine = EngineSpec(gpus_per_trial=0)
    assert placement.place(engine, ClusterSpec()).memory_mb == 512.0
    joined = ClusterSpec(kind="ray", address="auto")  # its nodes are other machines
    assert placement.place(engine, joined).memory_mb == 16.0 * 1024


AUTO = ClusterSpec(kind="ray", address="auto")


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (
            ClusterSpec(),
            "RAY_ADDRESS is not used: trials stay on this machine; cluster=ray joins 127.0.0.1:1",
        ),
        (AUTO, "cluster: 127.0.0.1:1, which RAY_ADDRESS names"),
        (ClusterSpec(kind="ray", address="head:6379"), ""),
    ],
)
def test_what_counts_is_said_if_the_environment_names_a_cluster(
    monkeypatch: pytest.MonkeyPatch, cluster: ClusterSpec, said: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_cluster.address_line(cluster) == ""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert ray_cluster.address_line(cluster) == said


def test_a_cluster_that_the_environment_names_is_knocked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ray_cluster.knock(ClusterSpec())
    with pytest.raises(SweepError, match=r"cluster.address = 127.0.0.1:1: no Ray cluster answers"):
        ray_cluster.knock(AUTO)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(SweepError, match="Unset it, or take cluster=local"):
        ray_cluster.knock(AUTO)
