"""Checkpoints: whole or not there, each kind of damage named, nobody else's taken for ours."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.training import BASE, KEY, Recorder, copy_of_reference, reference, run, stop_at

from sweeps.core.errors import StaleAttemptError, SweepError
from sweeps.core.trial import Report, State
from sweeps.storage.run_folder import RunFolder
from trainers.trial import checkpoint
from trainers.trial.checkpoint import (
    CheckpointError,
    Manifest,
    make_ready,
    newest,
    newest_of_all,
    verify,
)

FILES = {
    "adapter_model.safetensors": b"weights",
    "optimizer.pt": b"moments",
    "scheduler.pt": b"rate",
    "rng_state.pth": b"dice",
    "trainer_state.json": b"{}",
}
REPORT = Report(index=1, step=3, examples=24, tokens=900, metrics={"eval_loss": 5.5})


def manifest(step: int = 3, **changes: Any) -> Manifest:
    made = Manifest(
        key=KEY,
        step=step,
        attempt=1,
        base="a base",
        seconds=1.5,
        reports=[REPORT.to_json()],
        versions={"torch": "2.13.0"},
    )
    return replace(made, **changes)


def write_draft(parent: Path) -> Path:
    draft = parent / ".draft-1"
    draft.mkdir(parents=True)
    for name, content in FILES.items():
        (draft / name).write_bytes(content)
    return draft


def commit(parent: Path, step: int = 3, **changes: Any) -> Path:
    final = parent / f"step-{step:06d}"
    checkpoint.commit(write_draft(parent), final, manifest(step, **changes))
    return final


def find(parent: Path, base: str = "a base") -> Path | None:
    found = newest(parent, key=KEY, base=base)
    return found[0] if found else None


def test_what_was_committed_is_whole(tmp_path: Path) -> None:
    draft, final = write_draft(tmp_path), tmp_path / "step-000003"
    size = checkpoint.commit(draft, final, manifest())
    assert size == sum(map(len, FILES.values()))
    assert not draft.exists()
    found = verify(final)
    assert (found.key, found.step, found.seconds) == (KEY, 3, 1.5)
    assert found.trial_reports() == [REPORT]
    assert set(found.files) == set(FILES)


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def rewrite_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / checkpoint.MANIFEST
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return apply


def link(name: str, target: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return apply


def without_optimizer(folder: Path) -> None:
    """Neither the file nor a word of it in the manifest."""
    (folder / "optimizer.pt").unlink()
    rewrite_manifest(lambda data: data["files"].pop("optimizer.pt"))(folder)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (delete("MANIFEST.json"), "has no MANIFEST.json"),
    "torn manifest": (write("MANIFEST.json", b'{"key": "01'), "MANIFEST.json cannot be read"),
    "a list for a manifest": (write("MANIFEST.json", b"[]"), "MANIFEST.json cannot be read"),
    "binary manifest": (write("MANIFEST.json", b"\xff\xfe\x00"), "MANIFEST.json cannot be read"),
    "unknown field": (rewrite_manifest(lambda data: data.update(x=1)), "cannot be read"),
    "no step": (rewrite_manifest(lambda data: data.pop("step")), "cannot be read"),
    "files as a list": (rewrite_manifest(lambda data: data.update(files=[])), "cannot be read"),
    "report without a step": (
        rewrite_manifest(lambda data: data["reports"][0].pop("step")),
        "cannot be read",
    ),
    "report of nan": (
        rewrite_manifest(lambda data: data["reports"][0]["metrics"].update(eval_loss=float("nan"))),
        "cannot be read: a report holds finite numbers only",
    ),
    "file missing": (delete("optimizer.pt"), "not of the checkpoint: optimizer.pt"),
    "file never written": (without_optimizer, "has no optimizer.pt"),
    "file cut short": (write("optimizer.pt", b"mom"), "optimizer.pt is not what was written"),
    "file changed": (write("optimizer.pt", b"MOMENTS"), "optimizer.pt is not what was written"),
    "file planted": (write("training_args.bin", b"pickle"), "training_args.bin"),
    "file linked": (link("optimizer.pt", "scheduler.pt"), "optimizer.pt is not what was written"),
    "folder linked": (link("more", "/etc"), "not of the checkpoint: more"),
    "link to nothing": (link("more", "nowhere"), "not of the checkpoint: more"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    older, newer = commit(tmp_path, 3), commit(tmp_path, 12)
    damage, message = DAMAGES[name]
    damage(newer)
    with pytest.raises(CheckpointError, match=message):
        verify(newer)
    assert find(tmp_path) == older
    assert f"a checkpoint is not used: {newer}" in caplog.text
    assert message in caplog.text


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    newer, _ = commit(tmp_path, 1_000_000), commit(tmp_path, 999_999)
    (tmp_path / "step-abc").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-9999999").write_text("a file")
    assert find(tmp_path) == newer


@pytest.mark.parametrize("there", [True, False])
def test_no_checkpoint_is_none(tmp_path: Path, there: bool) -> None:
    assert find(tmp_path if there else tmp_path / "none") is None


@dataclass(frozen=True)
class Apart:
    """Two ranks, each with a folder of its own, of which this is the first."""

    other: Path
    rank: int = 0

    def each(self, call: partial[Any]) -> list[Any]:
        return [call(), call.func(self.other, **call.keywords)]


@pytest.mark.parametrize(
    ("here", "there", "step"),
    [
        ({3: 1, 6: 1}, {3: 1, 6: 1}, 6),
        ({3: 1, 6: 1}, {3: 1}, 3),  # a copy is late
        ({6: 1}, {3: 1, 6: 1, 9: 1}, 6),
        ({3: 1, 6: 1}, {3: 1, 6: 2}, 3),  # of another attempt, so maybe other numbers
        ({3: 1, 9: 1}, {6: 1}, None),
        ({3: 1}, {}, None),
        ({}, {}, None),
    ],
)
def test_ranks_go_on_from_the_newest_that_all_have(
    tmp_path: Path, here: dict[int, int], there: dict[int, int], step: int | None
) -> None:
    for name, held in (("here", here), ("there", there)):
        for at, attempt in held.items():
            commit(tmp_path / name, at, attempt=attempt)
    ranks: Any = Apart(tmp_path / "there")
    found = newest_of_all(tmp_path / "here", key=KEY, base="a base", ranks=ranks)
    assert (found[1].step if found else None) == step
    assert found is None or found[0].parent == tmp_path / "here"


def test_another_trials_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = commit(tmp_path, key="fedcba9876")
    with pytest.raises(SweepError, match=f"{folder} is a checkpoint of trial fedcba9876, not of"):
        find(tmp_path)


def test_another_bases_checkpoint_is_refused_with_ways_out(tmp_path: Path) -> None:
    commit(tmp_path)
    with pytest.raises(SweepError, match=r"another base model \(a base, now b base\).* run_dir="):
        find(tmp_path, base="b base")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_while_committing_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    older = commit(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, die)
        with pytest.raises(Killed):
            commit(tmp_path, 12)
    assert find(tmp_path) == older
    make_ready(tmp_path)
    assert os.listdir(tmp_path) == [older.name]


def test_committing_a_step_again_replaces_it(tmp_path: Path) -> None:
    commit(tmp_path, attempt=1)
    again = commit(tmp_path, attempt=2)
    assert verify(again).attempt == 2
    make_ready(tmp_path)
    assert os.listdir(tmp_path) == [again.name]


def test_numbers_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        commit(tmp_path, seconds=float("nan"))
    assert find(tmp_path) is None


# -- with a trial that was trained


@pytest.mark.slow
def test_a_trials_checkpoints_hold_no_pickled_settings_and_verify() -> None:
    for step, folder in reference().checkpoints.items():
        assert verify(folder).step == step
        names = {path.name for path in folder.iterdir()}
        assert names >= {"adapter_model.safetensors", *FILES}
        assert not {name for name in names if name.endswith(".bin")}


@pytest.mark.slow
def test_a_trial_goes_on_from_the_last_whole_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = copy_of_reference(tmp_path)
    (damaged.checkpoints[6] / "optimizer.pt").unlink()
    weights = damaged.checkpoints[4] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (damaged.folder.checkpoints(KEY) / ".draft-1-5-0").mkdir()

    went_on = run(tmp_path)
    assert went_on.seen.step == 2
    assert [report.index for report in went_on.seen.known] == [1]
    assert "step-000006: missing, or not of the checkpoint: optimizer.pt" in caplog.text
    assert "step-000004/adapter_model.safetensors is not what was written" in caplog.text
    assert went_on.seen.trained == reference().seen.trained[2:]
    assert sorted(path.name for path in went_on.folder.checkpoints(KEY).iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000006",
    ]
    assert all(verify(folder) for folder in went_on.checkpoints.values())


def test_a_trial_without_a_whole_checkpoint_starts_over(tmp_path: Path) -> None:
    damaged = copy_of_reference(tmp_path)
    for folder in damaged.checkpoints.values():
        (folder / "scheduler.pt").unlink()
    seen = Recorder(welcome=False)
    assert run(tmp_path, seen=seen).outcome.state is State.WAITING
    assert (seen.step, seen.known) == (0, [])


class Planted:
    """What a pickle of this does when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_not_opened(tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    folder = copy_of_reference(tmp_path).checkpoints[6]
    for name in ("training_args.bin", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Planted(opened)))
    seen = Recorder(welcome=False)
    run(tmp_path, seen=seen)
    assert seen.step == 4
    assert not opened.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_not_even_where_the_manifest_was_made_to_fit(tmp_path: Path, name: str) -> None:
    opened = tmp_path / "opened"
    folder = copy_of_reference(tmp_path).checkpoints[4]
    shutil.rmtree(folder.with_name("step-000006"))
    shutil.move(folder, draft := folder.with_name(".draft"))
    (draft / name).write_bytes(pickle.dumps(Planted(opened)))
    held = verify(reference().checkpoints[4])
    (draft / "MANIFEST.json").unlink()
    checkpoint.commit(draft, folder, held)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run(tmp_path)
    assert not opened.exists()


