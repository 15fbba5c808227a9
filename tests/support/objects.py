"""An S3 server on loopback: moto's, which speaks the protocol and keeps objects in memory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from support.network import Machine

BUCKET = "sweeps"
# Of the environment that tests/cluster/install.sh makes.
PYTHON = Path(sys.prefix) / "cluster" / "bin" / "python"
_START_S = 120
_MAKE_BUCKET = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], method="PUT", data=b"")
urllib.request.urlopen(request, timeout=5).close()
"""


def no_server() -> str:
    """Why none can be started here; empty where one can."""
    if not PYTHON.exists():
        return "moto's server is not installed (`make test-cluster` does it, from PyPI)"
    asked = subprocess.run(
        [PYTHON, "-c", "import moto.server"], capture_output=True, text=True, timeout=_START_S
    )
    return f"moto's server does not start: {asked.stderr[-200:]}" if asked.returncode else ""


class ObjectServer:
    """Holds one bucket; `environment` is what a client needs.

    Args:
        machine: where it runs, and is reached by the others; else on loopback.
    """

    def __init__(self, output: Path, machine: Machine | None = None) -> None:
        self._output = output
        self._machine = machine
        self._host = machine.address if machine is not None else "127.0.0.1"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "a-key",
            "AWS_SECRET_ACCESS_KEY": "a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{self._host}:{self._port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> ObjectServer:
        with open(self._output, "wb") as output:
            self._process = subprocess.Popen(
                self._there(PYTHON, "-m", "moto.server", "-H", self._host, "-p", str(self._port)),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        url = f"http://{self._host}:{self._port}/{BUCKET}"
        make = self._there(sys.executable, "-c", _MAKE_BUCKET, url)
        deadline = time.monotonic() + _START_S
        while subprocess.run(make, capture_output=True, timeout=_START_S).returncode:
            assert self._process.poll() is None, self._output.read_text()
            assert time.monotonic() < deadline, self._output.read_text()
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self.stall(False)
        self._process.kill()
        self._process.wait(_START_S)

    def stall(self, stalled: bool) -> None:
        """Let it answer nothing for a while."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP if stalled else signal.SIGCONT)

    def _there(self, *words: str | Path) -> list[str]:
        command = [str(word) for word in words]
        return command if self._machine is None else self._machine.words(command)
