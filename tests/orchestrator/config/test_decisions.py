"""A key that is fixed on the command line and searched by the sweep's file; keys nobody reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.command import Command
from orchestrator.plan import plan_lines
from sweeps.core.errors import ConfigError
from sweeps.storage.run_folder import RunFolder

LIST = "sweep.space.batching"


def space_and_notes(*words: str) -> tuple[list[str], str]:
    """The searched names and the notes of a command line without problems."""
    command = Command.read(words)
    assert not command.problems
    return [each.name for each in command.space.dimensions], "\n".join(command.space.notes)


def refused(*words: str) -> str:
    return "\n".join(map(str, Command.read(words).problems))


def test_a_fixed_value_is_no_longer_searched_and_that_is_told() -> None:
    command = Command.read(["sweep=lr_grid", "trainer.learning_rate=5e-5"])
    assert command.space.size() == 2
    assert command.spec is not None
    assert command.spec.train.trainer["learning_rate"] == 5e-5
    (note,) = command.space.notes
    assert note.startswith("trainer.learning_rate is 5e-05, as typed: no longer searched")


def test_a_searched_value_is_searched_though_the_file_has_another() -> None:
    names, notes = space_and_notes("sweep=lr_grid", "trainer.learning_rate=1e-4,1e-3")
    assert names == ["trainer.learning_rate", "trainer.lr_scheduler_type"]
    assert notes == ""


def test_a_key_that_is_fixed_and_searched_is_refused_unless_a_condition_may_leave_it() -> None:
    for words in (["peft.r=8", "peft.r=4,16"], ["peft.r=4,16", "peft.r=8"]):
        said = refused("sweep=lr_grid", *words)
        assert said == "peft.r: is typed twice: as 8, and to be searched. Leave one of them out."
    rows = "{peft.r: 8, peft.lora_alpha: 16}, {peft.r: 4, peft.lora_alpha: 8}"
    said = refused("sweep=lr_grid", f"sweep.space.size=choice({rows})", "peft.r=8")
    assert said.startswith("peft.r: is typed twice: as 8, and to be searched by size.")
    key = "trainer.weight_decay"
    names, _ = space_and_notes("sweep=asha", f"{key}=0.1", f"{key}=0.2,0.3")
    assert key in names


def test_a_list_keeps_the_rows_that_have_the_fixed_value() -> None:
    words = ["sweep=accumulation", "trainer.per_device_train_batch_size=8"]
    command = Command.read(words)
    assert command.space.size() == 4
    assert "4 of its 7 have trainer.per_device_train_batch_size=8" in command.space.notes[0]


def test_a_value_that_no_row_has_is_refused_with_those_there_are() -> None:
    # `++` sets what no trial reads; it does not set what the rows set.
    assert refused("sweep=accumulation", "++trainer.per_device_train_batch_size=16")
    said = refused("sweep=accumulation", "trainer.per_device_train_batch_size=16")
    assert said.startswith("trainer.per_device_train_batch_size = 16: ")
    assert "whose rows have 8, 4, 2, 1" in said


def test_two_fixed_values_must_lie_in_one_row() -> None:
    words = ["trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=1"]
    assert "no row has these" in refused("sweep=accumulation", *words)


def test_a_condition_that_a_fixed_value_breaks_takes_its_key_along() -> None:
    names, notes = space_and_notes("sweep=asha", "trainer.optim=sgd")
    assert "trainer.weight_decay" not in names
    assert "trainer.weight_decay is not searched: it is for trainer.optim=adamw_torch" in notes
    names, _ = space_and_notes("sweep=asha", "trainer.optim=adamw_torch")
    assert "trainer.weight_decay" in names
    assert "trainer.optim" not in names


def test_a_condition_of_the_file_asks_only_for_what_the_typed_search_gives() -> None:
    names, notes = space_and_notes("sweep=asha", "trainer.optim=sgd,adafactor")
    assert "trainer.weight_decay" not in names
    assert "it is for trainer.optim=adamw_torch, which is sgd or adafactor" in notes
    command = Command.read(
        [
            *("sweep=asha", "trainer.optim=sgd,lion_8bit", "sweep.space.peft.r=choice(4,8)"),
            "sweep.when.trainer.weight_decay=trainer.optim=choice(lion_8bit, adamw_torch)",
        ]
    )
    assert "trainer.optim is never adamw_torch" in "\n".join(map(str, command.problems))


def test_a_typed_condition_that_never_holds_is_refused() -> None:
    words = ["sweep=base", "peft.r=4,8", "sweep.when.peft.r=trainer.optim=sgd"]
    assert "peft.r: is searched by no trial" in refused(*words)


def test_a_key_of_a_typed_list_that_no_trial_reads_is_refused() -> None:
    words = ["sweep=base", "sweep.space={pair: choice({peft.r: 8, trainer.adam_beta1: 0.9})}"]
    said = refused(*words, "trainer.optim=adafactor")
    assert "trainer.adam_beta1: no trial reads it" in said
    assert space_and_notes(*words)[0] == ["pair"]
    pair = "{trainer.optim: adafactor, trainer.adam_beta1: 0.9}"
    said = refused("sweep=base", f"sweep.space={{pair: choice({pair})}}")
    assert "trainer.adam_beta1: no trial reads it: trainer.optim=adafactor does not" in said


def test_full_fine_tuning_reads_nothing_of_an_adapter() -> None:
    names, notes = space_and_notes("sweep=joint", "peft=full", "trainer.learning_rate=1e-5")
    assert "peft.r" not in names
    assert "peft.r is not searched: peft.method=full trains no adapter" in notes
    for word in ("peft.r=8", "peft.r=4,8"):
        said = refused("sweep=base", "peft=full", word)
        assert said.startswith("peft.r: no trial reads it")
    names, _ = space_and_notes("sweep=base", "peft.method=lora,full", "peft.r=4,8")
    assert names == ["peft.method", "peft.r"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.path=train.jsonl"], "not read by data=docstrings: leave it out, or add data=file"),
        (["data.columns={prompt: q, completion: a}"], "not read by data=docstrings"),
        (["data=file", "data.path=a", "data.name=x"], "or add data=hub."),
        (["data=hub", "data.path=A/B", "data.eval_path=x.jsonl"], "or add data=file."),
    ],
)
def test_a_data_key_that_nothing_reads_is_refused(words: list[str], said: str) -> None:
    assert said in refused("sweep=base", *words)


@pytest.mark.parametrize("word", ["data.path=null", "data.limit=9", "data.columns={}"])
def test_a_data_key_that_changes_nothing_or_is_read_is_taken(word: str) -> None:
    assert refused("sweep=base", word) == ""


def test_epochs_to_search_are_told_what_to_do_instead() -> None:
    said = refused("sweep=base", "sweep.budget.epochs=1,2,3")
    assert "run one sweep for each value" in said
    assert "sweep.evaluations" in said
    with pytest.raises(ConfigError, match="run one sweep for each value"):
        Command.read(["sweep=base", "sweep.budget.epochs=1,2,3"]).check()


def planned(tmp_path: Path, *words: str) -> list[str]:
    command = Command.read(words)
    assert command.spec is not None
    return plan_lines(command.spec, command.space, RunFolder(tmp_path))


def test_the_plan_tells_what_was_decided(tmp_path: Path) -> None:
    first, searched, note, *_ = planned(tmp_path, "sweep=lr_grid", "trainer.learning_rate=5e-5")
    assert first == "sweep lr_grid: 2 trials by grid"
    assert searched == "searched: trainer.lr_scheduler_type"
    assert note.startswith("trainer.learning_rate is 5e-05, as typed")


def test_a_large_grid_is_counted_and_a_part_of_one_is_called_so(tmp_path: Path) -> None:
    words = ["sweep=base", "peft.use_rslora=true,false", "peft.r=range(1,100)"]
    words.append("trainer.weight_decay=range(0,1,0.001)")
    first, _, note, _ = planned(tmp_path, *words)
    assert first == "sweep base: 198,000 trials by grid"
    assert "sweep.trials=50 sweep.search=random" in note
    first, _, note, _ = planned(tmp_path, *words, "sweep.trials=5")
    assert first == "sweep base: 5 trials by grid"
    assert note.startswith("the first 5 of the grid's 198,000")


@pytest.mark.parametrize(
    ("words", "rates"),
    [
        ([], [3e-4, 1e-3]),
        (["peft=full"], [3e-5, 1e-4]),
        (["trainer.learning_rate=1e-4,1e-3,1e-2"], [1e-3]),
        (["sweep.first=[{trainer.learning_rate: 2e-4}]"], [2e-4]),
        (["sweep.search=grid", "trainer.learning_rate=1e-4,1e-3"], []),
    ],
)
def test_what_a_file_tries_first_fits_the_method_and_the_space(
    words: list[str], rates: list[float]
) -> None:
    spec = Command.read(["sweep=quick", *words]).spec
    assert spec is not None
    assert [entry["trainer.learning_rate"] for entry in spec.sweep.first] == rates
