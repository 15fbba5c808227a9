"""best/: its card, its facts, and the command that trains the winner again."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from orchestrator.card import train_again
from orchestrator.compose import compose_config, groups
from orchestrator.preparation import Command
from sweeps.history import Record
from sweeps.ranking import Best
from sweeps.resolve import SECTIONS, config_of, trial_key
from sweeps.spec import Spec
from sweeps.trial import Report

LR = "trainer.learning_rate"


def spec_of(*words: str) -> Spec:
    spec = Command.read(words).spec
    assert spec is not None
    return spec


def winner(values: dict[str, Any], repeat: int = 0, seed: int = 0) -> Best:
    metrics = {"eval_loss": 1.0, "train_loss": 0.5}
    report = Report(index=1, step=4, examples=32, tokens=90, metrics=metrics)
    record = Record(key="k", number=0, config=0, repeat=repeat, seed=seed + repeat, values=values)
    return Best(record=record, report=report, mean=1.0, spread=None)


def again(spec: Spec, found: Best) -> Spec:
    """What the command says that is printed for the winner."""
    command = train_again(spec, found)
    assert command is not None
    program, words = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "orchestrator"]
    return spec_of(*words)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {LR: 1e-3, "trainer.lr_scheduler_type": "cosine"}),
        (["sweep=accumulation"], {"trainer.per_device_train_batch_size": 1}),
        (["peft=full"], {LR: 1e-5}),
        (["model=llama3_1_8b", "peft=qlora", "data=file", "data.path=chats.jsonl"], {"peft.r": 4}),
        (["data=file", 'data.path="my shards/*,1.parquet"'], {}),
        (["data=file", "data.path=a", "data.columns={prompt: q\\ 1, completion: true}"], {}),
        (["data=hub", 'data.path="2018"', 'data.name="1e5"', 'data.revision="null"'], {}),
        (["model=hub", 'model.path="./mödel"', 'model.revision="0123456"'], {}),
        (["trainer.optim=sgd", 'trainer.optim_args="momentum=0.9"'], {"trainer.weight_decay": 0}),
        (["trainer.lr_scheduler_kwargs={num_cycles: 2}"], {"trainer.max_grad_norm": True}),
        (["~trainer.weight_decay", "trainer.neftune_noise_alpha=5"], {}),
        (["peft.lora_alpha=${peft.r}"], {"peft.r": 4}),
        (["peft.rank_pattern={layers.0.*: 4}"], {"peft.target_modules": [".*\\.q", "2018"]}),
        ([], {"peft.target_modules": r"model\.layers\.\d+\.'\"(q|v)_proj\\"}),
        ([], {"peft.target_modules": r"\${q} \\${peft.method}"}),
        (["sweep.budget.epochs=0.5", "sweep.evaluations=3", "seed=7"], {}),
        (["run_dir=outputs/my sweep", "sweep.metric=train_loss"], {LR: 1}),
    ],
)
def test_the_command_trains_the_winner_again(words: list[str], values: dict[str, Any]) -> None:
    spec = spec_of(*words)
    for repeat in (0, 2):
        config = config_of(spec, values, repeat)
        repeated = again(spec, winner(values, repeat, spec.seed))
        assert config_of(repeated, {}) == config
        assert trial_key(config_of(repeated, {})) == trial_key(config)
        assert repeated.sweep.metric == spec.sweep.metric
        assert not repeated.sweep.space
        assert repeated.run_dir == f"{spec.run_dir}-again"


def test_the_command_is_short() -> None:
    spec = spec_of("data=file", "data.path=openai.jsonl", "data.max_length=512", "peft=full")
    assert train_again(spec, winner({LR: 1e-4})) == (
        "python -m orchestrator sweep=base data=file peft=full data.path=openai.jsonl "
        f"run_dir={spec.run_dir}-again data.max_length=512 trainer.learning_rate=0.0001 "
        "seed=0 sweep.budget.examples=1600 sweep.evaluations=8"
    )


def test_what_no_command_line_can_say_is_not_made_up() -> None:
    assert train_again(spec_of(), winner({"peft.rank_pattern": {"^model": 4}})) is None


def test_a_secret_stays_one_though_it_has_to_be_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", 'abc"def\\')
    command = train_again(spec_of("data=file", "data.path=x"), winner({"peft.a": 'abc"def\\ '}))
    assert command is not None
    assert "abc" not in command


def test_no_shipped_default_is_a_mapping_that_an_override_would_be_merged_with() -> None:
    for group in ("data", "peft", "trainer", "model"):
        for choice in groups()[group]:
            words = [f"{group}={choice}", "data.path=x", "model.path=x"]
            config, _, _, _ = compose_config(["sweep=base", *words])
            found = [v for s in SECTIONS for v in config[s].values() if isinstance(v, dict) and v]
            assert found == []
