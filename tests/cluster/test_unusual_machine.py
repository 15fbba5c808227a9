"""A whole sweep on a machine that is as unusual as containers and shared machines can be."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.real_sweeps import GRID, SMALL, Command

pytestmark = pytest.mark.cluster

NOBODY = "12345"  # a user without an entry in /etc/passwd
QUOTA, PERIOD = (Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
# Reading is allowed everywhere: Python may lie in root's home.
BECOME = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    *("env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME"),
)
# Another user's /tmp/ray; a container's /dev/shm; a quota of one CPU where version 1 counts it.
MOUNT = f"""
mkdir -p /tmp/ray && mount --bind "$THEIRS" /tmp/ray
mount -t tmpfs -o size=16m tmpfs /dev/shm
if [ -e {QUOTA} ]; then mount --bind "$LIMIT" {QUOTA} && mount --bind "$LIMIT" {PERIOD}; fi
exec "$@"
"""


@dataclass
class Stranger(Command):
    """A command of a user without a name or home, in a folder that a link leads to."""

    def words_to_run(self, *more: str) -> list[str]:
        words = super().words_to_run(*more)
        return ["unshare", "--mount", "sh", "-ec", MOUNT, "sh", *BECOME, *words]


def cannot_mount() -> bool:
    mount = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    there = all(shutil.which(tool) for tool in ("unshare", "setpriv", "mount"))
    return not there or subprocess.run(mount, capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(os.geteuid() != 0 or cannot_mount(), reason="needs root, unshare and setpriv")
def test_a_sweep_on_a_machine_that_grants_little(tmp_path: Path, ended: list[Command]) -> None:
    theirs, limit, real = (tmp_path / name for name in ("theirs", "limit", "real"))
    theirs.mkdir()
    limit.write_text("100000\n")
    real.mkdir()
    os.chown(real, int(NOBODY), int(NOBODY))
    link = tmp_path / "mes résultats, 1=2"
    link.symlink_to(real)
    proxies = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "grpc", "all")}
    surroundings = {"THEIRS": str(theirs), "LIMIT": str(limit), "RAY_ADDRESS": "127.0.0.1:9"}
    command = Stranger((*SMALL, GRID, "tracking=off", "sweep.trials=2"), link)
    command.environment |= {**proxies, **surroundings}
    ended.append(command)
    assert command.run() == 0, command.output
    assert (real / "run" / "best" / "trial.yaml").is_file()
    assert not list(theirs.iterdir())
    assert "RAY_ADDRESS is not used: trials stay on this machine" in command.output
    if QUOTA.exists():
        assert "1 at once on this machine, 1 CPU each" in command.output
