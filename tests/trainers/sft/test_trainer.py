"""One trial by itself: SFTTrainer's own numbers, counted, reported, stopped and gone on with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.training import (
    EXAMPLES,
    KEY,
    LORA,
    REFERENCE,
    REPORT_STEPS,
    STEPS,
    Recorder,
    Run,
    copy_of_reference,
    prepared,
    reference,
    run,
    stop_at,
    train_spec,
)

from sweeps.config.spec import ModelSpec, TrainSpec
from sweeps.core.trial import Decision, Report, State
from trainers.data.dataset import stream
from trainers.model.loading import load_base
from trainers.model.source import resolve_path
from trainers.sft import trainer as sft_trainer
from trainers.sft.trainer import SweepSFTTrainer
from trainers.trial.checkpoint import verify
from trainers.trial.evaluation import Measured, Rows, rows_for
from trainers.trial.failures import DivergedError

SHORT = 14  # examples: a whole window and a partial one


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[SweepSFTTrainer]:
    """The trainers that `solo.train` makes; the newest is the last."""
    made: list[SweepSFTTrainer] = []
    build = sft_trainer._build

    def remember(*args: Any, **more: Any) -> SweepSFTTrainer:
        made.append(build(*args, **more))
        return made[-1]

    monkeypatch.setattr(sft_trainer, "_build", remember)
    return made


# -- what it tells


@pytest.mark.slow
def test_a_trial_reports_at_equal_shares_of_its_budget() -> None:
    seen = reference().seen
    counted = [(r.index, r.step, r.examples) for r in seen.reports]
    assert counted == [(0, 0, 0), (1, 2, 16), (2, 4, 32), (3, 6, EXAMPLES)]
    assert [step for step, _ in seen.commits] == REPORT_STEPS
    assert reference().outcome.state is State.COMPLETED


def test_tokens_are_those_of_the_rows_seen_without_padding() -> None:
    rows = stream(prepared().train, EXAMPLES, REFERENCE.seed)
    lengths = [len(ids) for ids in rows["input_ids"]]
    for report in reference().seen.reports:
        assert report.tokens == sum(lengths[: report.examples])


def test_report_0_is_the_base_and_comes_once() -> None:
    base = load_base(REFERENCE.model, "cpu")
    loss = rows_for(prepared().evaluation, base, REFERENCE.model).measure(base).loss
    first, *others = reference().seen.reports
    assert first.metrics["eval_loss"] == loss
    assert all(report.index for report in others)


def test_rows_keep_sft_trainers_names_and_carry_the_totals() -> None:
    row = reference().seen.rows[-1]
    assert list(row) == [
        *("step", "loss", "learning_rate", "grad_norm", "mean_token_accuracy"),
        *("steps", "examples", "tokens", "seconds", "tokens_per_second"),
        *("peak_memory_mb", "optimizer_state_mb"),
    ]
    assert row["step"] == row["steps"] == STEPS
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"], rel=1e-6)
    assert [row["step"] for row in reference().seen.rows] == [1, 2, 3, 4, 5, 6]


def test_the_totals_are_the_trials() -> None:
    totals = reference().outcome.totals
    weights = 4 * (3 * 4 * (128 + 128) + 3 * 3 * (128 + 384))  # r=4: attention, and the MLP
    # Adam's two moments, and a step count for each of 42 weights
    assert totals["optimizer_state_mb"] == pytest.approx((2 * weights + 42) * 4 / 2**20, abs=1e-4)
    assert (totals["steps"], totals["examples"]) == (STEPS, EXAMPLES)
    assert totals["peak_memory_mb"] > 100
    assert 0 < totals["seconds"] < 60


def test_a_report_says_what_a_row_says() -> None:
    for report in reference().seen.reports[1:]:
        row = reference().seen.rows[report.step - 1]
        assert report.metrics["train_loss"] == row["loss"]
        assert report.metrics["optimizer_state_mb"] == row["optimizer_state_mb"]
        assert "steps" not in report.metrics


def test_sizes_that_are_told_are_those_on_disk() -> None:
    for step, size in reference().seen.commits:
        files = reference().checkpoints[step].iterdir()
        assert size == sum(f.stat().st_size for f in files if f.name != "MANIFEST.json")


def test_nothing_is_done_where_the_observer_says_no(tmp_path: Path) -> None:
    seen = Recorder(welcome=False, base=True)
    assert run(tmp_path, seen=seen).outcome.state is State.WAITING
    assert (seen.rows, seen.reports, list(tmp_path.iterdir())) == ([], [], [])


# -- the same numbers as SFTTrainer's


def plain_sft_trainer(folder: Path, rows: Dataset) -> list[dict[str, float]]:
    """The log of REFERENCE, written as a user would who has no sweep."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    path = resolve_path("tiny")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder),
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            max_length=64,
            seed=3,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=0.1,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.slow
