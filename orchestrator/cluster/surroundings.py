"""Gives the libraries what they ask of a machine: a user's name, a home, room for Ray's files."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

_LONGEST_BYTES = 43  # of the path of Ray's folder: 64 more follow, and a socket's path has 107


def name_user() -> None:
    """Give a user whom the system does not know, as in a container, a name and a home.

    The libraries ask for both: Ray Tune as it is imported, the Hub and torch for their caches.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the first before Python 3.13
        os.environ["LOGNAME"] = f"uid_{os.getuid()}"
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(_own_home())


def _own_home() -> Path:
    """A folder that no other user can write to: the same at each start, if it is ours."""
    home = Path(tempfile.gettempdir(), f"sft-sweeps-{os.getuid()}")
    try:
        home.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        return Path(tempfile.mkdtemp(prefix="sft-sweeps-"))
    is_ours = home.stat().st_uid == os.getuid() and not home.is_symlink()
    return home if is_ours else Path(tempfile.mkdtemp(prefix="sft-sweeps-"))


def find_ray_folder() -> None:
    """Have Ray keep its files in another folder if its usual one belongs to others, or is too deep.

    A folder that RAY_TMPDIR names stays.
    """
    if "RAY_TMPDIR" in os.environ:
        return
    usual = [os.environ.get("TMPDIR", "/tmp"), "/tmp", "/var/tmp"]  # the first is Ray's own choice
    own = [os.path.join(top, f"sft-sweeps-{os.getuid()}") for top in usual]
    found = next((top for top in (*usual, *own) if _can_hold_ray(Path(top, "ray"))), None)
    if found is not None and found != usual[0]:
        os.environ["RAY_TMPDIR"] = found


def _can_hold_ray(folder: Path) -> bool:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    is_short = len(os.fsencode(folder)) <= _LONGEST_BYTES
    return is_short and there.is_dir() and os.access(there, os.W_OK | os.X_OK)
