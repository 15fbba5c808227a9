"""Pickles that come in as a checkpoint's file, with a true manifest, or as data: none is opened."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.training import EXAMPLES, KEY, REFERENCE, Recorder, Run, copy_of_reference, prepared

from orchestrator.cli import main
from sweeps.storage.run_folder import RunFolder
from trainers.packed.compatibility import settings
from trainers.packed.engine import train_alone
from trainers.packed.frozen_base import Base
from trainers.sft import trainer as sft_trainer
from trainers.trial import checkpoint
from trainers.trial.task import Task

FIRST = 2  # a step at which there is a checkpoint


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._flag),)


def plant(run: Run, name: str, flag: Path) -> None:
    """Put a pickle in the place of a file of the only checkpoint, and seal it anew."""
    for step, folder in run.checkpoints.items():
        if step != FIRST:
            os.rename(folder, run.folder.root / f"away-{step}")
    final = run.folder.checkpoint(KEY, FIRST)
    manifest = checkpoint.verify(final)
    draft = final.with_name(".draft")
    os.rename(final, draft)
    (draft / checkpoint.MANIFEST).unlink()
    if name.endswith("plain"):
        (draft / name.removesuffix("-plain")).write_bytes(pickle.dumps(Payload(flag)))
    else:
        torch.save({"state": Payload(flag)}, draft / name)
    checkpoint.commit(draft, final, replace(manifest, files={}))
    checkpoint.verify(final)
    assert not flag.exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["solo", "packed"])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "optimizer.pt-plain", "scheduler.pt", "rng_state.pth"]
)
def test_a_pickle_with_a_true_manifest_is_not_opened(
    name: str, engine: str, tmp_path: Path
) -> None:
    run = copy_of_reference(tmp_path / "run")
    flag = tmp_path / "opened"
    plant(run, name, flag)
    task = Task(
        key=KEY, train=REFERENCE, examples=EXAMPLES, folder=RunFolder(run.folder.root), device="cpu"
    )
    with pytest.raises((pickle.UnpicklingError, RuntimeError)) as error:
        if engine == "solo":
            sft_trainer.train(task, prepared(), Recorder(attempt=2))
        else:
            base = Base(REFERENCE, settings(REFERENCE), "cpu")
            train_alone(task, prepared(), Recorder(attempt=2), base=base)
    assert "weights" in str(error.value).lower()
    assert not flag.exists()
    assert json.loads((run.folder.checkpoint(KEY, FIRST) / checkpoint.MANIFEST).read_text())


def test_the_payload_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "opened")))
    assert (tmp_path / "opened").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        *(["data=file", f"data.path=x.{ending}"] for ending in ("pkl", "jsonl", "csv", "parquet")),
        *(["data=file", "data.path=x.pkl", f"data.format={name}"] for name in ("json", "parquet")),
        ["data=hub", "data.path=./folder"],  # with a loading script of its own
        ["data=hub", "data.path=folder"],
    ],
    ids=" ".join,
)
def test_data_that_is_a_pickle_or_a_script_is_refused(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    flag = tmp_path / "opened"
    evil = pickle.dumps(Payload(flag))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data.pkl").write_bytes(evil)
    (tmp_path / "folder" / "folder.py").write_text(f"import os\nos.mkdir({str(flag)!r})\n")
    for ending in ("pkl", "jsonl", "csv", "parquet"):
        (tmp_path / f"x.{ending}").write_bytes(evil)
    assert main(["plan", *words]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert not flag.exists()