def test_a_trial_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    other = RunFolder(tmp_path).checkpoint(KEY, 4)
    shutil.copytree(reference().checkpoints[4], other)
    rewrite_manifest(lambda data: data.update(base="another"))(other)
    with pytest.raises(SweepError, match=rf"another base model \(another, now {BASE()}\)"):
        run(tmp_path)
    rewrite_manifest(lambda data: data.update(base=BASE(), key="fedcba9876"))(other)
    with pytest.raises(SweepError, match="of trial fedcba9876"):
        run(tmp_path)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    commits: list[Path] = []
    real = checkpoint.commit

    def full_at_the_second(draft: Path, final: Path, made: Manifest, **more: Any) -> int:
        commits.append(final)
        if len(commits) == 2:
            raise OSError(28, "No space left on device")
        return real(draft, final, made, **more)

    monkeypatch.setattr(checkpoint, "commit", full_at_the_second)
    with pytest.raises(OSError, match="the disk is full: a checkpoint takes about"):
        run(tmp_path)
    seen = Recorder(to_row=stop_at(0), welcome=False)
    run(tmp_path, seen=seen)
    assert seen.step == 2


# ---------------------------------------------------------------------- older attempts


def test_an_older_attempt_does_not_commit_over_a_newer_one(tmp_path: Path) -> None:
    newer = commit(tmp_path, step=5, attempt=2)
    for step in (3, 5, 7):  # behind it, at it, and ahead of it
        with pytest.raises(StaleAttemptError, match=r"attempt 1 at trial .*step-000005 is of att"):
            commit(tmp_path, step=step, attempt=1)
        shutil.rmtree(tmp_path / ".draft-1")
    assert [path.name for path in tmp_path.iterdir()] == [newer.name]
    assert verify(newer).attempt == 2
    assert commit(tmp_path, step=7, attempt=2).is_dir()
    assert commit(tmp_path, step=9, attempt=3).is_dir()


