"""What a driver fetches of a run folder from its store."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.storage.sync import bring_back
from sweeps.storage.object_store import Store
from sweeps.storage.run_folder import RunFolder

KEY = "k"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    theirs = RunFolder(Path("run"))
    for path in (theirs.spec, theirs.table, *theirs.trial_files(KEY)[:2]):
        store.write(theirs.name(path), b"theirs")
    store.write(f"trials/{KEY}/a stranger's", b"theirs")
    for attempt in (1, 2):
        source = tmp_path / str(attempt)
        source.mkdir()
        (source / "config.yaml").write_text(f"attempt {attempt}")
        name = f"step-000008@{attempt}"
        store.put_folder(source, theirs.name(theirs.checkpoints(KEY) / name))
    return store


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_driver_fetches_the_files_that_it_lacks(
    store: Store, tmp_path: Path, checkpoints: bool
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    folder.table.write_text("ours")
    bring_back(store, folder, checkpoints=checkpoints)

    config = folder.checkpoint(KEY, 8) / "config.yaml"
    expected = {
        folder.spec: "theirs",
        folder.table: "ours",
        folder.trial_config(KEY): "theirs",
        folder.metrics(KEY): "theirs",
    } | ({config: "attempt 2"} if checkpoints else {})
    found = [path for path in folder.root.rglob("*") if path.is_file()]
    assert {path: path.read_text() for path in found} == expected
