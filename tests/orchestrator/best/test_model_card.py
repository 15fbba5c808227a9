"""best/: its card, its facts, and the command that trains the winner again."""

from __future__ import annotations

import csv
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.driving import SMALL, ending, make
from support.sweep_events import BOX, Sweep

from orchestrator.best.merge import export
from orchestrator.best.model_card import train_again, write_best
from orchestrator.config.command import Command
from orchestrator.config.compose import compose_config
from orchestrator.config.config_files import CONF, groups
from orchestrator.coordinator.actor import CoordinatorActor
from orchestrator.tracking.chart_metrics import ranking_table
from sweeps.config.spec import Spec
from sweeps.config.trial_config import SECTIONS, config_of, trial_key
from sweeps.core.trial import Report, State
from sweeps.ledger import events
from sweeps.ledger.history import Record
from sweeps.results.ranking import Best, best
from sweeps.results.trials_csv import write_table
from sweeps.storage.durable_writes import write_text
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"
BASE = {"index": 0, "step": 0, "examples": 0, "tokens": 0, "metrics": {"eval_loss": 9.5}}


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


@pytest.mark.slow
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
        (["sweep=joint"], {"trainer.lr_scheduler_type": "cosine", "trainer.optim": "sgd"}),
        (["trainer.adam_beta1=0.8", "trainer.optim=adamw_torch,sgd"], {"trainer.optim": "sgd"}),
        (["data=file", "data.path=a", "++data.name=b"], {}),
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
        assert repeated.run_dir == str(Path(f"{spec.run_dir}-again").absolute())


@pytest.mark.slow
def test_the_command_needs_no_files_of_ones_own(tmp_path: Path) -> None:
    base = (CONF / "sweep" / "base.yaml").read_text()
    files = {
        "sweep/base.yaml": base.replace("examples: 1600", "examples: 48"),
        "data/mine.yaml": "defaults: [file, _self_]\npath: x.jsonl\nmax_length: 77\n",
        "trainer/gentle.yaml": "defaults: [sft, _self_]\nmax_grad_norm: 0.25\n",
    }
    for name, text in files.items():
        write_text(tmp_path / name, text)
    words = [f"--config-dir={tmp_path}", "sweep=base", "data=mine", "trainer=gentle"]
    config = config_of(spec_of(*words), {LR: 1e-3})
    repeated = again(spec_of(*words), winner({LR: 1e-3}))
    assert (config["budget"]["examples"], config["trainer"]["max_grad_norm"]) == (48, 0.25)
    assert config_of(repeated, {}) == config


@pytest.mark.slow
def test_the_command_is_short() -> None:
    spec = spec_of("data=file", "data.path=openai.jsonl", "data.max_length=512", "peft=full")
    path = Path("openai.jsonl").absolute()
    assert train_again(spec, winner({LR: 1e-4})) == (
        f"python -m orchestrator sweep=base data=file peft=full data.path={path} "
        f"run_dir={spec.run_dir}-again data.max_length=512 trainer.learning_rate=0.0001 "
        "seed=0 sweep.budget.examples=1600 sweep.evaluations=8"
    )


def test_what_no_command_line_can_say_is_not_made_up() -> None:
    assert train_again(spec_of(), winner({"peft.rank_pattern": {"^model": 4}})) is None


@pytest.mark.slow
def test_a_secret_stays_one_though_it_has_to_be_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", 'abc"def\\')
    command = train_again(spec_of("data=file", "data.path=x"), winner({"peft.a": 'abc"def\\ '}))
    assert command is not None
    assert "abc" not in command


@pytest.mark.slow
def test_no_shipped_default_is_a_mapping_that_an_override_would_be_merged_with() -> None:
    for group in ("data", "peft", "trainer", "model"):
        for choice in groups()[group]:
            words = [f"{group}={choice}", "data.path=x", "model.path=x"]
            config, _, _, _ = compose_config(["sweep=base", *words])
            found = [v for s in SECTIONS for v in config[s].values() if isinstance(v, dict) and v]
            assert found == []


PROOF = {"eval_loss": 8.0, "eval_tokens": 1000.0}


def ended(metric: str, **space: Any) -> Sweep:
    """Two trials: the one that is better by eval_loss is worse by train_loss."""
    sweep = Sweep(space, metric=metric)
    sweep.add(events.Report(trial="base", attempt=1, **BASE, decision="continue"))
    for rate, value in ((1e-3, 2.0), (1e-4, 3.0)):
        sweep.trial({LR: rate}, [value + 1, value], totals={"steps": 8})
    return sweep