def test_the_last_word_before_the_rename_is_the_coordinators(tmp_path: Path) -> None:
    def over() -> None:
        raise StaleAttemptError("a newer attempt has begun")

    draft = write_draft(tmp_path)
    with pytest.raises(StaleAttemptError, match="newer"), checkpoint.writing(draft):
        checkpoint.commit(draft, tmp_path / "step-000003", manifest(), ask=over)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_fenced_trial_stops_and_leaves_what_is_there(tmp_path: Path) -> None:
    before = run(tmp_path, seen=Recorder(to_row=stop_at(2)))
    assert set(before.checkpoints) == {2}
    held = verify(before.checkpoints[2])
    with pytest.raises(StaleAttemptError):
        run(tmp_path, seen=Recorder(fenced=True))
    assert set(before.checkpoints) == {2}
    assert verify(before.checkpoints[2]) == held


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),  # torch
    ],
)
def test_a_full_disk_is_told_with_the_room_it_takes(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path)
    draft = write_draft(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with (
        pytest.raises(
            checkpoint.DiskFullError,
            match=r"a checkpoint takes about \d.* MB are free.*sweep\.keep",
        ),
        checkpoint.writing(draft),
    ):
        raise error
    assert not draft.exists()
    assert verify(tmp_path / "step-000003")
