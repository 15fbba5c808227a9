"""Several machines: Ray's own local cluster of nodes, with GPUs that are only counted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.driving import LR, make
from support.real_sweeps import GRID, SMALL, Command, of
from support.sweep_events import BOX

from orchestrator.cluster.placement import live_slots, place, slots_of
from orchestrator.cluster.ray_cluster import _QUIET
from orchestrator.coordinator.handle import start_coordinator
from orchestrator.workers.pool import Workers
from sweeps.config.spec import ClusterSpec, EngineSpec
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import ConfigError
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record, read_history
from sweeps.storage.run_folder import RunFolder

JOINED = ClusterSpec(kind="ray", address="auto")


# ---------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("cpus", "gpus", "slots"),
    [
        (1, 0, 8),
        (2, 0, 4),
        (1, 1, 4),
        (1, 0.5, 8),
        (1, 0.25, 8),  # the CPUs are what there is least of
        (0.5, 0.25, 16),
        (1, 0.4, 8),  # two on a GPU, a fifth of it left over
        (0.5, 0.4, 8),
        (1, 1 / 3, 8),
        (0.1, 1 / 3, 12),
        (4, 1, 2),
        (16, 1, 0),
    ],
)
def test_workers_that_a_node_holds(cpus: float, gpus: float, slots: int) -> None:
    assert slots_of({"CPU": 8, "GPU": 4}, cpus, gpus) == slots


def test_a_node_without_gpus_holds_no_worker_that_wants_one() -> None:
    assert slots_of({"CPU": 8}, 1, 0.5) == 0


# ---------------------------------------------------------------------- placement


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with one CPU and no GPU, joined; more nodes are added by the test."""
    for name, value in _QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    add_node = started.add_node

    def add_counted(**resources: Any) -> Any:
        with monkeypatch.context() as seen:  # Ray counts no more GPUs than may be seen
            seen.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            return add_node(**resources)

    started.add_node = add_counted
    ray.init(address=started.address, namespace="sweeps", log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.mark.long
def test_placement_on_nodes_with_gpus(cluster: Any) -> None:
    cluster.add_node(num_cpus=4, num_gpus=4)
    cluster.add_node(num_cpus=4, num_gpus=2)
    cluster.wait_for_nodes()
    whole = place(EngineSpec(), JOINED)
    assert (whole.slots, whole.gpus, whole.nodes) == (6, 1.0, 3)
    assert whole.where == "6 at once on 3 nodes of the cluster, 1 GPU each"
    assert 0 < whole.memory_mb < math.inf
    assert place(EngineSpec(gpus_per_trial=0.5), JOINED).slots == 8
    assert place(EngineSpec(gpus_per_trial=0), JOINED).slots == 9
    assert live_slots(EngineSpec(), 1.0, most=100)() == 6
    assert live_slots(EngineSpec(), 1.0, most=5)() == 5

    with pytest.raises(ConfigError) as refused:
        place(EngineSpec(gpus_per_trial=8, cpus_per_trial=16), JOINED)
    said = str(refused.value)
    assert "engine.gpus_per_trial = 8: the largest of 3 nodes has 4 GPUs" in said
    assert "engine.cpus_per_trial = 16: the largest of 3 nodes has 4 CPUs" in said


@pytest.mark.long
def test_a_plan_asks_a_cluster_for_its_gpus(cluster: Any, tmp_path: Path) -> None:
    """From a driver on a node without one."""
    words = ["sweep=lr_grid", "tracking=off", f"run_dir={tmp_path}/run", "cluster=ray"]
    words.append(f"cluster.address={cluster.address}")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    def said() -> str:
        command = [sys.executable, "-m", "orchestrator", "plan", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return " ".join(done.stdout.split())

    assert "float32 (what a CPU computes fastest in)" in said()
    cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()
    assert "bfloat16 (as long as the GPUs, of which this machine has none" in said()
    assert [node["Alive"] for node in nodes()] == [True, True]


ALONE = """
import ray
from orchestrator.cluster.ray_cluster import start_ray, stop_ray
from sweeps.config.spec import ClusterSpec
start_ray(ClusterSpec(cpus=1))
print(len(ray.nodes()), ray.cluster_resources()["CPU"])
stop_ray()
"""


@pytest.mark.slow
def test_a_local_sweep_leaves_a_running_cluster_alone(cluster: Any) -> None:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1.0"]
    assert [node["Alive"] for node in nodes()] == [True]


# ---------------------------------------------------------------------- workers

TRIALS = 10_000  # more than any test waits for
JOB_S = 0.5
PATIENCE_S = 120


def stand_in() -> type:
    """A worker that takes jobs and answers for them as the real one, and trains nothing.

    Local, so that it travels by value: Ray's processes know nothing of this file.
    """
    from ray import tune

    class StandIn(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], coordinator: Any, worker_config: Any) -> None:
            self.coordinator = coordinator
            self.name = f"worker {config['worker']}"

        def step(self) -> dict[str, Any]:
            while (job := self.coordinator.next_job(self.name)).kind != "leave":
                if job.kind == "train":
                    self.pretend(job.trial.key, job.trial.values)
                elif job.kind == "prove":
                    proof = (self.name, job.trial.key, job.step, {"eval_loss": job.expected}, "")
                    self.coordinator.proven(*proof)
                else:
                    time.sleep(0.1)
            return {"done": True}

        def pretend(self, key: str, values: dict[str, float]) -> None:
            import ray

            from sweeps.core.trial import Report, State
            from sweeps.ledger.events import End

            (gpu,) = ray.get_gpu_ids()
            device = f"{ray.get_runtime_context().get_node_id()} {gpu}"
            attempt = self.coordinator.start(self.name, key, self.name, device, 0, [])
            time.sleep(JOB_S)
            losses = {"eval_loss": values["trainer.learning_rate"]}
            last = Report(index=1, step=8, examples=64, tokens=300, metrics=losses)
            self.coordinator.report(key, attempt, last)
            self.coordinator.end(self.name, End(trial=key, attempt=attempt, state=State.COMPLETED))

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    return StandIn


class Room:
    """A Coordinator and its workers as the driver runs them, told by the ledger."""

    def __init__(self, root: Path, engine: EngineSpec | None = None, most: int = 100) -> None:
        self.folder = RunFolder(root / "run")
        self.folder.root.mkdir()
        spec, space = make({LR: "tag(log, interval(1e-5, 1e-2))"}, trials=TRIALS)
        engine = engine or EngineSpec()
        self.placement = place(engine, JOINED, most)
        self.coordinator = start_coordinator(spec, space, self.folder.root)
        self.coordinator.begin(BOX)
        slots = live_slots(engine, self.placement.gpus, most)
        self.workers = Workers(self.coordinator, None, self.placement, slots, root / "tune")
        self.workers.start()

    def history(self) -> History:
        return read_history(self.folder.ledger)

    def running(self) -> list[Record]:
        records = self.history().trials.values()
        return [record for record in records if record.state is State.RUNNING]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.folder.ledger.read_text()[-2000:]
            assert self.workers.error is None
            time.sleep(0.05)

    def finish(self) -> History:
        """Hand out nothing more; what the ledger says when the workers have left.

        Nothing is proven or measured at the end: the workers only stand in for such that could.
        """
        self.coordinator.interrupt(Stop(cause=Cause.TIME_BUDGET), False)
        self.workers.join(PATIENCE_S)
        assert not self.workers.is_alive()
        assert self.workers.error is None
        return self.history()


@pytest.mark.long
def test_workers_follow_the_nodes_that_come_and_go(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.workers.worker.Worker", stand_in())
    first = cluster.add_node(num_cpus=2, num_gpus=2)
    cluster.wait_for_nodes()
    room = Room(tmp_path)
    assert room.placement.slots == 2
    room.wait_for(lambda: len(room.running()) == 2)
    devices = {record.device for record in room.running()}
    assert len(devices) == 2  # a GPU each
    home = devices.pop().split()[0]

    cluster.add_node(num_cpus=3, num_gpus=3)
    room.wait_for(lambda: len({record.device for record in room.running()}) == 5)

    cluster.remove_node(first)
    room.wait_for(lambda: len(retried(room.history())) == 2)
    history = room.finish()
    assert all(home not in record.device for record in retried(history))
    # One whose node went as the sweep was told to stop waits for the next start.
    assert history.count(State.COMPLETED, State.WAITING) == len(history.trials)
    assert most_at_once(room.folder.ledger) <= 5


def retried(history: History) -> list[Record]:
    """Trials that lost their worker and have completed since."""
    records = history.trials.values()
    return [one for one in records if one.retries and one.state is State.COMPLETED]


def most_at_once(ledger: Path) -> int:
    running: set[str] = set()
    most = 0
    for line in ledger.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "start":
            running.add(event["trial"])
        elif event["event"] in ("end", "retry"):
            running.discard(event["trial"])
        most = max(most, len(running))
    return most


@pytest.mark.long
@pytest.mark.slow
def test_many_workers_start_together(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.workers.worker.Worker", stand_in())
    cluster.add_node(num_cpus=8, num_gpus=4)
    cluster.wait_for_nodes()
    room = Room(tmp_path, engine=EngineSpec(gpus_per_trial=0.5))
    room.wait_for(lambda: len(room.running()) == 8)
    shares = Counter(record.device for record in room.running())
    assert set(shares.values()) == {2}  # two on each GPU
    history = room.finish()
    assert history.count(State.COMPLETED) == len(history.trials) >= 8


@pytest.mark.long
def test_fewer_trials_than_halves_of_gpus_get_a_gpu_each(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would put two on the first GPU, two on the second, and leave the others idle."""
    monkeypatch.setattr("orchestrator.workers.worker.Worker", stand_in())
    cluster.add_node(num_cpus=8, num_gpus=4)
    cluster.wait_for_nodes()
    room = Room(tmp_path, engine=EngineSpec(gpus_per_trial=0.5), most=4)
    assert room.placement.where == "4 at once on 2 nodes of the cluster, 1 GPU each"
    room.wait_for(lambda: len(room.running()) == 4)
    assert len({record.device for record in room.running()}) == 4
    room.finish()


@pytest.mark.long
def test_a_cluster_that_others_hold_is_waited_for_and_that_is_said(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr("orchestrator.workers.worker.Worker", stand_in())
    monkeypatch.setattr("orchestrator.workers.pool._PLACED_S", 1.0)
    cluster.add_node(num_cpus=1, num_gpus=1)
    cluster.wait_for_nodes()

    @ray.remote(num_gpus=1)
    class Other:
        def ready(self) -> bool:
            return True

    other = Other.remote()
    assert ray.get(other.ready.remote())
    room = Room(tmp_path)
    said: list[str] = []

    def has_spoken() -> bool:
        said.append(room.workers.news())
        return bool(said[-1])

    room.wait_for(has_spoken)
    assert said[-1].startswith("no trial could be placed yet: other jobs hold the cluster.")
    assert not room.running()
    ray.kill(other)
    room.wait_for(lambda: len(room.running()) == 1)
    assert not room.workers.news()
    room.finish()


@pytest.mark.long
def test_workers_that_cannot_start_end_the_sweep_with_the_reason(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def setup(self: Any, config: dict[str, Any], coordinator: Any, worker_config: Any) -> None:
        raise ImportError("libcudart.so.99: cannot open shared object file")

    broken = stand_in()
    broken.setup = setup  # type: ignore[attr-defined]
    monkeypatch.setattr("orchestrator.workers.worker.Worker", broken)
    room = Room(tmp_path)
    room.workers.join(PATIENCE_S)
    assert not room.history().trials
    stop = room.coordinator.finish().stop
    assert stop.cause is Cause.WORKERS_DIE
    assert "libcudart.so.99" in str(stop)


# ---------------------------------------------------------------------- the whole


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_on_a_running_cluster(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1, num_gpus=0)
    cluster.wait_for_nodes()
    command = Command((*SMALL, GRID, "tracking=off"), tmp_path)
    code = command.run("cluster=ray", f"cluster.address={cluster.address}")
    assert code == 0, command.output
    assert "2 at once on 2 nodes of the cluster, 1 CPU each" in command.output
    assert len({event["worker"] for event in of(command.events(), "start")}) == 2
    assert [row["status"] for row in command.rows()] == ["completed"] * 4
    assert (command.run_dir / "best" / "trial.yaml").is_file()
    assert all(node["Alive"] for node in nodes()), "the cluster is not ours to stop"


def nodes() -> list[dict[str, Any]]:
    import ray

    found: list[dict[str, Any]] = ray.nodes()
    return found