def written_best(root: Path, metric: str, **space: Any) -> tuple[str, dict[str, Any]]:
    """README.md and trial.yaml of best/."""
    folder = RunFolder(root)
    history = ended(metric, **space).history()
    found = best(history)
    assert found is not None
    folder.best_draft.mkdir(parents=True)
    write_text(folder.trial_config(found.record.key), "seed: 0")
    spec = spec_of("sweep=lr_grid", f"sweep.metric={metric}", f"run_dir={root}")
    write_best(folder, spec, history, found, PROOF)
    facts = yaml.safe_load((folder.best / "trial.yaml").read_text())
    return (folder.best / "README.md").read_text(), facts


@pytest.mark.slow
def test_what_was_ranked_by_is_named_beside_the_loss_that_was_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, facts = written_best(tmp_path, "train_loss")
    assert (
        "`train_loss` 2.0000, by which the trials were ranked. `eval_loss` 8.0000 nats per "
        "labelled token; the base model has 9.5000. Measured again from these files: 8.0000 over "
        "1,000 tokens."
    ) in card
    assert "| rank | trial | what varies | train_loss |" in card
    assert "| 1 | 0 | lr=1e-3 | 2.0000 |" in card
    assert "sweep.metric=train_loss" in card
    assert (facts["metric"], facts["train_loss"], facts["eval_loss"]) == ("train_loss", 2.0, 8.0)
    (tmp_path / "ledger.jsonl").write_text("")
    export(tmp_path, merge=False, to=None)
    assert "trial 0, train_loss 2.0000, eval_loss 8.0000" in capsys.readouterr().out


def test_export_says_if_best_is_not_the_best_any_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ended("eval_loss")
    folder = RunFolder(sweep.write(tmp_path))
    for number, says in ((0, False), (1, True)):
        sweep.best(folder, number, 8)
        export(tmp_path, merge=False, to=None)
        note = "note: trial 0, step 8, is better than what best/ holds"
        assert (note in capsys.readouterr().out) is says


def test_best_is_merged_though_the_trials_were_removed_to_free_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(ended("eval_loss").write(tmp_path / "run"))
    _, facts = written_best(tmp_path / "run", "eval_loss")
    facts["config"] = config_of(spec_of("sweep=lr_grid"), {})
    write_text(folder.best / "trial.yaml", yaml.safe_dump(facts))
    shutil.rmtree(folder.root / "trials")
    merged: list[Any] = []
    monkeypatch.setattr(
        "trainers.best_checkpoint.merge",
        lambda source, target, model, **_: merged.append((source, target, model.path)),
    )
    assert export(folder.root, merge=True, to=tmp_path / "whole") == 0
    assert merged == [(folder.best, tmp_path / "whole", "tiny")]


def test_the_card_of_a_sweep_by_eval_loss_names_it_once(tmp_path: Path) -> None:
    card, facts = written_best(tmp_path, "eval_loss")
    assert "`eval_loss` 2.0000 nats per labelled token; the base model has 9.5000." in card
    assert "ranked" not in card
    assert "train_loss" not in card
    assert "train_loss" not in facts


@pytest.mark.slow
def test_the_card_says_where_a_wider_sweep_may_find_more(tmp_path: Path) -> None:
    card, _ = written_best(tmp_path / "edge", "eval_loss", **{LR: "choice(1e-4, 1e-3)"})
    assert f"{LR}: the best value, 0.001, is the highest that was tried." in card
    assert f"```sh\n{LR}=0.0001,0.001,0.01\n```\n\n## Load it" in card
    card, _ = written_best(tmp_path / "no_edge", "eval_loss")
    assert " |\n\n## Load it" in card


def test_tables_name_what_was_ranked_by(tmp_path: Path) -> None:
    history = ended("train_loss").history()
    write_table(history, RunFolder(tmp_path))
    (first, *_) = csv.DictReader((tmp_path / "trials.csv").open())
    assert first["train_loss"] == "2.0"
    assert "eval_loss" not in first
    heads, rows = ranking_table(history)
    assert rows[0][heads.index("train_loss")] == 2.0


def test_the_best_is_proven_by_the_eval_loss_of_its_best_step(tmp_path: Path) -> None:
    """Which is not the lowest that it had, when trials are ranked by train_loss."""
    coordinator = CoordinatorActor(
        *make(SMALL, metric="train_loss", search="grid", trials=1), tmp_path
    )
    coordinator.begin(BOX)
    trial = coordinator.next_job("w").trial
    assert trial is not None
    attempt = coordinator.start("w", trial.key, "box:1", "cpu", 0, [])
    assert attempt is not None
    for index, (train_loss, eval_loss) in enumerate([(3.0, 1.0), (2.0, 1.5), (2.5, 1.2)], 1):
        told = Report(
            index=index,
            step=2 * index,
            examples=16 * index,
            tokens=90 * index,
            metrics={"eval_loss": eval_loss, "train_loss": train_loss},
        )
        coordinator.report(trial.key, attempt, told)
    coordinator.end("w", ending(trial.key, attempt, State.COMPLETED))
    job = coordinator.next_job("w")
    assert (job.kind, job.step, job.expected) == ("prove", 4, 1.5)
