"""Slurm on this machine: a controller and two nodes on loopback, with a munge of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from real_sweeps import PATIENCE_S

_TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue")
NODES = ("left", "right")
_CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
SlurmctldPort={port}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.txt
SlurmdLogFile={root}/slurmd.%n.txt
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
KillWait=30
SchedulerParameters=sched_interval=2
NodeName={nodes} NodeAddr=127.0.0.1 NodeHostname={host} Port=[{first}-{last}] CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def no_slurm() -> str:
    """Why no Slurm can be started here; empty where one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    return ""


class Slurm:
    """Started when entered; everything it is made of lies under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        for name in ("state", "munge", *(f"spool.{node}" for node in NODES)):
            (self._root / name).mkdir(parents=True)
        for folder in (self._root, self._root / "munge"):
            folder.chmod(0o755)
        port = _free_ports(len(NODES) + 1)
        text = _CONF.format(
            root=self._root,
            host=socket.gethostname(),
            nodes=",".join(NODES),
            port=port,
            first=port + 1,
            last=port + len(NODES),
            cpus=os.cpu_count(),
        )
        (self._root / "slurm.conf").write_text(text)
        self._start_munge()
        self._start("slurmctld", "-D", "-c")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        self._wait(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 60
        while self.ask("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait(30)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self._root / "slurm.conf")}

    def ask(self, *words: str, check: bool = True, **more: str) -> str:
        done = subprocess.run(
            words, env={**self.environment, **more}, capture_output=True, text=True
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}{self._logs()}"
        return done.stdout

    def state(self, job: str) -> str:
        return self.ask("squeue", "-h", "-a", "-t", "all", "-j", job, "-o", "%T").strip()

    def start_again(self, job: str) -> None:
        """A job that was put back waits two minutes in Slurm; we do not."""
        self._wait(lambda: self.state(job) == "PENDING")
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_for_end(self, job: str) -> int:
        """The batch script's exit code."""
        self._wait(lambda: self.state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
        shown = self.ask("scontrol", "show", "job", job)
        return int(shown.split("ExitCode=")[1].split(":")[0])

    def _start_munge(self) -> None:
        folder = self._root / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._start("munged", "-F", "--force", *options, f"--log-file={folder / 'log'}")
        self._wait(lambda: (folder / "socket").exists())

    def _start(self, *words: str) -> None:
        with open(self._root / "daemons.txt", "ab") as output:
            daemon = subprocess.Popen(
                words, env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self._daemons.append(daemon)

    def _wait(self, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.3)

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._root.glob("*.txt")))


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(16817, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
