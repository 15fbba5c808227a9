"""trainer.strategy=fsdp: weights shared out between two ranks, and the numbers of one device."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support import training, two_ranks
from support.real_sweeps import GRID, SMALL, Command, losses, of, other_rank, under_way
from support.training import LORA, TINY
from support.two_ranks import Job, Result

from orchestrator.config.command import read_command
from orchestrator.config.engine_choice import choose
from sweeps.core.errors import ConfigError, SweepError
from trainers.best_checkpoint import load_trained
from trainers.model.loading import load_base
from trainers.sft import fsdp
from trainers.trial.evaluation import rows_for

FULL = {"peft": {"method": "full"}, "learning_rate": 2e-4}
DROPOUT = {"peft": {**LORA, "lora_dropout": 0.1}}
HALF = 2  # a step with a checkpoint

# What is trained on two ranks and on one device.
SPECS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, one micro-batch a step": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
    },
    "lora, clipped hard": {"max_grad_norm": 0.1},
    "lora, not clipped": {"max_grad_norm": 0.0},
    "lora, too thin for two ranks": {"peft": {**LORA, "r": 1}},
    "dora": {"peft": {**LORA, "use_dora": True}},
    "biases": {"peft": {**LORA, "bias": "all"}},
    "embeddings": {"peft": {**LORA, "target_modules": ["q_proj", "embed_tokens"]}},
    "pissa": {"peft": {**LORA, "init_lora_weights": "pissa"}},
    "checkpointing": {"gradient_checkpointing": True},
    "smoothing": {"label_smoothing_factor": 0.1},
    "watching": {"lr_scheduler_type": "reduce_lr_on_plateau"},
    "full": FULL,
    "full, clipped hard": {**FULL, "max_grad_norm": 0.1},
    "adamw_torch_fused": {"optim": "adamw_torch_fused"},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "rmsprop": {"optim": "rmsprop", "learning_rate": 1e-4},
}


def close(values: Any) -> Any:
    return pytest.approx(values, rel=1e-5)


@functools.cache
def alone(name: str) -> training.Run:
    """The trial on one device, uninterrupted; its folder is for looking only."""
    return training.run(training.scratch(), training.train_spec(**SPECS[name]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def sharded(folder: Path) -> dict[str, tuple[Result, Result]]:
    """Each of SPECS on two ranks: to a checkpoint, and from there to its end."""
    jobs = [
        Job(folder=str(folder / name), spec=spec, stop_at=stop, base=stop is not None)
        for name, spec in SPECS.items()
        for stop in (HALF, None)
    ]
    results = iter(two_ranks.train(jobs, folder / "ranks"))
    return {name: (next(results), next(results)) for name in SPECS}


def checkpoint(root: Path, step: int = training.STEPS) -> Path:
    return training.RunFolder(root).checkpoint(training.KEY, step)


# ---------------------------------------------------------------------- numbers and checkpoints


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_two_ranks_that_share_the_weights_give_the_numbers_of_one_device(
    name: str, sharded: dict[str, tuple[Result, Result]]
) -> None:
    first, second = sharded[name]
    one = alone(name).seen
    assert first.shared == second.shared == pytest.approx(0.5, abs=0.02)
    assert first.state == "waiting"
    assert second.begun == HALF
    assert first.losses + second.losses == close(one.losses)
    norms = [row["grad_norm"] for row in first.trained + second.trained]
    assert norms == pytest.approx([row["grad_norm"] for row in one.rows], rel=1e-4)
    assert [row[2] for row in first.measured + second.measured] == close(
        [row[2] for row in one.measured]
    )
    last = one.reports[-1].row_losses
    assert last is not None
    assert [*second.rows[0], *second.rows[1]] == close(last.ravel().tolist())
    assert first.base == close(training.reference().seen.reports[0].metrics["eval_loss"])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "dora", "embeddings", "full"])
def test_a_checkpoint_is_whole_and_plain(
    name: str, folder: Path, sharded: dict[str, tuple[Result, Result]]
) -> None:
    ours, plain = checkpoint(folder / name), alone(name).checkpoints[training.STEPS]
    extra = {"rng_state_0.pth", "rng_state_1.pth"}
    assert {p.name for p in ours.iterdir()} == {p.name for p in plain.iterdir()} | extra
    for path in plain.glob("*.safetensors"):
        there, here = load_file(path), load_file(ours / path.name)
        if name != "embeddings":  # PEFT adds the base's own to a file that one device writes
            assert here.keys() == there.keys()
        for key, weight in here.items():
            torch.testing.assert_close(weight, there[key], rtol=1e-3, atol=1e-5)
    for path in plain.glob("*config.json"):
        assert _settings(ours / path.name) == _settings(path)
    optimizers = [torch.load(at / "optimizer.pt", weights_only=True) for at in (ours, plain)]
    shapes = [torch.utils._pytree.tree_map(_shape, state) for state in optimizers]
    assert shapes[0] == shapes[1]


def _settings(path: Path) -> dict[str, Any]:
    """Lists sorted: PEFT keeps target_modules as a set."""
    read: dict[str, Any] = json.loads(path.read_text())
    return {k: sorted(v, key=str) if isinstance(v, list) else v for k, v in read.items()}


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_checkpoint_loads_by_itself_with_the_loss_that_was_reported(
    name: str, folder: Path, sharded: dict[str, tuple[Result, Result]]
) -> None:
    at = checkpoint(folder / name)
    if name == "lora":
        model: Any = PeftModel.from_pretrained(load_base(TINY, "cpu"), str(at))
    else:
        model = load_trained(at, TINY, "cpu")
    rows = rows_for(training.prepared().evaluation, model, TINY)
    assert rows.measure(model).loss == close(sharded[name][1].measured[-1][2])


@pytest.mark.slow
@pytest.mark.long
def test_going_on_is_exact_and_crosses_from_strategy_to_strategy(folder: Path) -> None:
    """With dropout each rank draws its own masks: exact only where each gets its state back."""
    here = folder / "going on"
    jobs: list[Job] = []

    def job(name: str, strategy: str, spec: dict[str, Any], stop: int | None = None) -> None:
        jobs.append(Job(folder=str(here / name), strategy=strategy, spec=spec, stop_at=stop))

    for strategy in ("ddp", "fsdp"):
        job(f"{strategy}, whole", strategy, DROPOUT)
        job(f"{strategy}, stopped", strategy, DROPOUT, HALF)
        job(f"{strategy}, stopped", strategy, DROPOUT)
    for first, second in (("ddp", "fsdp"), ("fsdp", "ddp")):
        job(f"{first}, then {second}", first, {}, HALF)
        job(f"{first}, then {second}", second, {})
    job("fsdp, then one", "fsdp", {}, HALF)
    one_first = training.Recorder(to_row=training.stop_at(HALF))
    training.run(here / "one, then fsdp", training.train_spec(), one_first)
    job("one, then fsdp", "fsdp", {})
    results = two_ranks.train(jobs, here / "ranks")

    for whole, stopped, rest in (results[0:3], results[3:6]):
        assert stopped.trained + rest.trained == whole.trained
        assert stopped.measured + rest.measured == whole.measured
    expected = close(alone("lora").seen.losses)
    assert results[6].losses + results[7].losses == expected
    assert results[8].losses + results[9].losses == expected
    on_one = training.run(here / "fsdp, then one", training.train_spec()).seen
    assert on_one.step == HALF
    assert results[10].losses + on_one.losses == expected
    assert results[11].begun == HALF
    assert one_first.losses + results[11].losses == expected


# ---------------------------------------------------------------------- what accelerate is told


def test_only_ranks_on_cpus_are_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    for found, told in (
        (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU),
        (DistributedType.NO, DistributedType.NO),
        (DistributedType.MULTI_XPU, DistributedType.MULTI_XPU),
    ):
        monkeypatch.setattr(PartialState, "_shared_state", {"distributed_type": found})
        fsdp.admit_cpus()
        assert PartialState._shared_state["distributed_type"] is told


def test_a_trainer_that_would_not_share_out_its_model_is_not_used() -> None:
    args = SimpleNamespace(device="cpu")
    fsdp.require(SimpleNamespace(is_fsdp_enabled=True, args=args))
    with pytest.raises(SweepError, match=r"accelerate does not share out a model on cpu.*ddp"):
        fsdp.require(SimpleNamespace(is_fsdp_enabled=False, args=args))


def test_nothing_of_it_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with fsdp.building():
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


# ---------------------------------------------------------------------- the command line

COMMAND = ["sweep=lr_grid", "engine.devices_per_trial=2", "trainer.strategy=fsdp"]


def refusal(*words: str, command: list[str] = COMMAND) -> str:
    with pytest.raises(ConfigError) as refused:
        read_command([*command, *words])
    return str(refused.value)


def test_the_strategy_is_said_and_is_not_a_part_of_a_trial() -> None:
    spec, space = read_command(COMMAND)
    assert choose(spec, space, on_gpu=False).why == "engine: solo, each trial on 2 devices (fsdp)"
    other, _ = read_command(["sweep=lr_grid", "trainer.strategy=ddp"])
    assert spec.train == other.train
    assert spec.base == other.base
    assert spec.run_dir == other.run_dir  # so a folder goes on with the other strategy


@pytest.mark.parametrize(
    ("words", "key", "way_out"),
    [
        (["engine.devices_per_trial=1"], "trainer.strategy = fsdp", "engine.devices_per_trial=2"),
        (["peft=qlora"], "model.quantization = nf4", "set it to none"),
        (["trainer.optim=paged_adamw_8bit"], "trainer.optim = paged_adamw_8bit", "adamw_torch"),
        (["trainer.optim=adamw_torch,adafactor"], "trainer.optim = adafactor", "adamw_torch"),
        (["model.dtype=float32,float16"], "model.dtype = float16", "bfloat16 or float32"),
        (["trainer.torch_compile=true"], "trainer.torch_compile = True", "set it to false"),
        (["peft.modules_to_save=[lm_head]"], "peft.modules_to_save", "leave it out"),
        (["engine=packed"], "engine.kind = packed", "engine=solo"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_with_the_way_out(
    words: list[str], key: str, way_out: str
) -> None:
    said = refusal(*words)
    assert key in said
    assert way_out in said


def test_other_words_are_refused_by_name() -> None:
    assert "Did you mean fsdp?" in refusal("trainer.strategy=fsdp2")
    assert "cannot be searched" in refusal("trainer.strategy=ddp,fsdp")
    assert "trainer.strategy=fsdp" in refusal("trainer.fsdp=full_shard", command=COMMAND[:1])


# ---------------------------------------------------------------------- a whole sweep


@pytest.mark.cluster
def test_a_sweep_gives_the_numbers_of_one_device_though_a_rank_dies(tmp_path: Path) -> None:
    words = (*SMALL, GRID, "sweep.trials=2", "tracking=off", "peft=full")
    (tmp_path / "alone").mkdir()
    alone = Command((*words, "engine=solo"), tmp_path / "alone")
    assert alone.run() == 0, alone.output
    (tmp_path / "group").mkdir()
    group = Command((*words, *COMMAND[1:], "cluster.cpus=2"), tmp_path / "group")
    group.start()
    try:
        group.wait_until(under_way)
        os.kill(other_rank(group), signal.SIGKILL)
        assert group.wait() == 0, group.output
    finally:
        group.clear_up()
    assert len(of(group.events(), "retry")) == 1
    assert "each trial on 2 devices (fsdp)" in group.output
    expected = losses(alone.events())
    assert {key: close(values) for key, values in expected.items()} == losses(group.events())
    best = group.run_dir / "best"
    assert (best / "model.safetensors").is_file()
    assert not list(best.glob("rng_state*"))
