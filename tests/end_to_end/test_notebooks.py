"""Notebooks in a real kernel: outputs of a cell, interrupts, and docs/finetune.ipynb as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from support.real_sweeps import LR, REPOSITORY, SMALL

pytestmark = pytest.mark.long

WORDS = [*SMALL, f"{LR}=1e-3,1e-2", "trainer.lr_scheduler_type=constant", "tracking=off"]
LONGER = ["sweep.budget.examples=320", "sweep.evaluations=10", "run_dir=run"]
BEGIN = f"""
import os, signal, sys, threading, time
from pathlib import Path
import orchestrator, psutil, ray

def committed():
    ledger = Path("run/ledger.jsonl")
    return ledger.read_text().count('"checkpoint"') if ledger.exists() else 0

def left():
    watching = [thread for thread in threading.enumerate() if thread.name == "signals"]
    return ray.is_initialized(), len(psutil.Process().children()), len(watching)

def interrupted(times):
    def interrupt(before):
        while committed() == before:
            time.sleep(0.02)
        for _ in range(times):
            os.killpg(os.getpgrp(), signal.SIGINT)  # as Jupyter does
            time.sleep(0.2)
    threading.Thread(target=interrupt, args=(committed(),), daemon=True).start()
    try:
        orchestrator.sweep({[*WORDS, *LONGER]})
    except KeyboardInterrupt:
        return committed(), *left()
"""


def execute(notebook: Any, folder: Path) -> list[list[Any]]:
    """Run a notebook; the outputs of each code cell, with the lines of a stream in one."""
    client = NotebookClient(
        notebook,
        timeout=250,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    there = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(REPOSITORY), there)))
    client.execute(env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def kinds(outputs: list[Any]) -> list[str]:
    return sorted(f"{one.output_type} {one.get('name', '')}".strip() for one in outputs)


def test_interrupts_stop_a_sweep_and_not_the_kernel(tmp_path: Path) -> None:
    code = [
        BEGIN,
        "interrupted(1)",
        "interrupted(2)",
        f"found = orchestrator.sweep({[*WORDS, *LONGER]})\nfound",
        "*left(), found.best.value",
        "!{sys.executable} -m orchestrator status run",
    ]
    cells = [nbformat.v4.new_code_cell(each) for each in code]
    _, once, twice, whole, after, status = execute(nbformat.v4.new_notebook(cells=cells), tmp_path)

    def result(outputs: list[Any]) -> Any:
        return outputs[-1]["data"]["text/plain"]

    first, *left = eval(result(once))
    second, *left_at_once = eval(result(twice))
    assert 0 < first < second
    *left_after, value = eval(result(after))
    assert left == left_at_once == left_after == [False, 0, 0]
    # The lines, the live table, and the value of the cell: however long the sweep is.
    assert kinds(whole) == ["display_data", "execute_result", "stream stdout"]
    assert "Best: trial " in result(whole)
    assert "<pre" in whole[-1]["data"]["text/html"]
    assert "2 completed" in status[0]["text"]
    assert "\x1b" not in status[0]["text"]  # a cell can only print
    assert f"{value:.4f}" in result(whole)


def test_the_notebook_of_the_docs_runs_as_it_is(tmp_path: Path) -> None:
    notebook = nbformat.read(REPOSITORY / "docs" / "finetune.ipynb", as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source += "\nEXAMPLES = 320"
    *_, sweep, shown, table, answer = execute(notebook, tmp_path)
    assert kinds(sweep) == ["display_data", "stream stdout"]
    assert "Best: trial " in shown[0]["data"]["text/plain"]
    assert "trainer.learning_rate" in table[0]["data"]["text/html"]
    (said,) = [one["text"] for one in answer if one.get("name") == "stdout"]  # beside a bar
    assert said.startswith("Where is my parcel 471?")
    assert (tmp_path / "outputs" / "mails" / "best" / "adapter_model.safetensors").is_file()
