"""What is found before a sweep starts: everything at once, in words, and what there is room for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import make
from training import TINY, prepared, train_spec

from orchestrator import preflight
from orchestrator.cli import main
from orchestrator.preflight import Findings, changes, largest, rehearsal_line, room_line, size
from sweeps.errors import ConfigError, Problem, SweepError
from trainers.model import choose
from trainers.needs import Needs, needs
from trainers.rehearsal import rehearse

PLENTY = Needs(trained=1000, memory_mb=10.0, checkpoint_mb=1.0)


def test_every_part_is_looked_at_and_all_is_told_together() -> None:
    findings = Findings()
    with findings.part():
        raise SweepError("no data")
    with findings.part():
        raise ConfigError([Problem(key="peft.r", message="is too large.")])
    with findings.part():
        raise SweepError("no room")
    with pytest.raises(SweepError) as told:
        findings.refuse()
    assert str(told.value) == (
        "1. no data\n2. no room\n3. 1 problem in the config:\n  - peft.r: is too large."
    )
    Findings().refuse()


def test_too_little_memory_or_disk_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _ = make(keep=3, max_concurrent=2)
    said = room_line(spec, PLENTY, "cpu", tmp_path)
    assert said.startswith("needs at least 10.0 MB of the ")
    assert "about 11.0 MB of" in said  # 3 kept, and 4 of each of 2 running ones
    monkeypatch.setattr(preflight, "device_memory_mb", lambda device: (8.0, "the GPU"))
    with pytest.raises(SweepError, match=r"at least 10.0 MB of memory.*the GPU has 8.0 MB.*qlora"):
        room_line(spec, PLENTY, "cuda", tmp_path)
    monkeypatch.setattr(preflight, "device_memory_mb", lambda device: (800.0, "the GPU"))
    huge = Needs(trained=1, memory_mb=1.0, checkpoint_mb=1e12)
    with pytest.raises(SweepError, match=r"11 of .*are free.*sweep.keep"):
        room_line(spec, huge, "cuda", tmp_path / "not" / "there")


def test_what_a_trial_takes_is_counted_from_the_config_alone() -> None:
    spec = train_spec()
    found = needs(TINY, spec.peft, choose(TINY, "cpu"))
    assert found.checkpoint_mb == pytest.approx(found.trained * 12 / 2**20)
    whole = needs(TINY, {"method": "full"}, choose(TINY, "cpu", trains_base=True))
    assert whole.trained > 10 * found.trained
    assert whole.memory_mb > found.memory_mb


def test_the_largest_of_what_is_searched_is_rehearsed() -> None:
    searched: dict[str, Any] = {
        "trainer.per_device_train_batch_size": [2, 16],
        "peft.r": [4, 64],
        "trainer.optim": ["sgd"],
    }
    big = largest(train_spec(), searched)
    assert (big.batch_size, big.peft["r"]) == (16, 64)
    assert largest(train_spec(), {}) == train_spec()


@pytest.mark.slow
def test_one_real_step_is_done_once_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    spec = train_spec()
    first = rehearse(spec, prepared(), tmp_path, "cpu")
    assert first.rows == spec.batch_size
    assert first.checkpoint_mb > 0
    assert rehearse(spec, prepared(), tmp_path, "cpu") == first
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


def test_a_step_that_fails_is_told_in_the_librarys_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr("trainers.rehearsal.rehearse", fail)
    with pytest.raises(SweepError, match=r"4 of the longest rows\) runs out of memory.*80 GiB"):
        rehearsal_line(train_spec(), prepared(), tmp_path, "cpu")


def test_changed_libraries_and_code_are_said_and_go_on() -> None:
    before = {"versions": {"torch": "2.12", "trl": "1.0"}, "code": "a"}
    now = {"versions": {"torch": "2.13", "trl": "1.0"}, "code": "b"}
    (said,) = changes(before, now)
    assert "torch 2.12 -> 2.13, this program's own code" in said
    assert changes(before, before) == []
    assert changes({}, now) == []


@pytest.mark.parametrize(("mb", "words"), [(0.25, "0.2 MB"), (2048, "2.0 GB")])
def test_sizes_are_for_people(mb: float, words: str) -> None:
    assert size(mb) == words


@pytest.mark.slow
def test_changed_data_is_refused_and_may_be_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    row = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(60)]
    rows.write_text("".join(json.dumps(one) + "\n" for one in row))
    words = ["plan", "data=file", f"data.path={rows}", "data.eval_fraction=0.3", "run_dir=run"]
    words += ["tracking=off", "sweep.budget.examples=64", "data.max_length=64"]
    run = tmp_path / "run"
    run.mkdir()
    attempt = {"event": "attempt", "time": 1.0, "number": 1, "data": "other", "base": "other"}
    (run / "ledger.jsonl").write_text(json.dumps(attempt) + "\n")
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "the training data changed since this sweep began (other, now" in said
    assert "the base model changed since" in said
    assert "accept_changes=true" in said
    assert main([*words, "accept_changes=true"]) == 0
    assert "one real step of 8 of the longest rows" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_driver_without_a_gpu_plans_for_those_of_other_nodes(tmp_path: Path) -> None:
    said = rehearsal_line(train_spec(), prepared(), tmp_path, "cuda")
    assert said == "no step was tried: this machine has no GPU to try it on"
    room = room_line(make()[0], PLENTY, "cuda", tmp_path)
    assert "of the memory of a GPU that is not on this machine a trial" in room
