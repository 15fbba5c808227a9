"""The wheel: what is in it, and that it works in an empty folder, without the checkout."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
from support.real_sweeps import LR, REPOSITORY, SMALL, Command, clearing_up

from orchestrator import __version__

pytestmark = pytest.mark.slow

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
TWO = f"sweep.space={{{LR}: choice(1e-4,1e-2)}}"


@dataclass
class Anything(Command):
    """Any command line, in an empty folder and without PYTHONPATH."""

    def words_to_run(self, *more: str) -> list[str]:
        return list(more)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without network."""
    folder = tmp_path_factory.mktemp("dist")
    where = ("--wheel-dir", str(folder), str(REPOSITORY))
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", *where], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that has the wheel, and the libraries of this one."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True)
    python = str(root / "bin" / "python")
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", str(wheel)], check=True)
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (own,) = root.glob("lib/python*/site-packages")
    # The .pth files in these folders are not read: an editable install of the checkout is not seen.
    (own / "libraries.pth").write_text("\n".join(libraries))
    return root / "bin"


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Anything]:
    command = Anything((), tmp_path, {"PYTHONPATH": ""})
    with clearing_up([command]):
        yield command


def test_the_wheel_has_the_packages_and_conf_with_all_their_files_and_nothing_else(
    wheel: Path,
) -> None:
    info = f"sft_sweeps-{__version__}.dist-info/"
    names = {name for name in ZipFile(wheel).namelist() if not name.startswith(info)}
    files = {
        str(path.relative_to(REPOSITORY))
        for folder in ("orchestrator", "sweeps", "trainers", "conf")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == {re.sub("^conf/", "orchestrator/conf/", file) for file in files}


def test_a_sweep_and_its_status_in_an_empty_folder(bin_folder: Path, empty: Anything) -> None:
    python, program = str(bin_folder / "python"), str(bin_folder / "sft-sweeps")
    code = empty.run(python, "-m", "orchestrator", *SMALL, TWO, "tracking=off")
    assert code == 0, empty.output
    (run_dir,) = (empty.root / "cwd" / "outputs").iterdir()
    assert run_dir.name.startswith("lr_grid")
    assert empty.run(program, "status", f"outputs/{run_dir.name}") == 0, empty.output
    assert "2 completed" in empty.output


def test_what_ran_is_what_was_installed(bin_folder: Path, empty: Anything) -> None:
    where = "import orchestrator, sweeps, trainers as t; print(orchestrator, sweeps, t, sep='\\n')"
    assert empty.run(str(bin_folder / "python"), "-c", where) == 0
    folders = [line.partition("from '")[2] for line in empty.output.splitlines()]
    assert [folder.startswith(str(bin_folder.parent)) for folder in folders] == [True] * 3
    assert empty.run(str(bin_folder / "sft-sweeps"), "--version") == 0
    assert empty.output == f"sft-sweeps {__version__}\n"