def test_losses_are_those_of_a_plain_sft_trainer(tmp_path: Path) -> None:
    plain = plain_sft_trainer(tmp_path, stream(prepared().train, EXAMPLES, 3))
    assert len(plain) == STEPS
    for theirs, ours in zip(plain, reference().seen.trained, strict=True):
        assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-6)


@pytest.mark.slow
def test_batch_and_accumulation_that_multiply_alike_train_alike(tmp_path: Path) -> None:
    losses = []
    for batch, accumulation in [(8, 1), (4, 2), (2, 4)]:
        spec = train_spec(
            evaluations=4,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trained = run(tmp_path / str(batch), spec, examples=22)  # the last window has 6 rows
        assert [r.index for r in trained.seen.reports] == [1, 2, 3, 4]
        assert [r.step for r in trained.seen.reports] == [1, 2, 3, 3]
        assert [r.examples for r in trained.seen.reports] == [8, 16, 22, 22]
        evaluated = [r.metrics["eval_loss"] for r in trained.seen.reports]
        losses.append([*trained.seen.losses, *evaluated])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert max(losses[0]) - min(losses[0]) > 0.1  # it did train


# -- stopping, and going on


@pytest.mark.slow
def test_a_trial_told_to_stop_commits_there_and_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    stopped = run(tmp_path, seen=Recorder(to_row=stop_at(3)))
    assert stopped.outcome.state is State.WAITING
    assert [step for step, _ in stopped.seen.commits] == [2, 3]
    assert verify(stopped.checkpoints[3]).trial_reports() == stopped.seen.reports

    went_on = run(tmp_path, seen=Recorder(attempt=2))
    assert went_on.outcome.state is State.COMPLETED
    assert (went_on.seen.step, went_on.seen.known) == (3, stopped.seen.reports)
    assert_same_as(reference(), stopped, went_on)
    manifest = verify(went_on.checkpoints[6])
    assert manifest.attempt == 2
    assert [report["index"] for report in manifest.reports] == [1, 2, 3]
    assert manifest.seconds > verify(went_on.checkpoints[3]).seconds


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "commits"), [(0, []), (2, [2]), (3, [2, 3])])
def test_stopped_in_the_middle_of_a_window_a_trial_is_as_after_its_last_step(
    tmp_path: Path, steps: int, commits: list[int]
) -> None:
    stopped = run(tmp_path, seen=Recorder(stops_after=steps))
    assert stopped.outcome.state is State.WAITING
    assert stopped.outcome.totals["steps"] == steps
    assert [step for step, _ in stopped.seen.commits] == commits
    went_on = run(tmp_path, seen=Recorder(attempt=2))
    assert went_on.seen.step == steps
    assert_same_as(reference(), stopped, went_on)


def assert_same_as(whole: Run, *parts: Run) -> None:
    """All that was trained and measured in parts equals the whole, to the last bit."""
    assert [row for part in parts for row in part.seen.trained] == whole.seen.trained
    assert [report for part in parts for report in part.seen.measured] == whole.seen.measured
    assert parts[-1].outcome.state is whole.outcome.state
    for name in ("steps", "examples", "tokens", "optimizer_state_mb"):
        assert parts[-1].outcome.totals[name] == whole.outcome.totals[name]
    ours, theirs = (run.checkpoints[6] / "adapter_model.safetensors" for run in (parts[-1], whole))
    assert ours.read_bytes() == theirs.read_bytes()


