"""Slurm on this machine: a controller and two nodes on loopback, with a munge of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from support.real_sweeps import PATIENCE_S

_TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "sinfo", "scancel")
_ASK_S = 60  # Slurm's own patience with a controller that does not answer is shorter
_STOP_S = 20
_JOBS = 3  # more than a test submits
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
FirstJobId={first_job}
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
MailProg=/bin/true
ReturnToService=2
JobRequeue=1
KillWait=60
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
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError as error:
        return f"this machine's host name {socket.gethostname()} leads nowhere: {error}"
    return ""


class SlurmRefusesError(Exception):
    """One of Slurm's daemons does not run on this machine; its words."""


class Slurm:
    """Started when entered; everything it is made of lies under `root`.

    Only what its jobs write into $TMPDIR lies elsewhere: Ray's sockets there want a short path.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._scratch = ""
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        for name in ("state", "munge", *(f"spool.{node}" for node in NODES)):
            (self._root / name).mkdir(parents=True)
        for folder in (self._root, self._root / "munge"):
            folder.chmod(0o755)
        self._scratch = tempfile.mkdtemp(prefix="slurm-")
        port = _free_ports(len(NODES) + 1, 16817)
        text = _CONF.format(
            root=self._root,
            host=socket.gethostname(),
            nodes=",".join(NODES),
            port=port,
            first=port + 1,
            last=port + len(NODES),
            # The batch script takes port 20000 and the job's number for Ray.
            first_job=_free_ports(_JOBS, 20001 + port % 5000) - 20000,
            cpus=os.cpu_count(),
        )
        (self._root / "slurm.conf").write_text(text)
        self._start_munge()
        self._start("slurmctld", "-D", "-c")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        idle = ("sinfo", "-h", "-t", "idle", "-o", "%D")
        self._wait_for_daemons(lambda: self.ask(*idle, check=False).strip() == "2")
        return self

    def _wait_for_daemons(self, condition: Callable[[], bool]) -> None:
        def done() -> bool:
            ended = [str(one.args) for one in self._daemons if one.poll() is not None]
            if ended:
                self.__exit__()
                raise SlurmRefusesError(f"{', '.join(ended)} ended at once: {self._logs(300)}")
            return condition()

        self._wait(done)

    def __exit__(self, *_: object) -> None:
        """What the jobs' processes do not do by then, `remains` does for them."""
        self.ask("scancel", "--user=root", check=False)
        deadline = time.monotonic() + _STOP_S
        while self.ask("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(_STOP_S)
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        where = {"SLURM_CONF": str(self._root / "slurm.conf"), "TMPDIR": self._scratch}
        return {**os.environ, **where}

    def ask(self, *words: str, check: bool = True, **more: str) -> str:
        try:
            done = subprocess.run(
                words,
                env={**self.environment, **more},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=_ASK_S,
            )
        except subprocess.TimeoutExpired:
            assert not check, f"{words}: no answer\n{self._logs()}"
            return ""
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}{self._logs()}"
        return done.stdout

    def state(self, job: str) -> str:
        return self.ask("squeue", "-h", "-a", "-t", "all", "-j", job, "-o", "%T").strip()

    def account_of(self, job: str) -> str:
        """What Slurm says of a job and of its nodes, and the ends of the daemons' logs."""
        asked = (("scontrol", "show", "job", job), ("scontrol", "show", "node"))
        return "\n".join([*(self.ask(*words, check=False) for words in asked), self._logs()])

    def start_again(self, job: str) -> None:
        """Start a job that was put back: in two seconds rather than in Slurm's two minutes.

        Not at once: slurmd takes a start in the second in which it ended the job for that same job.
        """
        self._wait(lambda: self.state(job) == "PENDING")
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+2")

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
        self._start("munged", "-F", "--force", *options, f"--log-file={self._root / 'munge.txt'}")
        self._wait_for_daemons(lambda: (folder / "socket").exists())

    def _start(self, *words: str) -> None:
        with open(self._root / "daemons.txt", "ab") as output:
            daemon = subprocess.Popen(
                words, env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self._daemons.append(daemon)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.3)

    def _logs(self, most: int = 2000) -> str:
        return "\n".join(path.read_text()[-most:] for path in sorted(self._root.glob("*.txt")))


def _free_ports(count: int, start: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(start, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as listener:
                    listener.bind(("", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")
