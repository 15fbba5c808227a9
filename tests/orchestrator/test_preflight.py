"""What is found before a sweep starts: everything at once, in words, and what there is room for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.driving import make
from support.sweep_events import new_ledger
from support.training import TINY, prepared, train_spec

from orchestrator.cli import main
from orchestrator.config import preflight
from orchestrator.config.preflight import Findings, changes, largest, room_line, size, step_line
from orchestrator.config.prepare import Ready, dry_run_line
from sweeps.config.spec import TrainSpec
from sweeps.core.errors import ConfigError, Problem, SweepError
from sweeps.core.trial import State
from sweeps.ledger.events import Attempt
from sweeps.ledger.history import History
from trainers.data.dataset import PreparedData
from trainers.dry_run import Train, dry_run, failed_step
from trainers.memory_estimate import Needs, needs
from trainers.model.loading import choose
from trainers.model.source import resolve_path
from trainers.packed.compatibility import settings
from trainers.packed.engine import train_alone
from trainers.packed.frozen_base import Base
from trainers.sft import trainer as sft_trainer
from trainers.trial.failures import DivergedError
from trainers.trial.task import DryRun, Observer, Outcome, Task

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


def test_a_containers_memory_counts_and_not_its_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "usable_memory_mb", lambda: 8.0)
    with pytest.raises(SweepError, match=r"least 10.0 MB .*, and this container or job has 8.0 MB"):
        room_line(make()[0], PLENTY, "cpu", tmp_path)
    monkeypatch.setattr(preflight, "usable_memory_mb", preflight.machine_memory_mb)
    assert "memory of this machine a trial" in room_line(make()[0], PLENTY, "cpu", tmp_path)


def test_what_a_trial_takes_is_counted_from_the_config_alone() -> None:
    spec = train_spec()
    found = needs(TINY, spec.peft, choose(TINY, "cpu"))
    assert found.checkpoint_mb == pytest.approx(found.trained * 12 / 2**20)
    whole = needs(TINY, {"method": "full"}, choose(TINY, "cpu", trains_base=True))
    assert whole.trained > 10 * found.trained
    assert whole.memory_mb > found.memory_mb


def test_the_largest_of_what_is_searched_is_tried() -> None:
    searched: dict[str, Any] = {
        "trainer.per_device_train_batch_size": [2, 16],
        "peft.r": [4, 64],
        "trainer.optim": ["sgd"],
    }
    big = largest(train_spec(), searched)
    assert (big.batch_size, big.peft["r"]) == (16, 64)
    assert largest(train_spec(), {}) == train_spec()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["solo", "packed"])
def test_one_real_step_is_trained_by_either_engine_and_leaves_nothing(
    engine: str, tmp_path: Path
) -> None:
    spec = train_spec(learning_rate=1e30, lr_scheduler_type="cosine_with_min_lr")
    folder = tmp_path / "dry_run"
    found = dry_run(spec, prepared(), folder, "cpu", ENGINES[engine](spec))
    longest = sorted(map(len, prepared().train["input_ids"]))[-spec.batch_size :]
    assert (found.rows, found.tokens, found.too_many) == (spec.batch_size, sum(longest), 0)
    assert found.checkpoint_mb > 0
    assert 0 <= found.step_mb < found.peak_mb  # of a process that may have held more before
    assert list(tmp_path.iterdir()) == []
    assert f"one real step of 4 of the longest rows ({sum(longest)} tokens)" in step_line(found)


def lane(spec: TrainSpec) -> Train:
    return partial(train_alone, base=Base(spec, settings(spec), "cpu"))


ENGINES: dict[str, Any] = {"solo": lambda _: sft_trainer.train, "packed": lane}


def short_of_memory(most: int) -> Train:
    """An engine that takes micro-batches of so many rows and no more."""

    def train(task: Task, data: PreparedData, observer: Observer) -> Outcome:
        (task.folder.trial(task.key) / "half written").mkdir(parents=True)
        if task.train.batch_size > most:
            raise MemoryError("tried to allocate 80 GiB")
        observer.committed(1, 2**20)
        return Outcome(state=State.COMPLETED)

    return train


@pytest.mark.slow
def test_a_micro_batch_that_does_not_fit_is_halved_once_as_a_trials_would_be(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "dry_run"
    found = dry_run(train_spec(), prepared(), folder, "cpu", short_of_memory(2))
    assert (found.rows, found.too_many) == (2, 4)
    assert "4 rows run out of memory: trials with so many go on with half" in step_line(found)
    assert step_line(replace(found, note="no kernels")) == f"{step_line(found)}; no kernels"
    with pytest.raises(MemoryError) as caught:
        dry_run(train_spec(), prepared(), folder, "cpu", short_of_memory(1))
    why, text = failed_step(caught.value, train_spec())
    assert why.startswith("one step of the largest micro-batch (4 of the longest rows) runs out of")
    assert "80 GiB" in why
    assert "trainer.per_device_train_batch_size" in why
    assert text == ""
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_is_kept_apart_from_the_words() -> None:
    def fails() -> None:
        raise ValueError("no such layer\nand more")

    with pytest.raises(ValueError, match="no such layer") as caught:
        fails()
    why, text = failed_step(caught.value, train_spec())
    assert why.endswith("fails: ValueError: no such layer")
    assert "in fails" in text
    assert failed_step(SweepError("this GPU computes in float16"), train_spec())[1] == ""
    assert failed_step(DivergedError("the training loss is nan"), train_spec())[1] == ""


def test_a_dry_run_is_known_until_something_that_matters_changes() -> None:
    facts = Attempt(data="d", base="b", versions={"torch": "1"}, code="c")
    ready = Ready(examples=1, facts=facts, lines=[], largest=train_spec(), data=prepared())
    identity, found = ready.known_dry_run(History(), "cpu", packed=True)
    assert found is None
    # Of an older version: without the memory that the step added.
    old = {"rows": 4, "tokens": 100, "peak_mb": 9.0, "checkpoint_mb": 1.0, "seconds": 0.1}
    past = History(driver=Attempt(rehearsal={"identity": identity, "lanes": 3, **old}))
    known = (identity, DryRun(**old))
    assert ready.known_dry_run(past, "cpu", packed=True) == known
    changed = (
        ready.known_dry_run(past, "cuda", packed=True),
        ready.known_dry_run(past, "cpu", packed=False),
        ready.known_dry_run(past, "cpu", packed=True, strategy="fsdp"),
        replace(ready, largest=train_spec(optim="sgd")).known_dry_run(past, "cpu", packed=True),
        replace(ready, facts=replace(facts, data="e")).known_dry_run(past, "cpu", packed=True),
        replace(ready, facts=replace(facts, versions={})).known_dry_run(past, "cpu", packed=True),
    )
    assert all(found is None and other != identity for other, found in changed)


def test_changed_libraries_and_code_are_said_and_go_on() -> None:
    before = Attempt(versions={"torch": "2.12", "trl": "1.0"}, code="a")
    now = Attempt(versions={"torch": "2.13", "trl": "1.0"}, code="b")
    (said,) = changes(before, now)
    assert "torch 2.12 -> 2.13, this program's own code" in said
    assert changes(before, before) == []
    assert changes(Attempt(), now) == []


@pytest.mark.parametrize(("mb", "words"), [(0.25, "0.2 MB"), (2048, "2.0 GB")])
def test_sizes_are_for_people(mb: float, words: str) -> None:
    assert size(mb) == words


@pytest.mark.slow
def test_memory_is_told_from_the_config_alone_where_the_weights_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unweighted = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(resolve_path("tiny"), tmp_path / "model", ignore=unweighted)
    words = ["model=hub", f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}"]
    assert main(["plan", "sweep=quick", "tracking=off", "sweep.budget.examples=64", *words]) == 1
    said = capsys.readouterr().err
    assert "this folder holds no *.safetensors" in said
    assert "By its config.json alone the model needs at least" in said


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
    new_ledger(run / "ledger.jsonl").append(Attempt(number=1, data="other", base="other"))
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "the training data changed since this sweep began (other, now" in said
    assert "the base model changed since" in said
    assert "accept_changes=true" in said
    assert main([*words, "accept_changes=true"]) == 0
    assert "one real step of 8 of the longest rows" in capsys.readouterr().out


def test_a_driver_without_a_gpu_plans_for_those_of_other_nodes(tmp_path: Path) -> None:
    ready = Ready(examples=8, facts=Attempt(), lines=[], largest=train_spec(), data=prepared())
    said = dry_run_line(ready, History(), tmp_path, "cuda")
    assert said == "no step was tried: this machine has no GPU to try it on"
    room = room_line(make()[0], PLENTY, "cuda", tmp_path)
    assert "of the memory of a GPU that is not on this machine a trial" in room
