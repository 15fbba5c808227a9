"""CPUs and memory of a container or a job: those of its groups, not those of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.cluster.limits import machine_memory_mb, usable_cpus, usable_memory_mb

MACHINE = 8
V1 = "9223372036854771712"  # how version 1 says that there is no limit


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MACHINE)))


def tree(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A machine's `proc` and `sys` with these groups of a process, and these files of groups."""
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def v1(cpus: str = "", memory: str = "", group: str = "") -> dict[str, str]:
    """Files of a group of version 1; `cpus` is written quota/period."""
    quota, _, period = cpus.partition("/")
    return {
        f"cpu{group}/cpu.cfs_quota_us": quota,
        f"cpu{group}/cpu.cfs_period_us": period,
        f"memory{group}/memory.limit_in_bytes": memory or V1,
    }


@pytest.mark.parametrize(
    ("words", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 2),  # a part of a CPU keeps no worker busy
        ("50000 100000", 1),
        ("20000 10000", 2),
        ("6400000 100000", 8),  # more than the machine has
    ],
)
def test_cpus_of_a_container(tmp_path: Path, words: str, cpus: int) -> None:
    version_2 = tree(tmp_path / "2", "0::/", {"cpu.max": words})
    assert usable_cpus(version_2) == cpus
    old = v1(words.replace("max", "-1").replace(" ", "/"))
    version_1 = tree(tmp_path / "1", "5:memory:/\n4:cpu,cpuacct:/\n0::/", old)
    assert usable_cpus(version_1) == cpus


@pytest.mark.parametrize(("limit", "mb"), [("max", None), (str(64 * 2**20), 64.0)])
def test_memory_of_a_container(tmp_path: Path, limit: str, mb: float | None) -> None:
    version_2 = tree(tmp_path / "2", "0::/", {"memory.max": limit})
    version_1 = tree(tmp_path / "1", "5:memory:/\n0::/", v1(memory=limit.replace("max", V1)))
    wanted = mb or machine_memory_mb()
    assert usable_memory_mb(version_2) == usable_memory_mb(version_1) == wanted


@pytest.mark.parametrize("inner", ["/job", "/job/step"])
def test_the_least_of_the_groups_around_a_process_counts(tmp_path: Path, inner: str) -> None:
    """As of a batch job, whose steps have groups of their own within it."""
    files = {
        "job/cpu.max": "300000 100000",
        "job/memory.max": str(2**30),
        "job/step/cpu.max": "max 100000",
        "job/step/memory.max": str(2**40),
        "other/cpu.max": "100000 100000",
        "other/memory.max": str(2**20),
    }
    root = tree(tmp_path / "2", f"0::{inner}", files)
    assert (usable_cpus(root), usable_memory_mb(root)) == (3, 1024.0)
    old = v1("300000/100000", str(2**30), "/job") | v1("-1/100000", V1, "/job/step")
    root = tree(tmp_path / "1", f"2:memory:{inner}\n1:cpu:{inner}", old)
    assert (usable_cpus(root), usable_memory_mb(root)) == (3, 1024.0)


def test_a_container_that_is_told_its_hosts_path(tmp_path: Path) -> None:
    """As of docker with version 1: the group that it sees at the top is its own."""
    path = "/docker/0123"
    root = tree(tmp_path / "1", f"2:memory:{path}\n1:cpu:{path}", v1("100000/100000", "1048576"))
    assert (usable_cpus(root), usable_memory_mb(root)) == (1, 1.0)
    files = {"cpu.max": "100000 100000", "memory.max": "1048576"}
    root = tree(tmp_path / "2", "0::/../../docker/0123", files)
    assert (usable_cpus(root), usable_memory_mb(root)) == (1, 1.0)


def test_both_versions_beside_each_other(tmp_path: Path) -> None:
    files = {"unified/user/memory.max": str(2**25), **v1("-1/100000")}
    root = tree(tmp_path, "3:memory:/\n2:cpu:/\n0::/user", files)
    assert (usable_cpus(root), usable_memory_mb(root)) == (MACHINE, 32.0)


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert (usable_cpus(tmp_path), usable_memory_mb(tmp_path)) == (MACHINE, machine_memory_mb())


def test_the_processs_own_cpus_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})  # as of taskset or Slurm
    assert usable_cpus(tree(tmp_path, "0::/", {"cpu.max": "400000 100000"})) == 1
