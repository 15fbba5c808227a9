"""trainer.bf16=true model.dtype=bfloat16: a CPU computes as a GPU does, in both engines."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packs import alone, alone_once, key, pack, short_rows, small, small_base
from support.training import LORA, Recorder, prepared, run, stop_at, train_spec
from torch import nn

from sweeps.config.spec import ModelSpec, TrainSpec
from sweeps.storage.run_folder import RunFolder
from trainers import best_checkpoint
from trainers.best_checkpoint import assemble, load_trained, prove
from trainers.model import precision
from trainers.model.loading import choose, choose_for, load_base
from trainers.model.lora import adapt, in_training_type
from trainers.packed.compatibility import obstacle
from trainers.packed.lm_head import Head
from trainers.trial.evaluation import Rows, rows_for

EXAMPLES = 240  # 30 steps
HALF = replace(small_base(), dtype="bfloat16")
NF4 = replace(HALF, quantization="nf4")
LEAST = 5e-3  # relative; a last bit of bfloat16 is 4e-3


def half(model: ModelSpec = HALF, **more: Any) -> TrainSpec:
    method = "lora" if model.quantization == "none" else "qlora"
    peft = {"method": method, **more.pop("peft", {})}
    return small(model=model, bf16=True, peft=peft, **more)


def furthest(ours: Recorder, theirs: Recorder) -> float:
    """The largest relative distance between two trials' losses, of training and evaluation."""
    pairs = list(zip(ours.losses, theirs.losses, strict=True))
    for mine, other in zip(ours.measured, theirs.measured, strict=True):
        pairs += zip(mine[2:], other[2:], strict=True)
    return max(abs(a / b - 1) for a, b in pairs)


@functools.cache
def rounding(quantization: str) -> float:
    """How far SFTTrainer is from itself under a change that alters last bits alone: its rows padded
    to a multiple of 16 tokens."""
    spec = half(NF4 if quantization == "nf4" else HALF)
    padded = replace(spec, trainer={**spec.trainer, "pad_to_multiple_of": 16})
    first, second = (alone_once(each, EXAMPLES)[1] for each in (spec, padded))
    return furthest(first, second)


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_lanes_are_as_near_to_sft_trainer_as_it_is_to_itself(
    tmp_path: Path, quantization: str
) -> None:
    model = NF4 if quantization == "nf4" else HALF
    specs = [half(model, peft={"r": rank}, seed=rank) for rank in (4, 4, 8)]
    made = pack(tmp_path, specs, examples=EXAMPLES).finish()
    allowed = max(LEAST, 2 * rounding(quantization))
    assert allowed < 3e-2  # else the test would show nothing
    for place, spec in enumerate(specs):
        assert furthest(made.seen[place], alone_once(spec, EXAMPLES)[1]) < allowed
    assert made.seen[1].losses != made.seen[2].losses


@pytest.mark.slow
@pytest.mark.parametrize("spec", [half(), half(NF4)], ids=["lora", "qlora"])
def test_types_are_those_of_a_gpu(tmp_path: Path, spec: TrainSpec) -> None:
    """Base in bfloat16, adapters and optimizer in float32; QLoRA's adapters in bfloat16."""
    made = pack(tmp_path, [spec])
    (lane,) = made.engine._lanes
    wanted = torch.float32 if spec.model.quantization == "none" else torch.bfloat16
    assert lane.slot.weights.dtype == wanted
    assert made.engine._base.computes == torch.bfloat16
    made.finish()
    theirs = RunFolder(alone_once(spec)[0]).checkpoint(key(0), 6)
    for folder in (made.checkpoint(0, 6), theirs):
        state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
        assert {v.dtype for v in state[0].values() if v.dim()} == {wanted}


