"""Whole sweeps: real processes, real training, killed and gone on with."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import yaml
from support.real_sweeps import (
    GRID,
    LR,
    PATIENCE_S,
    SCHEDULE,
    SMALL,
    Command,
    Events,
    clearing_up,
    losses,
    of,
    under_way,
)

from orchestrator.cli import main
from sweeps.config.validation import read_train
from sweeps.results.trials_csv import columns
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import load
from trainers.trial.checkpoint import verify
from trainers.trial.evaluation import rows_for

pytestmark = pytest.mark.slow

UPDATE = (
    "sweep.space={update: choice("
    f"{{{LR}: 1e30, peft.layer_replication: [[0, 3]]}},"
    f"{{{LR}: 1e-3, peft.layer_replication: [[0, 9]]}},"  # raises as it starts: there are 3
    f"{{{LR}: 1e-3, peft.layer_replication: [[0, 3]]}})}}"
)

Make = Callable[..., Command]


@dataclass
class Finished:
    """A sweep that ran undisturbed, the yardstick of the others."""

    command: Command
    output: str
    code: int
    events: Events
    listened_on: set[str]

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.command.run_dir)

    @property
    def proof(self) -> dict[str, object]:
        found: dict[str, object] = yaml.safe_load((self.folder.best / "trial.yaml").read_text())
        return found


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes commands; whatever is left of their processes is ended in the end."""
    made: list[Command] = []

    def command(*words: str) -> Command:
        made.append(Command((*SMALL, "engine=solo", *words), tmp_path_factory.mktemp("sweep")))
        return made[-1]

    with clearing_up(made):
        yield command


@pytest.fixture(scope="module")
def finished(make: Make) -> Finished:
    command = make(GRID, "tracking=offline", "data.test_fraction=0.1", "sweep.keep=2")
    command.start()
    command.wait_until(under_way)
    listened_on = command.listens_on()
    code = command.wait()
    return Finished(command, command.output, code, command.events(), listened_on)


# ---------------------------------------------------------------------- an undisturbed sweep


def test_it_ends_well_and_its_last_lines_name_the_best(finished: Finished) -> None:
    assert finished.code == 0, finished.output
    best = min(finished.command.rows(), key=lambda row: float(row["eval_loss"]))
    *_, said, where = finished.output.strip().splitlines()
    assert said.startswith(f"Best: trial {best['number']} ")
    assert f"eval_loss {float(best['eval_loss']):.4f}" in said
    assert where == f"{finished.folder.best}/"
    for noise in ("Traceback", "gemm_4bit", "Warning", "(raylet)"):
        assert noise not in finished.output


def test_trials_csv_has_the_columns_that_scripts_rely_on(finished: Finished) -> None:
    rows = finished.command.rows()
    assert list(rows[0]) == [*columns("eval_loss"), LR, SCHEDULE]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert {row["status"] for row in rows} == {"completed"}
    assert {(row["steps"], row["examples"]) for row in rows} == {("16", "128")}
    assert {(row[LR], row[SCHEDULE]) for row in rows} == {
        (rate, schedule) for rate in ("0.0001", "0.01") for schedule in ("cosine", "constant")
    }
    told = losses(finished.events)
    for row in rows:
        assert float(row["eval_loss"]) == pytest.approx(min(told[row["key"]]), abs=1e-6)


def test_the_others_are_behind_the_best_by_the_rows_that_both_were_measured_on(
    finished: Finished,
) -> None:
    """Also those whose checkpoints were removed: the losses of their rows stay."""
    first, *others = finished.command.rows()
    assert first["behind"] == ""
    for row in others:
        low, behind, high = (float(row[f"behind{end}"]) for end in ("_low", "", "_high"))
        assert behind == pytest.approx(
            float(row["eval_loss"]) - float(first["eval_loss"]), abs=2e-6
        )
        assert low < behind < high
    assert "95% interval" in finished.output


