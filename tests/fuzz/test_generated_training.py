"""Generated data and command lines train alike in both engines; `make fuzz`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from support.checked_data import one_tokenizer, train_spec
from support.checked_lines import trial_of
from support.command_lines import LineCase, line_cases
from support.data_files import DataCase, data_cases
from support.fuzzing import FEW
from support.packs import alone, pack
from support.training import Recorder, prepared

from sweeps.config.spec import BudgetSpec, TrainSpec
from sweeps.core.errors import SweepError
from trainers.data.dataset import PreparedData
from trainers.data.preparation import tokenized
from trainers.data.rows import read
from trainers.packed.compatibility import obstacle
from trainers.sft.config import schedule_problems

pytestmark = pytest.mark.fuzz
EXAMPLES = 8
MOST = 64  # rows of two optimizer steps
CLOSE = 1e-5
TRAINER = {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "logging_steps": 1}
LORA = {"method": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def assert_alike(
    train: TrainSpec, data: PreparedData, folder: Path, examples: int = EXAMPLES
) -> None:
    """Both engines report the same losses of each step and each evaluation."""
    seen, together = Recorder(), Recorder()
    alone(folder / "alone", train, seen, examples=examples, data=data)
    packed = pack(folder / "packed", [train], [together], examples=examples, data=data)
    packed.finish()
    packed.state(0)  # raises what the lane raised
    assert together.losses == pytest.approx(seen.losses, abs=CLOSE, rel=CLOSE)
    ours, theirs = ([each[2:] for each in found.measured] for found in (together, seen))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=CLOSE, rel=CLOSE)


@FEW
@given(data_cases(valid=True))
def test_generated_rows_train_alike_in_both_engines(case: DataCase) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train = train_spec(case, folder)
        try:
            with one_tokenizer():
                parts, report = tokenized(train, read(train.data))
        except SweepError:  # the cut leaves no label: another test looks at it
            assume(False)
        data = PreparedData(
            train=parts["train"], evaluation=parts["eval"], test=None, fingerprint="", report=report
        )
        train = replace(train, peft=LORA, trainer={**TRAINER, **case.trainer}, evaluations=2)
        assert_alike(replace(train, budget=BudgetSpec(examples=EXAMPLES)), data, folder)


@FEW
@given(line_cases())
def test_generated_words_train_alike_in_both_engines(case: LineCase) -> None:
    assume(not case.refused and not case.files)
    train = trial_of(case)
    examples = 2 * train.batch_size * train.accumulation_steps
    assume(examples <= MOST and not obstacle(train))
    assume(not schedule_problems(train.trainer, steps=2))
    train = replace(train, budget=BudgetSpec(examples=examples), evaluations=2)
    with tempfile.TemporaryDirectory() as place:
        assert_alike(train, prepared(), Path(place), examples)
