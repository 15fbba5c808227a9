"""A run folder that is not a sweep's: what is the user's stays, whatever a sweep would call so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.best.model_card import proof_of
from orchestrator.cli import main
from orchestrator.config.run_folder_claim import SPEC_HEAD, refuse_strangers
from sweeps.core.errors import SweepError
from sweeps.storage.run_folder import RunFolder

QUICK = ("data.limit=120", "data.eval_limit=10", "tracking=off", "run_dir=.")
# Refused late, when the data is prepared and Ray runs.
FITS_NOWHERE = "engine.cpus_per_trial=9999"


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


STRANGERS = (
    *("data/rows.jsonl", "trials/one", "best/notes", "wandb/run"),
    *("trials.csv", "study.db", "sweep.yaml", "lock"),
)


@pytest.mark.parametrize("name", STRANGERS)
def test_what_a_sweep_would_write_over_is_seen(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("learning_rate: 1\n")
    with pytest.raises(SweepError, match=f"no sweep, but has {name.partition('/')[0]} in it"):
        refuse_strangers(RunFolder(tmp_path))
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    refuse_strangers(RunFolder(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("verb", [[], ["plan"]])
def test_it_is_refused_and_stays(
    verb: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/rows.jsonl", "sweep.yaml", "lock"):
        (tmp_path / name).write_text(name)
    before = contents(tmp_path)
    assert main([*verb, *QUICK]) == 1
    said = capsys.readouterr().err
    assert "holds no sweep, but has data, sweep.yaml, lock in it" in said
    assert "Choose another run_dir=" in said
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_other_files_may_lie_there_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    # What a start leaves that was killed before its ledger began is no sweep: of other settings.
    (tmp_path / "sweep.yaml").write_text(f"{SPEC_HEAD}\nseed: 7\n")
    (tmp_path / "lock").write_text("box, pid 12\n")
    (tmp_path / "ledger.jsonl").write_text("")
    assert main([*QUICK, FITS_NOWHERE]) == 1
    assert "engine.cpus_per_trial" in capsys.readouterr().err
    assert contents(tmp_path) == {"notes.txt": "mine"}


@pytest.mark.slow
def test_what_the_machine_lacks_is_told_with_what_the_data_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*QUICK, "run_dir=run", "data=file", "data.path=no.jsonl", FITS_NOWHERE]) == 1
    said = capsys.readouterr().err
    assert f"1. data.path = {tmp_path}/no.jsonl: no such file" in said
    assert "engine.cpus_per_trial = 9999: this machine has " in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[1]", "a: b: c", "\x00", "trial: x\nstep: 1\n"])
def test_a_best_that_cannot_be_read_is_none_yet(text: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.best.mkdir()
    (folder.best / "trial.yaml").write_text(text)
    assert proof_of(folder) is None


@pytest.mark.slow
@pytest.mark.parametrize("text", ["- 1", "a: b: c"])
def test_a_sweep_yaml_that_cannot_be_read_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(text)
    (tmp_path / "ledger.jsonl").write_text('{"event": "interrupt", "time": 1.0}\n')
    before = contents(tmp_path)
    assert main([*QUICK]) == 1
    assert "sweep.yaml cannot be read" in capsys.readouterr().err
    assert contents(tmp_path).items() >= before.items()


def test_the_head_of_sweep_yaml_is_a_comment() -> None:
    assert yaml.safe_load(SPEC_HEAD) is None
