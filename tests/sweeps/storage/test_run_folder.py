"""Durable writes, and the lock on a run folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.core.errors import FolderHeldError, SweepError
from sweeps.storage import durable_writes
from sweeps.storage.durable_writes import remove_tree, write_csv, write_text
from sweeps.storage.lock import Lock
from sweeps.storage.run_folder import RunFolder, checkpoint_step

HOLD = """
import sys
from pathlib import Path
from sweeps.storage.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_told_who_the_first_is_and_a_dead_one_holds_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run" / "lock"
    first = hold(path)
    try:
        with pytest.raises(FolderHeldError) as error:
            Lock(path)
        assert f"{socket.gethostname()}, pid {first.pid}" in str(error.value)
        assert f"status {tmp_path / 'run'}" in str(error.value)
        assert error.value.exit_code == 3
    finally:
        first.kill()
        first.communicate()
    assert str(first.pid) in path.read_text()  # what a kill leaves behind is no lock
    Lock(path).release()


def test_a_released_lock_can_be_taken_and_names_its_new_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("a name that is far longer than that of any later holder, pid 123456789\n")
    first = Lock(path)
    assert path.read_text() == f"{socket.gethostname()}, pid {os.getpid()}\n"
    with pytest.raises(FolderHeldError, match=f"pid {os.getpid()}"):
        Lock(path)
    first.release()
    Lock(path).release()


def test_a_file_system_without_locks_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(durable_writes.fcntl, "flock", refuse)
    with pytest.raises(SweepError, match=r"cannot be locked: .*No locks available.*run_dir=") as e:
        Lock(tmp_path / "lock")
    assert not isinstance(e.value, FolderHeldError)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_text_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "trials.csv"
    write_text(path, "old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["trials.csv"]
    write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"


def test_readers_never_see_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.csv"
    write_text(path, "old")
    seen = []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        seen.append((path.read_text(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write_text(path, "new")
    assert seen == [("old", "new")]
    assert path.read_text() == "new"


def test_a_csv_quotes_what_must_be_quoted_and_leaves_none_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["x", "error"], [[None, 'said "no", twice\nand left'], [1.5, ""]])
    text = (tmp_path / "a.csv").read_text()
    assert text == 'x,error\n,"said ""no"", twice\nand left"\n1.5,\n'


def test_a_folder_is_removed_though_a_kill_left_a_half_removed_one(tmp_path: Path) -> None:
    for name in ("step-000002", ".removing-step-000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("x")
    remove_tree(tmp_path / "step-000002")
    assert os.listdir(tmp_path) == []
    remove_tree(tmp_path / "step-000002")  # gone already


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-000200", 200),
        ("step-1234567", 1234567),
        ("step-", None),
        ("step-2.draft", None),
        ("000200", None),
        ("step-²", None),
    ],
)
def test_a_checkpoints_step_is_in_its_name(name: str, step: int | None) -> None:
    assert checkpoint_step(Path("x") / name) == step
    if step is not None:
        assert RunFolder(Path("run")).checkpoint("ab", step).name == name
