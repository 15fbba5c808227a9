"""`plan` says what the sweep would: the engine's line, the engine's own step, the same refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.training import LORA, prepared, train_spec

from orchestrator.cli import main
from orchestrator.config.prepare import Ready, dry_run_line
from sweeps.ledger.events import Attempt
from sweeps.ledger.history import History
from trainers.packed import engine as packed_engine
from trainers.sft import trainer as sft_trainer

QUICK = ("plan", "sweep=base", "data.limit=120", "data.eval_limit=10", "tracking=off")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "engine: packed, up to 16 trials share a device and its base model; 1 at once on"),
        (("engine=solo",), "engine: solo, one trial on each device; 1 at once on this machine"),
        (("peft.use_dora=true",), "(peft.use_dora=True: lanes are plain LoRA on linear layers); 1"),
    ],
)
def test_the_engine_and_its_place_are_said(
    words: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "run"
    assert main([*QUICK, *words, "cluster.cpus=1", f"run_dir={there}"]) == 0
    assert line in capsys.readouterr().out


def ready(**changes: Any) -> Ready:
    facts = Attempt()
    return Ready(examples=8, facts=facts, lines=[], largest=train_spec(**changes), data=prepared())


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_the_step_is_the_engines_own(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = (sft_trainer, "train") if packed else (packed_engine, "train_alone")
    monkeypatch.setattr(*other, None)
    said = dry_run_line(ready(), History(), tmp_path / "step", "cpu", packed=packed)
    assert said.startswith("one real step of 4 of the longest rows")


@pytest.mark.slow
def test_the_step_of_what_is_no_lane_is_sfttrainers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_engine, "train_alone", None)
    alone = ready(peft={"method": "lora", "r": 2, "use_dora": True})
    said = dry_run_line(alone, History(), tmp_path / "step", "cpu", packed=True)
    assert said.startswith("one real step")


def test_a_folder_of_another_sweep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    (tmp_path / "sweep.yaml").write_text(json.dumps({"seed": 7}))
    assert main([*QUICK, f"run_dir={tmp_path}"]) == 1
    assert "holds another sweep:\n" in capsys.readouterr().err


def test_a_trial_for_which_there_is_no_room_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cluster.cpus=2", "engine.cpus_per_trial=3", f"run_dir={tmp_path / 'run'}"]
    assert main([*QUICK, *words]) == 1
    assert "engine.cpus_per_trial = 3: this machine has 2 CPUs." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packed", "peft"), [(True, LORA), (False, LORA), (True, {"method": "full"})]
)
def test_the_words_of_the_assistant_alone_are_learnt_in_either_engine(
    packed: bool, peft: dict[str, Any], tmp_path: Path
) -> None:
    """The labels say what is learnt; SFTTrainer would refuse the key beside them."""
    only = ready(assistant_only_loss=True, peft=peft)
    said = dry_run_line(only, History(), tmp_path / "step", "cpu", packed=packed)
    assert said.startswith("one real step")
