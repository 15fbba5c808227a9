"""docs/own-project.md as it stands: from an empty folder to the result, from Python and a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.own_project import PAGE, python_block, write_project
from support.real_sweeps import REPOSITORY

pytestmark = pytest.mark.long


def test_the_page_goes_from_an_empty_folder_to_the_result(tmp_path: Path) -> None:
    project = write_project(tmp_path / "my project")
    environment = {
        **os.environ,
        **{"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=project, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run("-c", python_block())
    best, values = said.splitlines()[-2:]
    assert re.fullmatch(r"outputs/ranks-\w{8}/best/", best)
    assert "'trainer.learning_rate': 0.003" in values
    assert (project / best / "adapter_model.safetensors").is_file()
    _, plan, sweep = [
        shlex.split(line)[2:]
        for line in PAGE.read_text().splitlines()
        if line.startswith("    python -m")
    ]
    assert "sweep ranks: 4 trials by grid" in run("-m", *plan)
    assert "This sweep had ended already." in run("-m", *sweep)
    ledger = (project / best).parent / "ledger.jsonl"
    commands = [json.loads(line).get("command") for line in ledger.read_text().splitlines()]
    (again,) = filter(None, commands)  # it can be pasted in any folder
    assert shlex.split(again)[3] == f"--config-dir={project / 'configs'}"
