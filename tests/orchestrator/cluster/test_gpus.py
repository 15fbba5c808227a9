"""GPUs of this machine: what is said of those that torch cannot use, and what a worker sets up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.config_reading import read

from orchestrator import plan
from orchestrator.cli import main
from orchestrator.cluster import gpus, nodes, ray_cluster
from orchestrator.cluster.ray_cluster import ask_cluster, stop_ray
from orchestrator.config import command
from orchestrator.config.command import guess_device
from orchestrator.storage.worker_files import WorkerFiles
from orchestrator.workers.worker import missing_here, settle_in
from orchestrator.workers.worker_config import WorkerConfig
from sweeps.config.spec import ClusterSpec, EngineSpec
from sweeps.storage.run_folder import RunFolder

OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root)\n"
ONE = EngineSpec(gpus_per_trial=1)
HERE = ClusterSpec()


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cards, and a driver that is too old; what torch was built for is left to the test."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    (tmp_path / "version").write_text(OLD)
    monkeypatch.setattr(gpus, "_DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("built", "visible", "driver", "said"),
    [
        (None, None, OLD, "built without CUDA; NVIDIA driver 535.129.03). Install a torch that"),
        ("13.0", None, OLD, "built for CUDA 13.0; NVIDIA driver 535.129.03). Install a driver that "
         "knows CUDA 13.0, or a torch"),
        ("13.0", "", OPEN, "NVIDIA driver 580.65.06; CUDA_VISIBLE_DEVICES=). Unset CUDA_VISIBLE_D"),
        ("13.0", None, "", "built for CUDA 13.0; no NVIDIA driver found). Install a driver"),
    ],
)  # fmt: skip
def test_a_refusal_names_both_sides_and_the_way_out(
    built: str | None,
    visible: str | None,
    driver: str,
    said: str,
    cards: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if driver:
        (cards / "version").write_text(driver)
    else:
        (cards / "version").unlink()
    (problem,) = gpus.gpu_problems(ONE, HERE)
    assert str(problem).startswith("engine.gpus_per_trial = 1: torch can use no GPU here (torch ")
    assert said in str(problem)
    assert str(problem).endswith("or train on the CPU: engine.gpus_per_trial=0.")
    assert not gpus.gpu_problems(EngineSpec(gpus_per_trial=0), HERE), "what it says works"


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 2), ("0", 1), ("0,1", 2), ("GPU-a", 1), ("", 0)]
)
def test_a_plan_tells_of_cards_that_stay_idle(
    visible: str | None, count: int, cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    said = gpus.idle_cards(EngineSpec(), HERE)
    assert said.startswith(f"{count} GPU" if count else "")
    assert bool(said) is bool(count)
    for engine, cluster in (
        (EngineSpec(gpus_per_trial=0), HERE),
        (EngineSpec(), ClusterSpec(gpus=0)),
        (EngineSpec(), ClusterSpec(kind="ray", address="auto")),
    ):
        assert gpus.idle_cards(engine, cluster) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpus.idle_cards(EngineSpec(), HERE) == ""


@pytest.mark.slow
@pytest.mark.usefixtures("cards")
def test_the_plan_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep=lr_grid", "tracking=off", "sweep.budget.examples=64", f"run_dir={tmp_path}/run"]
    assert main(["plan", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 GPUs stay idle: torch can use none (torch" in said
    assert "NVIDIA driver 535.129.03" in said


# ---------------------------------------------------------------------- a worker's process


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set in os.environ is taken back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (*gpus._ALLOCATOR, "TRITON_CACHE_DIR", "TRITON_HOME"):
        os.environ.pop(name, None)


@pytest.mark.usefixtures("environment")
def test_segments_grow_unless_the_user_says_otherwise() -> None:
    gpus.let_segments_grow()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.pop("PYTORCH_ALLOC_CONF", None)
        os.environ[name] = "max_split_size_mb:64"
        gpus.let_segments_grow()
        set_now = {each: os.environ[each] for each in gpus._ALLOCATOR if each in os.environ}
        assert set_now == {name: "max_split_size_mb:64"}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("share", "limit"), [(1.0, []), (0.5, [0.5]), (0.0, [])])
def test_a_worker_may_allocate_its_share(
    share: float, limit: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", given.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    settle_in(WorkerConfig(root=tmp_path, examples=8, cpus=1, gpus=share))
    assert given == limit
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("home", ["/proc/nobody", "none"])  # no folder can be made in /proc
def test_kernels_go_to_the_scratch_folder_if_there_is_no_home(home: str, tmp_path: Path) -> None:
    os.environ["HOME"] = home
    gpus.keep_kernels(RunFolder(tmp_path))
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / ".tune" / "triton")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("by", ["HOME", "TRITON_HOME", "TRITON_CACHE_DIR"])
def test_kernels_stay_where_triton_keeps_them(by: str, tmp_path: Path) -> None:
    os.environ["HOME"] = "/proc/nobody"
    os.environ[by] = str(tmp_path)
    gpus.keep_kernels(RunFolder(tmp_path))
    assert os.environ.get("TRITON_CACHE_DIR") == (str(tmp_path) if by[-3:] == "DIR" else None)


@pytest.mark.usefixtures("environment")
def test_a_worker_whose_torch_cannot_use_its_gpu_sits_out_and_says_why(
    cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = WorkerFiles(cards, "", "")
    on_gpu, on_cpu = (
        WorkerConfig(root=cards, examples=8, cpus=1, gpus=share) for share in (1.0, 0.0)
    )
    assert "cannot use its GPU: torch" in missing_here(on_gpu, files)
    assert missing_here(on_cpu, files) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert missing_here(on_gpu, files) == ""
    unseen = WorkerFiles(cards / "nowhere", "word", "")
    assert missing_here(on_gpu, unseen).startswith("run_dir cannot be seen from node")


def test_a_node_with_a_cpu_build_of_torch_takes_no_trial_on_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "version", lambda package: "2.13.0+cpu")
    assert nodes._look("", "", True) == "its torch 2.13.0+cpu was built without CUDA"
    assert nodes._look("", "", False) == ""
    monkeypatch.setattr(nodes, "version", lambda package: "2.13.0+cu130")
    assert nodes._look("", "", True) == ""


# ---------------------------------------------------------------------- clusters


def test_a_cluster_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head may listen and say nothing."""
    hangs = threading.Event()
    monkeypatch.setattr(ray_cluster, "_init", lambda cluster: hangs.wait(20))
    monkeypatch.setattr(ray_cluster, "_ANSWER_S", 0.1)
    monkeypatch.setattr(ray_cluster, "_STOP_S", 0.1)
    spec, _ = read("sweep=lr_grid", "cluster=ray", "cluster.address=auto")
    began = time.monotonic()
    try:
        ask_cluster(spec.cluster)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        assert guess_device(spec) == "cuda", "this machine stands for it"
        assert plan._about_devices(spec) == [
            "no Ray cluster answers: this machine stood for its nodes"
        ]
    finally:
        stop_ray()
        hangs.set()
    assert time.monotonic() - began < 19