@pytest.mark.slow
@pytest.mark.parametrize("spec", [half(), half(NF4)], ids=["lora", "qlora"])
def test_a_lane_is_proven_to_the_last_bit(tmp_path: Path, spec: TrainSpec) -> None:
    """Evaluations round where PEFT rounds: with the sum left unrounded they are 1e-4 apart."""
    made = pack(tmp_path, [spec, replace(spec, seed=9)]).finish()
    expected = made.seen[1].reports[-1].metrics["eval_loss"]
    assemble(made.checkpoint(1, 6), tmp_path / "best", spec.model)
    found = prove(tmp_path / "best", spec, short_rows(), expected=expected, device="cpu")
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("places", [("lane", "solo", "lane"), ("solo", "lane", "solo")])
def test_a_trial_goes_on_from_engine_to_engine(tmp_path: Path, places: tuple[str, ...]) -> None:
    spec = half(peft={"lora_dropout": 0.1})
    whole = alone_once(spec)[1]
    rows: list[Any] = []
    for attempt, place in enumerate(places, start=1):
        stop = stop_at(2 * attempt) if attempt < len(places) else Recorder().to_row
        seen = Recorder(attempt=attempt, to_row=stop)
        if place == "solo":
            alone(tmp_path, spec, seen)
        else:
            pack(tmp_path, [spec], [seen]).finish()
        assert seen.step == 2 * (attempt - 1)
        rows += seen.losses
    assert rows == pytest.approx(whole.losses, rel=max(LEAST, 2 * rounding("none")))