def test_the_ledger_tells_each_trial_from_ask_to_end(finished: Finished) -> None:
    events = finished.events
    assert [event["event"] for event in events[:2]] == ["sweep", "attempt"]
    assert events[1]["examples"] == 128
    assert len([event for event in of(events, "report") if event["index"] == 0]) == 1
    for ask in of(events, "ask"):
        mine = [event["event"] for event in events if event.get("trial") == ask["trial"]]
        story = [kind for kind in mine if kind not in ("report", "checkpoint", "cost")]
        assert story == ["ask", "start", "end"]
        assert mine.count("checkpoint") == 4
    hosts = {event["worker"] for event in of(events, "start")}
    assert all(host.rpartition(":")[2].isdecimal() for host in hosts)  # host:pid


def test_best_loads_and_measures_what_was_reported(finished: Finished) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    proof = finished.proof
    model = AutoPeftModelForCausalLM.from_pretrained(str(finished.folder.best)).eval()
    assert len(AutoTokenizer.from_pretrained(str(finished.folder.best))) > 0
    data, train = load(finished.folder.data), read_train(proof["config"])  # type: ignore[arg-type]
    measured = rows_for(data.evaluation, model, train.model).measure(model).loss
    assert measured == pytest.approx(proof["eval_loss"], rel=1e-6)
    assert data.test is not None
    tested = rows_for(data.test, model, train.model).measure(model).loss
    assert tested == pytest.approx(proof["proof"]["test_loss"], rel=1e-6)  # type: ignore[index]