SETTINGS: dict[str, dict[str, Any]] = {
    "adafactor": {
        "optim": "adafactor",
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 2},
        "warmup_steps": 2,
    },
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.1},
    "plateau": {  # every evaluation counts as no better, so the rate falls at the second one
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "threshold": 0.9, "factor": 0.5},
    },
    "adamw_8bit": {"optim": "adamw_8bit", "max_grad_norm": 0.0, "weight_decay": 0.1},
    "rare logs": {"logging_steps": 5, "neftune_noise_alpha": 5.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_is_exact(tmp_path: Path, name: str) -> None:
    spec = replace(train_spec(**SETTINGS[name]), peft=REFERENCE.peft)
    whole = run(tmp_path / "whole", spec)
    stop = Recorder(to_report=lambda report: Decision.STOP, to_row=stop_at(3))
    parts = [run(tmp_path / "parts", spec, stop), run(tmp_path / "parts", spec)]
    assert_same_as(whole, *parts)
    if name == "plateau":
        rates = [row["learning_rate"] for row in whole.seen.rows]
        assert rates == [2e-3] * 4 + [1e-3] * 2


@pytest.mark.slow
def test_a_trial_goes_on_with_half_the_micro_batch(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", train_spec())
    run(tmp_path / "parts", train_spec(), Recorder(to_row=stop_at(3)))
    halved = train_spec(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    rest = run(tmp_path / "parts", halved)
    assert rest.seen.losses == pytest.approx(whole.seen.losses[3:], rel=1e-5)
    assert rest.seen.reports[-1].examples == EXAMPLES


@pytest.mark.slow
def test_a_finished_trial_has_nothing_left_to_train(tmp_path: Path) -> None:
    copy_of_reference(tmp_path)
    again = run(tmp_path)
    assert again.outcome.state is State.COMPLETED
    assert (again.seen.rows, again.seen.reports, again.seen.commits) == ([], [], [])
    assert [report.index for report in again.seen.known] == [1, 2, 3]
    for name in ("steps", "examples", "tokens", "optimizer_state_mb"):
        assert again.outcome.totals[name] == reference().outcome.totals[name]


@pytest.mark.slow
def test_told_to_stop_at_its_last_step_a_trial_is_complete(tmp_path: Path) -> None:
    seen = Recorder(to_row=stop_at(2), to_report=lambda _: Decision.STOP)
    trained = run(tmp_path, train_spec(evaluations=1), seen, examples=SHORT)
    assert trained.outcome.state is State.COMPLETED
    assert [step for step, _ in seen.commits] == [2]


@pytest.mark.slow
def test_told_to_stop_at_a_report_all_reports_of_the_step_are_made(tmp_path: Path) -> None:
    seen = Recorder(to_report=lambda _: Decision.STOP)
    trained = run(tmp_path, train_spec(evaluations=6), seen, examples=SHORT)
    assert trained.outcome.state is State.WAITING
    assert [(report.index, report.step) for report in seen.reports] == [(1, 1), (2, 1), (3, 1)]
    assert len(verify(trained.checkpoints[1]).reports) == 3


def prune_at(index: int) -> Callable[[Report], Decision]:
    return lambda r: Decision.PRUNE if r.index >= index else Decision.CONTINUE


@pytest.mark.slow
def test_a_pruned_trial_ends_at_once_and_saves_nothing_more(tmp_path: Path) -> None:
    pruned = run(tmp_path, seen=Recorder(to_report=prune_at(2)))
    assert pruned.outcome.state is State.PRUNED
    assert pruned.outcome.totals["steps"] == 4
    assert [report.index for report in pruned.seen.reports] == [1, 2]
    assert list(pruned.checkpoints) == [2]


@pytest.mark.slow
def test_pruned_and_told_to_stop_at_once_a_trial_is_pruned(tmp_path: Path) -> None:
    seen = Recorder(to_row=stop_at(1), to_report=prune_at(1))
    pruned = run(tmp_path, train_spec(evaluations=2), seen, examples=SHORT)
    assert pruned.outcome.state is State.PRUNED
    assert pruned.checkpoints == {}


# -- numbers that are not finite


def weights(trainer: SweepSFTTrainer) -> dict[str, torch.Tensor]:
    found = trainer.model.named_parameters()
    return {name: weight.detach().clone() for name, weight in found if weight.requires_grad}


@dataclass
class Poisoner(Recorder):
    """Hands a weight to `poison` once `at` is logged, and keeps the weights as they then are."""

    at: int = 1
    poison: Callable[[torch.Tensor], None] = lambda weight: None
    built: list[SweepSFTTrainer] = field(default_factory=list)
    before: dict[str, torch.Tensor] = field(default_factory=dict)

    def log(self, row: Mapping[str, float]) -> Decision:
        if row["step"] == self.at:
            found = self.built[-1].model.named_parameters()
            self.poison(next(weight for name, weight in found if "mlp.up_proj.lora_A" in name))
            self.before = weights(self.built[-1])
        return super().log(row)

    def assert_nothing_changed(self) -> None:
        assert self.before
        for name, weight in weights(self.built[-1]).items():
            assert torch.equal(weight.nan_to_num(7.0), self.before[name].nan_to_num(7.0))


def fill_with_nan(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.fill_(math.nan)


def spoil_gradient(weight: torch.Tensor) -> None:
    weight.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.slow
def test_a_bad_loss_is_found_before_the_step(tmp_path: Path, built: list[SweepSFTTrainer]) -> None:
    seen = Poisoner(at=3, poison=fill_with_nan, built=built)
    with pytest.raises(DivergedError, match="the training loss is nan at step 4"):
        run(tmp_path, seen=seen)
    seen.assert_nothing_changed()
    assert [step for step, _ in seen.commits] == [2]


@pytest.mark.parametrize("max_grad_norm", [1.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_bad_gradient_is_found_before_the_step(
    tmp_path: Path, built: list[SweepSFTTrainer], max_grad_norm: float
) -> None:
    seen = Poisoner(poison=spoil_gradient, built=built)
    spec = train_spec(max_grad_norm=max_grad_norm, evaluations=1)
    with pytest.raises(DivergedError, match=r"the gradient norm is (inf|nan) at step 2"):
        run(tmp_path, spec, seen, examples=SHORT)
    seen.assert_nothing_changed()
    assert seen.commits == []


@pytest.mark.slow
def test_an_infinite_gradient_is_the_float16_scalers_to_handle(
    tmp_path: Path, built: list[SweepSFTTrainer]
) -> None:
    class Scaler:
        """What a GPU in float16 has; the gradients of the first steps overflow by design."""

        def is_enabled(self) -> bool:
            return True

        def get_scale(self) -> float:
            return 65536.0

        def scale(self, loss: torch.Tensor) -> torch.Tensor:
            return loss

        def state_dict(self) -> dict[str, float]:
            return {}

    def overflow(weight: torch.Tensor) -> None:
        spoil_gradient(weight)
        built[-1].accelerator.scaler = Scaler()

    seen = Poisoner(poison=overflow, built=built)
    # Not skipped here, where there is no GPU: the step is taken, and what it did is found.
    with pytest.raises(DivergedError, match="eval_loss is nan at step 2"):
        run(tmp_path, train_spec(evaluations=1), seen, examples=SHORT)
    assert "grad_norm" in seen.rows[0]
    assert "grad_norm" not in seen.rows[1]  # a row has finite numbers only


@pytest.mark.slow
def test_too_high_a_rate_diverges(tmp_path: Path) -> None:
    seen = Recorder()
    with pytest.raises(DivergedError, match=r"is (nan|inf) at step [23]"):
        run(tmp_path, train_spec(learning_rate=1e30, evaluations=1), seen, examples=24)
    assert all(math.isfinite(loss) for loss in seen.losses)
    assert seen.commits == []


@pytest.mark.slow
def test_a_bad_evaluation_is_found_and_nothing_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rows, "measure", lambda *_, **__: Measured(loss=math.nan, tokens=9))
    seen = Recorder()
    with pytest.raises(DivergedError, match="eval_loss is nan at step 1"):
        run(tmp_path, train_spec(evaluations=2), seen, examples=SHORT)
    assert (seen.reports, seen.commits) == ([], [])


# -- other ways to train


METHODS: dict[str, TrainSpec] = {
    "full": train_spec(peft={"method": "full"}, learning_rate=2e-4),
    "nf4": train_spec(
        peft={**LORA, "method": "qlora"}, model=ModelSpec(path="tiny", quantization="nf4")
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_other_methods_learn_and_go_on_exactly(tmp_path: Path, method: str) -> None:
    whole = run(tmp_path / "whole", METHODS[method], Recorder(base=True))
    losses = [report.metrics["eval_loss"] for report in whole.seen.reports]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.2
    assert {path.name for path in whole.folder.trial(KEY).iterdir()} == {"checkpoints"}
    run(tmp_path / "parts", METHODS[method], Recorder(to_row=stop_at(3)))
    rest = run(tmp_path / "parts", METHODS[method])
    assert rest.seen.trained == whole.seen.trained[3:]
    assert rest.seen.measured == whole.seen.measured[1:]


@pytest.mark.slow
def test_evaluating_a_4bit_model_changes_nothing_about_its_training(tmp_path: Path) -> None:
    """bitsandbytes repacks such weights when it first evaluates on some CPUs."""
    spec = METHODS["nf4"]
    with_base = run(tmp_path / "a", spec, Recorder(base=True), examples=SHORT)
    without = run(tmp_path / "b", replace(spec, evaluations=1), examples=SHORT)
    assert with_base.seen.trained == without.seen.trained
