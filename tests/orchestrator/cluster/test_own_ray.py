"""A Ray of our own whose head has ended: it is seen at once, and what is left of it is ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from orchestrator.cluster import ray_cluster


@pytest.mark.parametrize(
    ("dead", "is_gone"),
    [([], False), (["log_monitor"], False), (["raylet"], True), (["gcs_server"], True)],
)
def test_a_head_that_has_ended_is_seen(
    monkeypatch: pytest.MonkeyPatch, dead: list[str], is_gone: bool
) -> None:
    node = SimpleNamespace(dead_processes=lambda: [(name, None) for name in dead])
    monkeypatch.setattr(ray_cluster, "_own_node", lambda: node)
    assert ray_cluster.own_ray_is_gone() is is_gone


def test_a_cluster_that_was_joined_has_a_head_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_own_node", lambda: None)
    assert not ray_cluster.own_ray_is_gone()


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
    ray_cluster._Ray(cluster).end()
    wanted = "kill {'check_alive': False, 'allow_graceful': False}" if is_gone else "shutdown"
    assert called == [wanted]


def test_rays_node_still_has_what_is_asked_of_it() -> None:
    from ray._private.node import Node

    assert all(hasattr(Node, name) for name in ("dead_processes", "kill_all_processes"))