def test_the_model_card_and_trial_yaml_say_what_won(finished: Finished) -> None:
    card = (finished.folder.best / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    row, proof = finished.command.rows()[0], finished.proof
    assert head["library_name"] == "peft"
    assert (proof["trial"], proof["step"]) == (row["key"], int(row["best_step"]))
    assert proof["values"] == {LR: float(row[LR]), SCHEDULE: row[SCHEDULE]}
    for part in (
        f"`eval_loss` {float(row['eval_loss']):.4f} nats",
        f"| `{LR}` | 0.01 |",
        "docstrings of the Python standard library",
        "AutoPeftModelForCausalLM.from_pretrained",
        "Loss on the test split, which no decision has seen: ",
        str(proof["again"]),
    ):
        assert part in card


def test_the_command_that_trains_the_winner_again_can_be_run(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(str(finished.proof["again"]))
    assert words[:3] == ["python", "-m", "orchestrator"]
    assert str(finished.proof["again"]) in finished.output
    assert main(["plan", *words[3:]]) == 0
    said = capsys.readouterr().out
    assert "1 trials by grid" in said or "1 trial by grid" in said
    assert "budget: 128 examples" in said


def test_study_db_opens_with_optuna(finished: Finished) -> None:
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{finished.folder.study}")
    assert {trial.state for trial in study.trials} == {optuna.trial.TrialState.COMPLETE}
    assert study.best_value == pytest.approx(finished.proof["eval_loss"])
    assert len(study.trials) == 4
    assert all(len(trial.intermediate_values) == 4 for trial in study.trials)


def test_only_the_best_checkpoints_of_the_best_trials_stay(finished: Finished) -> None:
    rows = finished.command.rows()
    left = {
        (path.parents[1].name, int(path.name.removeprefix("step-")))
        for path in finished.folder.root.glob("trials/*/checkpoints/*")
    }
    assert left == {(row["key"], int(row["best_step"])) for row in rows[:2]}
    for key, step in left:
        assert verify(finished.folder.checkpoint(key, step)).step == step


def test_it_writes_nothing_outside_its_folder(finished: Finished) -> None:
    root = finished.command.root
    outside = [
        str(path.relative_to(root))
        for place in ("cwd", "home")
        for path in (root / place).rglob("*")
        if path.is_file()
    ]
    assert outside == []
    assert {path.name for path in finished.folder.root.iterdir()} == {
        *("best", "data", "ledger.jsonl", "lock", "report.html", "study.db"),
        *("sweep.yaml", "trials", "trials.csv", "wandb"),
    }


def test_nothing_of_it_can_be_reached_from_another_machine(finished: Finished) -> None:
    assert finished.listened_on == {"127.0.0.1"}


def test_what_the_libraries_refuse_leaves_neither_file_nor_process(make: Make) -> None:
    command = make(GRID, "trainer.optim=adamm")  # Ray starts while they are asked
    command.start()
    assert command.process is not None
    assert command.process.wait(PATIENCE_S) == 1
    assert "trainer.optim = adamm: is not an optimizer" in command.output
    assert not command.run_dir.exists()
    assert command.processes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_leaves_neither_file_nor_process(
    make: Make, number: signal.Signals
) -> None:
    command = make(GRID, "tracking=off")
    command.start()
    assert command.process is not None
    while len(command.processes()) < 4:  # Ray's first ones
        assert command.process.poll() is None
    said = command.output
    command.send(number)
    assert command.process.wait(PATIENCE_S) == 128 + number
    assert command.output == f"{said}\n{number.name}: no trial was started.\n"
    assert not command.run_dir.exists()
    assert command.processes() == []


def test_status_shows_the_same_ranking(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(finished.folder.root)]) == 0
    said = capsys.readouterr().out
    assert "Finished" in said
    for row in finished.command.rows():
        assert f"{float(row['eval_loss']):.4f}" in said


def test_the_same_command_again_trains_nothing_and_returns_the_same(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*finished.command.words, f"run_dir={finished.folder.root}"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "ended already" in said
    assert said.strip().splitlines()[-1] == f"{finished.folder.best}/"
    assert finished.command.events() == finished.events


def test_another_spec_on_the_folder_is_refused_with_the_difference(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*finished.command.words, f"run_dir={finished.folder.root}"]
    assert main([*words, "sweep.budget.examples=256", "peft.r=16"]) == 1
    said = capsys.readouterr().err
    assert "sweep.budget.examples: there 128, now 256" in said
    assert "peft.r: there 8, now 16" in said
    assert "run_dir=" in said
    assert finished.command.events() == finished.events


# ---------------------------------------------------------------------- killed


@pytest.mark.long
def test_a_killed_worker_and_a_killed_driver_change_no_number(
    make: Make, finished: Finished
) -> None:
    command = make(GRID, "tracking=off", "data.test_fraction=0.1", "sweep.keep=2")
    command.start()
    command.wait_until(lambda _: (command.run_dir / "lock").exists())
    second = Command(command.words, command.root / "second", command.environment)
    second.root.mkdir()
    second.start(f"run_dir={command.run_dir}")
    assert second.wait() == 3  # the first one still prepares its data
    first = command.wait_until(under_way)
    (start,) = of(command.events(), "start", first)
    os.kill(int(start["worker"].rpartition(":")[2]), signal.SIGKILL)
    again = command.wait_until(lambda events: of(events, "start", first)[1:])
    assert again[0]["step"] >= 4  # from its checkpoint
    assert of(command.events(), "retry", first)

    command.wait_until(lambda events: of(events, "end") and under_way(events))
    command.send(signal.SIGKILL)
    command.wait()
    before = command.events()
    assert f"pid {command.process.pid}" in second.output
    assert command.run() == 0, command.output

    events = command.events()
    assert events[: len(before)] == before
    ended = {event["trial"] for event in of(before, "end")}
    assert not {event["trial"] for event in of(events[len(before) :], "start")} & ended
    assert losses(events) == losses(finished.events)
    proof = yaml.safe_load((command.run_dir / "best" / "trial.yaml").read_text())
    for name in ("trial", "step", "eval_loss", "values", "proof"):
        assert proof[name] == finished.proof[name]
    assert deterministic(command) == deterministic(finished.command)


def deterministic(command: Command) -> list[dict[str, str]]:
    timed = ("seconds", "tokens_per_second", "peak_memory_mb")
    return [{k: v for k, v in row.items() if k not in timed} for row in command.rows()]


@pytest.mark.long
def test_interrupted_by_either_signal_it_commits_and_goes_on(
    make: Make, finished: Finished
) -> None:
    """Ctrl-C; then a SIGTERM that reaches Ray's processes too; then a time budget."""
    command = make(GRID, "tracking=off", "data.test_fraction=0.1", "sweep.keep=2")
    command.start()
    command.wait_until(lambda events: of(events, "end") and under_way(events))
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "go on with the same command" in command.output
    assert shlex.join(command.words) in command.output
    before = command.events()
    (stop,) = (i for i, event in enumerate(before) if event["event"] == "interrupt")
    committed = {event["trial"]: event["step"] for event in of(before, "checkpoint")}
    assert not of(before[stop:], "ask")

    command.start()
    command.wait_until(lambda events: of(events[len(before) :], "start"))
    command.send(signal.SIGTERM, group=True)
    assert command.wait() == 143, command.output
    assert "go on with the same command" in command.output
    for event in of(command.events()[len(before) :], "start"):
        assert event["step"] == committed.get(event["trial"], 0)

    assert command.run("sweep.time_budget_s=0.01") == 0, command.output
    assert "time budget is spent" in command.output
    assert len(of(command.events(), "end")) < 4
    assert (command.run_dir / "best" / "trial.yaml").is_file()
    for trial, found in losses(command.events()).items():
        assert found == losses(finished.events)[trial][: len(found)]


@pytest.mark.long
def test_a_best_that_cannot_be_proven_is_told_and_tried_again(
    make: Make,
) -> None:
    command = make(GRID, "tracking=off", "sweep.max_concurrent=1")
    command.start()
    command.wait_until(lambda events: of(events, "end") and under_way(events))
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output
    saved = "(so far; best/ is written at the end)"
    assert saved in command.output
    assert "orchestrator export" not in command.output
    folder = RunFolder(command.run_dir)
    (checkpoint,) = re.findall(rf"^(\S+)/ {re.escape(saved)}", command.output, re.MULTILINE)
    weights = Path(checkpoint) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    assert command.run("sweep.time_budget_s=0.01") == 1, command.output
    assert not folder.best.exists()
    assert "The best checkpoint could not be made ready: " in command.output
    assert f"The checkpoint, as it was saved: {checkpoint}/" in command.output
    assert "orchestrator export" not in command.output
    assert "go on with the same command" in command.output
    weights.write_bytes(whole)
    assert command.run("sweep.time_budget_s=0.01") == 0, command.output
    assert command.output.count(f"{folder.best}/\n") == 1


@pytest.mark.long
def test_a_sweep_by_training_loss_ranks_and_names_it(make: Make) -> None:
    command = make(GRID, "tracking=off", "sweep.metric=train_loss")
    assert command.run() == 0, command.output
    rows = command.rows()
    assert "eval_loss" not in rows[0]
    assert float(rows[0]["train_loss"]) == min(float(row["train_loss"]) for row in rows)
    assert f", train_loss {float(rows[0]['train_loss']):.4f} at step" in command.output
    facts = yaml.safe_load((command.run_dir / "best" / "trial.yaml").read_text())
    assert (facts["trial"], facts["metric"]) == (rows[0]["key"], "train_loss")
    assert facts["train_loss"] == pytest.approx(float(rows[0]["train_loss"]))
    assert facts["proof"]["eval_loss"] == pytest.approx(facts["eval_loss"], rel=1e-5)
    assert "by which the trials were ranked" in (command.run_dir / "best/README.md").read_text()


# ---------------------------------------------------------------------- trials that fail


@pytest.mark.long
def test_a_failed_trial_and_a_diverged_one_do_not_stop_the_others(make: Make) -> None:
    command = make(UPDATE, "peft.target_modules=[q_proj]", "tracking=off", "sweep.max_concurrent=1")
    assert command.run() == 4, command.output
    completed, diverged, failed = command.rows()
    assert [row["status"] for row in (completed, diverged, failed)] == [
        *("completed", "diverged", "failed")
    ]
    assert (completed["rank"], diverged["rank"], failed["rank"]) == ("1", "", "")
    assert "not finite" in diverged["error"] or "nan" in diverged["error"]
    assert failed["error"].startswith("bug: ")
    assert "index 3 is out of range" in failed["error"]
    traceback = RunFolder(command.run_dir).error(failed["key"]).read_text(encoding="utf-8")
    assert "layer_replication" in traceback
    assert failed["error"][:60] in command.output


@pytest.mark.long
def test_where_all_trials_fail_alike_it_stops_with_one_traceback(make: Make) -> None:
    command = make(  # what is searched is not tried first
        "trainer.learning_rate=1e-4,2e-4,3e-4",
        "sweep.space={peft.layer_replication: choice([[0, 9]])}",
        *("peft.target_modules=[q_proj]", "sweep.max_same_error=2"),
        *("tracking=off", "sweep.max_concurrent=1"),
    )
    assert command.run() == 1
    assert command.output.count("Traceback (most recent call last)") == 1
    assert "the first 2 trials failed with the same error" in command.output
    assert [row["status"] for row in command.rows()] == ["failed", "failed"]


@pytest.mark.long
@pytest.mark.parametrize("engine", ["solo", "packed"])
def test_what_no_trial_could_train_is_refused_before_the_first(make: Make, engine: str) -> None:
    command = make(
        "trainer.gradient_checkpointing=true",
        "trainer.gradient_checkpointing_kwargs={unknown: 1}",  # torch finds out as it trains
        *("tracking=off", f"engine={engine}"),
    )
    assert command.run() == 1
    said = command.output
    assert "one step of the largest micro-batch (8 of the longest rows) fails: " in said
    assert "unknown" in said
    assert "No trial was started." in said
    assert "Traceback" not in said
    (left,) = command.run_dir.iterdir()
    assert left.name == "error.txt"
    assert "Traceback (most recent call last)" in left.read_text()


@pytest.mark.long
def test_a_pruned_tpe_sweep_with_repeats(make: Make) -> None:
    command = make(
        f"sweep.space={{{LR}: choice(1e-5,1e-3,1e-2,1e30), {SCHEDULE}: choice(cosine,constant)}}",
        *("sweep.search=tpe", "sweep.trials=6", "sweep.pruner=asha", "sweep.repeats=2"),
        *("sweep.pruner_options={min_resource: 1, reduction_factor: 2}", "tracking=off"),
    )
    assert command.run() == 0, command.output
    rows = command.rows()
    configs = {(row[LR], row[SCHEDULE]) for row in rows}
    assert len(configs) == 6
    for rate, schedule in configs:
        mine = [row for row in rows if (row[LR], row[SCHEDULE]) == (rate, schedule)]
        assert len({row["seed"] for row in mine}) == len(mine)
        if mine[0]["status"] == "completed":
            assert len(mine) == 2
        if rate == "1e+30":
            assert [row["status"] for row in mine] == ["diverged"]
            assert mine[0]["rank"] == ""
    assert {row["status"] for row in rows} <= {"completed", "pruned", "diverged"}
    pruned = [row for row in rows if row["status"] == "pruned"]
    assert pruned, "ASHA stopped nothing"
    assert all(row["rank"] == "" and int(row["steps"]) < 16 for row in pruned)
    states = states_in(command.run_dir / "study.db")
    assert states.count("PRUNED") == len(pruned)
    assert states.count("FAIL") == len([row for row in rows if row["status"] == "diverged"])
    proof = yaml.safe_load((command.run_dir / "best" / "trial.yaml").read_text())
    assert proof["trial"] in {row["key"] for row in rows if row["rank"] == "1"}


def states_in(study: Path) -> list[str]:
    loaded = optuna.load_study(study_name=None, storage=f"sqlite:///{study}")
    return [trial.state.name for trial in loaded.trials]