def test_a_start_asks_its_cluster_before_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """tf32 is nothing for a CPU, and this driver has no GPU."""
    began: list[ClusterSpec] = []
    joined = SimpleNamespace(runs=True, error=None, wait=lambda seconds=None: None)

    def begin(cluster: ClusterSpec) -> None:
        began.append(cluster)
        monkeypatch.setattr(ray_cluster, "_ray", joined)

    monkeypatch.setattr(ray_cluster, "_ray", None)
    monkeypatch.setattr(ray_cluster, "alive_nodes", lambda: [{"Resources": {"CPU": 8, "GPU": 4}}])
    monkeypatch.setattr(ray_cluster, "begin_ray", begin)
    words = ["sweep=lr_grid", "trainer.tf32=true", "cluster=ray", "cluster.address=auto"]
    spec, _ = command.checked(command.Command.read(words))
    assert spec.train.trainer["tf32"] is True
    assert [cluster.kind for cluster in began] == ["ray"]


SLICES = """
import os, ray
from orchestrator.cluster.ray_cluster import start_ray, stop_ray
from sweeps.config.spec import ClusterSpec
start_ray(ClusterSpec(cpus=3))

@ray.remote(num_gpus=1, num_cpus=1)
class Worker:
    def slice(self):
        return os.environ["CUDA_VISIBLE_DEVICES"]

workers = [Worker.remote() for _ in range(3)]
print(*sorted(ray.get([worker.slice.remote() for worker in workers], timeout=60)))
stop_ray()
"""


@pytest.mark.slow
def test_each_worker_gets_a_slice_of_its_own() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b,MIG-c"}
    done = subprocess.run(
        [sys.executable, "-c", SLICES], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["MIG-a", "MIG-b", "MIG-c"]
