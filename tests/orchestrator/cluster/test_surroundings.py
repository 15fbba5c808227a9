"""Users without a name or a home, and folders for temporary files that belong to others."""

from __future__ import annotations

import getpass
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from orchestrator.cluster.surroundings import find_ray_folder, name_user

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME")


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user whom the system does not know; the folder for temporary files."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set in a test is taken back
        monkeypatch.delenv(name)
    return tmp_path


def test_a_user_without_a_name_or_a_home_gets_both(stranger: Path) -> None:
    name_user()
    assert getpass.getuser() == f"uid_{os.getuid()}"
    home = Path.home()
    assert home.parent == stranger
    assert home.stat().st_mode & 0o777 == 0o700
    del os.environ["HOME"]
    name_user()
    assert Path.home() == home  # what was cached there is found again


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_home_that_another_user_has_laid_out_is_not_taken(stranger: Path, kind: str) -> None:
    trap = stranger / f"sft-sweeps-{os.getuid()}"
    if kind == "link":
        (stranger / "theirs").mkdir()
        trap.symlink_to(stranger / "theirs")
    else:
        trap.touch()
    name_user()
    assert Path.home() not in (trap, stranger / "theirs")
    assert Path.home().is_dir()


def test_a_name_and_a_home_stay(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("HOME", "/nowhere")  # it need not be there
    name_user()
    assert (getpass.getuser(), os.environ["HOME"]) == ("ada", "/nowhere")
    assert "LOGNAME" not in os.environ


# ---------------------------------------------------------------------- Ray's files


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The folders that can be written; those that are there and cannot are `locked`."""
    writable: set[str] = {"/tmp", "/var/tmp"}
    there = writable | {"/scratch", "/tmp/ray", "/"}
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in there | writable)
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) in writable)
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.delenv("TMPDIR", raising=False)
    return writable


def test_rays_usual_folder_stays(places: set[str]) -> None:
    places.add("/tmp/ray")
    find_ray_folder()
    assert "RAY_TMPDIR" not in os.environ


def test_another_users_folder_is_left_alone(places: set[str]) -> None:
    find_ray_folder()  # /tmp/ray is there and cannot be written
    assert os.environ["RAY_TMPDIR"] == "/var/tmp"
    places.remove("/var/tmp")
    del os.environ["RAY_TMPDIR"]
    find_ray_folder()
    assert os.environ["RAY_TMPDIR"] == f"/tmp/sft-sweeps-{os.getuid()}"


@pytest.mark.parametrize("top", ["/scratch", "/scratch/" + 40 * "x"])
def test_a_tmpdir_that_is_no_good_for_sockets(
    places: set[str], monkeypatch: pytest.MonkeyPatch, top: str
) -> None:
    """It cannot be written, or its path is longer than a socket's may be."""
    places.add("/tmp/ray")
    if len(top) > 40:
        places.add("/scratch")
    monkeypatch.setenv("TMPDIR", top)
    find_ray_folder()
    assert os.environ["RAY_TMPDIR"] == "/tmp"


def test_a_folder_that_the_user_names_is_taken(
    places: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    find_ray_folder()
    assert os.environ["RAY_TMPDIR"] == "/scratch"


def test_without_any_place_ray_itself_says_so(places: set[str]) -> None:
    places.clear()
    find_ray_folder()
    assert "RAY_TMPDIR" not in os.environ
