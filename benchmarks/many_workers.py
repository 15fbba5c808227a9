"""Ray Tune with many workers on many nodes, and no training: python -m benchmarks.many_workers

32 workers on 8 nodes, which are Ray's own and all on this machine, take trials from the Coordinator
as real ones do, and report at once what they would have come to. Shown: how long it takes until all
work, how many trials a second go through, how long a worker waits for each answer, and memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.load import SEARCHES, read_sweep
from benchmarks.measure import _pss_kb, _tree, machine, table
from benchmarks.scale import in_ms

REPORTS = 4  # of a trial


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_workers", description=__doc__)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 32], help="on all nodes")
    parser.add_argument("--trials", type=int, default=1600)
    parser.add_argument("--search", choices=[*SEARCHES], default="grid")
    asked = parser.parse_args()
    rows: list[tuple[object, ...]] = [
        (
            "workers",
            "all work after, s",
            "trials a second",
            "reports a second",
            "last one left",
            "MB",
        )
    ]
    calls: list[tuple[object, ...]] = [("workers", "a worker waits for", "median, ms", "99 of 100")]
    for workers in asked.workers:
        facts, times = apart(asked.nodes, workers, asked.trials, SEARCHES[asked.search])
        rows.append((workers, *facts))
        calls += [(workers, call, *in_ms(taken)[:2]) for call, taken in times.items()]
    print(machine())
    print(
        f"{asked.trials:,} trials by {asked.search}, {REPORTS} reports each, {asked.nodes} nodes\n"
    )
    print(table(*rows) + "\n\n" + table(*calls))


def apart(*arguments: Any) -> tuple[tuple[str, ...], dict[str, list[float]]]:
    """In a fresh process, since Ray ends with the one that started it. It may have children."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_send, args=(there, *arguments))
    child.start()
    there.close()
    try:
        found: tuple[tuple[str, ...], dict[str, list[float]]] = here.recv()
    except EOFError:
        raise SystemExit("the sweep could not be run") from None
    child.join()
    return found


def _send(there: Any, *arguments: Any) -> None:
    there.send(run(*arguments))


def run(
    nodes: int, workers: int, trials: int, words: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, list[float]]]:
    """The row of the sweep, and seconds that workers waited, by call."""
    from orchestrator.cluster.ray_cluster import _QUIET

    os.environ.update(_QUIET, RAY_AUTH_MODE="disabled", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    ray.init(address=cluster.address, namespace="sweeps", log_to_driver=False)
    for _ in range(nodes):
        cluster.add_node(num_cpus=workers // nodes, num_gpus=0)
    cluster.wait_for_nodes()
    memory = Memory()
    memory.start()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            facts, times = sweep(Path(scratch), trials, words, workers)
        return (*facts, f"{memory.peak_mb:.0f}"), times
    finally:
        memory.over.set()
        ray.shutdown()
        cluster.shutdown()


def sweep(
    root: Path, trials: int, words: tuple[str, ...], workers: int
) -> tuple[tuple[str, ...], dict[str, list[float]]]:
    """A driver's part, without a terminal: Coordinator, workers, until the last has left."""
    import orchestrator.workers.worker
    from orchestrator.cluster.placement import live_slots, place
    from orchestrator.coordinator.handle import start_coordinator
    from orchestrator.workers.pool import Workers
    from sweeps.ledger.events import Attempt

    orchestrator.workers.worker.Worker = stand_in(root / "times")  # type: ignore[misc]
    spec, space = read_sweep(words, REPORTS, trials)
    run_dir = root / "run"
    run_dir.mkdir()
    (root / "times").mkdir()
    placement = place(spec.engine, spec.cluster, workers)
    coordinator = start_coordinator(spec, space, run_dir)
    coordinator.begin(Attempt(host="box", pid=1))
    slots = live_slots(spec.engine, placement.gpus, workers)
    assert slots() == workers, f"the nodes hold {slots()} workers"
    tune = Workers(coordinator, None, placement, slots, root / "tune")
    began = time.time()
    tune.start()
    tune.join()
    ended = time.time()
    if tune.error is not None:
        raise tune.error
    return read_off(run_dir, began, ended, workers), read_times(root / "times")


def read_off(run_dir: Path, began: float, ended: float, workers: int) -> tuple[str, ...]:
    """From the ledger: all work after; trials and reports a second from then on; the end."""
    seen: set[str] = set()
    at = began
    ends = []
    reports = 0
    for line in (run_dir / "ledger.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "start" and len(seen) < workers:
            seen.add(event["worker"])
            at = event["time"]
        if event["event"] == "end" and len(seen) == workers:
            ends.append(event["time"])
        reports += event["event"] == "report" and len(seen) == workers
    assert len(seen) == workers, f"only {len(seen)} workers had a trial: take more trials"
    assert ends
    seconds = ends[-1] - at
    rates = (f"{len(ends) / seconds:.0f}", f"{reports / seconds:.0f}")
    return (f"{at - began:.1f}", *rates, f"{ended - ends[-1]:.1f} s after the last trial")


def read_times(folder: Path) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*.json")):
        for call, taken in json.loads(path.read_text()).items():
            times.setdefault(call, []).extend(taken)
    return times


class Memory(threading.Thread):
    """The most memory of this process and all that came from it; Ray's daemons included."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.peak_mb = 0.0

    def run(self) -> None:
        while not self.over.wait(2.0):
            held_kb = sum(_pss_kb(pid) for pid in _tree(os.getpid()))
            self.peak_mb = max(self.peak_mb, held_kb / 1024)


def stand_in(folder: Path) -> type:
    """A worker that takes jobs and answers for them as the real one, and trains nothing.

    Local, so that it travels by value.
    """
    from ray import tune

    class StandIn(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: Mapping[str, Any], coordinator: Any, worker_config: Any) -> None:
            self.coordinator = coordinator
            self.name = f"worker {config['worker']}"
            self.times: dict[str, list[float]] = {}

        def call(self, name: str, *arguments: Any) -> Any:
            began = time.perf_counter()
            answer = getattr(self.coordinator, name)(*arguments)
            self.times.setdefault(name, []).append(time.perf_counter() - began)
            return answer

        def step(self) -> dict[str, Any]:
            while (job := self.call("next_job", self.name, 1)).kind != "leave":
                if job.kind == "train":
                    self.pretend(job.trial.key)
                elif job.kind == "prove":
                    proof = (self.name, job.trial.key, job.step, {"eval_loss": job.expected}, "")
                    self.call("proven", *proof)
                else:
                    self.times["next_job"].pop()  # it was told to wait
                    time.sleep(0.3)
            (folder / f"{self.name}.json").write_text(json.dumps(self.times))
            self.call("worker_left", self.name)
            return {"done": True}

        def pretend(self, key: str) -> None:
            from sweeps.core.trial import Report, State

            attempt = self.call("start", self.name, key, self.name, "cpu", 0, [])
            for index in range(1, REPORTS + 1):
                loss = int(key, 16) % 1000 / 1000 + 1 / index
                counts = {"step": index, "examples": index, "tokens": index}
                report = Report(index=index, **counts, metrics={"eval_loss": loss})
                if self.call("report", key, attempt, report) == "prune":
                    self.call("end", self.name, key, attempt, {"state": State.PRUNED})
                    return
                self.call("committed", key, attempt, index, 1000)
            self.call("end", self.name, key, attempt, {"state": State.COMPLETED})

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

        def load_checkpoint(self, checkpoint: Any) -> None: ...

    return StandIn


if __name__ == "__main__":
    main()
