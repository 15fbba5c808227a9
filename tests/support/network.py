"""Machines of a network, on this one: each has its address, its host name and its /tmp/ray."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support import remains
from support.real_sweeps import PATIENCE_S, REPOSITORY

_RAY = (sys.executable, "-m", "ray.scripts.scripts", "start")
# In a namespace of its own for the network (ip netns exec), mounts (also that) and the host name.
_ENTER = """
set -e
hostname "$0"
mount --bind "$1" /tmp/ray
for hidden in $2; do mount -t tmpfs none "$hidden"; done
shift 2
exec "$@"
"""
PORT = 6379
_IP_S = 20  # far more than `ip` takes


@functools.cache
def obstacle() -> str:
    """Why there can be no such network here; empty where there can: one was made, and is gone."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "mount", "unshare"):
        if shutil.which(tool) is None:
            return f"network namespaces need {tool} (Debian: iproute2, mount, util-linux)"
    try:
        with tempfile.TemporaryDirectory() as scratch, Network(Path(scratch)) as tried:
            tried.add("one")
            two = tried.add("two")
            for words in (["true"], ["ip", "route", "get", "10.77.0.1"]):
                subprocess.run(two.words(words), check=True, capture_output=True, timeout=_IP_S)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {' '.join(error.cmd[:4])}: {error.stderr.decode()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no network namespaces here: {error}"
    return ""


@dataclass(kw_only=True)
class Machine:
    """One of them. `hidden`: folders that it does not see, but has empty ones in their place."""

    name: str
    address: str
    namespace: str
    scratch: Path
    hidden: tuple[Path, ...] = ()
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def words(self, command: Sequence[str]) -> list[str]:
        """The command as it has to be run here to run there."""
        hidden = " ".join(map(str, self.hidden))
        enter = ("unshare", "-u", "sh", "-c", _ENTER, self.name, str(self.scratch), hidden)
        return ["ip", "netns", "exec", self.namespace, *enter, *command]

    def start_ray(self, *words: str) -> None:
        """Run `ray start --block` with these words; its processes end with the network."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "HOME": str(self.scratch),
            "TMPDIR": str(self.scratch),
            "RAY_TMPDIR": "/tmp",
        }
        command = [*_RAY, f"--node-ip-address={self.address}", "--disable-usage-stats", *words]
        with open(self.scratch / "ray.txt", "wb") as output:
            started = subprocess.Popen(
                self.words([*command, "--block"]),
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.processes.append(started)

    @property
    def ray_output(self) -> str:
        return (self.scratch / "ray.txt").read_text()

    def cut(self) -> None:
        """Take the cable out."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")


class Network:
    """A switch, and machines on it; `add` one after the other."""

    def __init__(self, root: Path) -> None:
        self._root = root / "machines"
        self._root.mkdir()
        self._switch = f"{remains.NAMESPACE}{os.getpid()}"
        self.machines: list[Machine] = []

    def __enter__(self) -> Network:
        Path("/tmp/ray").mkdir(exist_ok=True)
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", self._switch, "addr", "add", "10.77.0.254/24", "dev", "br0")
            _ip("-n", self._switch, "link", "set", "br0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            remains.remove_namespace(machine.namespace)
            for process in machine.processes:
                process.wait(_IP_S)
        remains.remove_namespace(self._switch)

    def add(self, name: str, *hidden: Path) -> Machine:
        number = len(self.machines) + 1
        machine = Machine(
            name=name,
            address=f"10.77.0.{number}",
            namespace=f"{self._switch}n{number}",
            scratch=self._root / name,
            hidden=hidden,
        )
        machine.scratch.mkdir()
        self.machines.append(machine)
        inside = machine.namespace
        _ip("netns", "add", inside)
        _ip(
            *("-n", inside, "link", "add", "eth0", "type", "veth"),
            *("peer", "name", f"port{number}", "netns", self._switch),
        )
        _ip("-n", self._switch, "link", "set", f"port{number}", "master", "br0", "up")
        _ip("-n", inside, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", inside, "link", "set", link, "up")
        _ip("-n", inside, "route", "add", "default", "via", "10.77.0.254")
        return machine

    def start(self, head: Machine, *workers: Machine, cpus: int = 1) -> str:
        """A Ray cluster: a head that holds no trials, and workers; the head's address."""
        address = f"{head.address}:{PORT}"
        head.start_ray(
            "--head", f"--port={PORT}", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false"
        )
        _wait_for("Ray runtime started", head)
        for worker in workers:
            self.join(worker, address, cpus=cpus)
        return address

    def join(self, worker: Machine, address: str, *, cpus: int = 1) -> None:
        worker.start_ray(f"--address={address}", f"--num-cpus={cpus}", "--num-gpus=0")
        _wait_for("Ray runtime started", worker)


def _wait_for(words: str, machine: Machine) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while words not in machine.ray_output:
        assert machine.processes[-1].poll() is None, machine.ray_output
        assert time.monotonic() < deadline, machine.ray_output
        time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=_IP_S)