@pytest.mark.slow
def test_full_fine_tuning_keeps_float32_weights_and_computes_in_bfloat16(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    spec = train_spec(peft={"method": "full"}, learning_rate=2e-4, bf16=True)
    trained = run(tmp_path, spec, Recorder(base=True))
    last = trained.checkpoints[6]
    assert {w.dtype for w in load_file(last / "model.safetensors").values()} == {torch.float32}
    assemble(last, tmp_path / "best", spec.model)
    expected = trained.seen.reports[-1].metrics["eval_loss"]
    prove(tmp_path / "best", spec, prepared(), expected=expected, device="cpu")
    model = load_trained(tmp_path / "best", spec.model, "cpu")
    rows = rows_for(prepared().evaluation, model, spec.model)
    assert rows.measure(model, autocast=torch.bfloat16).loss == pytest.approx(expected, rel=1e-6)
    assert rows.measure(model).loss != expected  # else nothing was cast


@pytest.mark.parametrize(
    ("actual", "computes", "is_fine"),
    [
        (1.0 + 5e-6, "float32", True),
        (1.0 + 5e-5, "float32", False),
        (1.0 + 1e-3, "bfloat16", True),
        (1.0 + 1e-2, "bfloat16", False),
    ],
)
def test_the_proof_allows_what_the_number_type_rounds(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    actual: float,
    computes: str,
    is_fine: bool,
) -> None:
    spec = half() if computes == "bfloat16" else small()
    monkeypatch.setattr(
        best_checkpoint, "load_trained", lambda *_, **__: load_base(small_base(), "cpu")
    )
    measured = rows_for(short_rows().evaluation, load_base(small_base(), "cpu"), small_base())
    loss = measured.measure(load_base(small_base(), "cpu")).loss
    monkeypatch.setattr(Rows, "measure", lambda *_, **__: replace_loss(loss * actual))
    if is_fine:
        prove(tmp_path, spec, short_rows(), expected=loss, device="cpu")
    else:
        with pytest.raises(Exception, match="loaded again, has eval_loss"):
            prove(tmp_path, spec, short_rows(), expected=loss, device="cpu")


def replace_loss(loss: float) -> Any:
    from trainers.trial.evaluation import Measured

    return Measured(loss=loss, tokens=9)


# -- float16: GPUs without bfloat16


@pytest.fixture
def t4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_gpu", lambda: True)
    monkeypatch.setattr(precision, "_has_bfloat16", lambda: False)


def test_adapters_of_a_quantized_base_are_float32_under_float16() -> None:
    adapted = adapt(load_base(ModelSpec(path="tiny", quantization="nf4"), "cpu"), LORA)
    trained = [w for w in adapted.parameters() if w.requires_grad]
    assert {w.dtype for w in trained} == {torch.bfloat16}  # as SFTTrainer makes them
    in_training_type(adapted, torch.float16)
    assert {w.dtype for w in trained} == {torch.float32}


@pytest.mark.usefixtures("t4")
def test_on_a_t4_qlora_trains_alone() -> None:
    spec = train_spec(
        peft={**LORA, "method": "qlora"}, model=ModelSpec(path="tiny", quantization="nf4")
    )
    assert obstacle(spec) == ""
    why = "model.quantization=nf4: this GPU computes in float16"
    assert obstacle(spec, "cuda").startswith(why)
    assert obstacle(train_spec(), "cuda") == ""  # in float32


def test_int8_trains_alone_on_a_gpu() -> None:
    spec = train_spec(
        peft={**LORA, "method": "qlora"}, model=ModelSpec(path="tiny", quantization="int8")
    )
    assert obstacle(spec) == ""
    assert obstacle(spec, "cuda").startswith("model.quantization=int8: each lane would wait")


# -- what is chosen


@pytest.mark.parametrize(
    ("bf16", "dtype", "device", "full", "autocast"),
    [
        (None, "auto", "cpu", False, None),
        (None, "bfloat16", "cpu", False, None),
        (True, "bfloat16", "cpu", False, torch.bfloat16),
        (True, "auto", "cpu", False, torch.bfloat16),
        (None, "auto", "cuda", False, torch.bfloat16),
        (None, "auto", "cuda", True, torch.bfloat16),
        (None, "float32", "cuda", True, None),
        (None, "float32", "cuda", False, None),
        (True, "float32", "cuda", False, torch.bfloat16),
        (False, "auto", "cuda", False, None),
        (None, "float16", "cuda", False, torch.float16),
    ],
)
def test_autocast_is_on_a_gpus_default_and_a_cpus_choice(
    bf16: bool | None, dtype: Any, device: str, full: bool, autocast: Any
) -> None:
    spec = ModelSpec(path="tiny", dtype=dtype)
    chosen = choose(spec, device, trains_base=full, bf16=bf16)
    assert chosen.autocast == autocast
    assert chosen.is_half is (autocast is not None or chosen.dtype != torch.float32)


@pytest.mark.usefixtures("t4")
def test_bf16_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(Exception, match=r"trainer\.bf16 = True: this GPU does not compute in bf"):
        choose_for(train_spec(bf16=True), "cuda")
    with pytest.raises(Exception, match=r"trainer\.bf16 = True: does not go with model\.dtype"):
        choose(ModelSpec(path="tiny", dtype="float16"), "cuda", bf16=True)


# -- numbers


def test_the_heads_gradient_is_scaled_before_it_is_rounded() -> None:
    """1 / 7 in bfloat16 is 0.2% too large: for all weights, in one direction."""
    torch.manual_seed(0)
    model = load_base(HALF, "cpu")
    head, width = Head(model), model.config.hidden_size
    hidden = torch.randn(64, width, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 256, (64,))
    (whole,) = torch.autograd.grad(head.score(hidden, targets)[0].sum(), hidden)
    (share,) = torch.autograd.grad((head.score(hidden, targets)[0] / 7).sum(), hidden)
    ratio = share.double().norm() / whole.double().norm() * 7
    assert abs(float(ratio) - 1) < 3e-4


def test_on_a_gpu_passes_are_sized_by_hidden_states(tmp_path: Path) -> None:
    rows = short_rows().evaluation
    options = {"pad_token_id": 0, "vocab_size": 128256}
    small_device, gpu = Rows(rows, **options), Rows(rows, on_gpu=True, **options)
    assert small_device.pass_tokens == 523
    assert gpu.pass_tokens == 2**14
    assert gpu.tokens == small_device.tokens


@pytest.mark.slow
def test_an_evaluation_takes_few_passes_of_many_lanes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pack(tmp_path, [small(seed=seed) for seed in (1, 2, 3)])
    evaluation, base = made.engine._evaluation, made.engine._base
    evaluation._rows = Rows(short_rows().evaluation, pad_token_id=0, vocab_size=256, on_gpu=True)
    passes: list[int] = []
    losses = base.losses

    def counted(ids: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        passes.append(ids.numel())
        return losses(ids, *more)

    monkeypatch.setattr(base, "losses", counted)
    evaluation.measure(made.engine._lanes)
    tokens = sum(batch.ids.numel() for batch in evaluation._rows.batches)
    assert len(passes) <= 3 * tokens / 8192 + len(evaluation._rows.batches)
    assert isinstance(base.model, nn.Module)
