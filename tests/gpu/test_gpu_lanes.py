"""Lanes on a GPU beside SFTTrainer, in the number types that a GPU trains in."""

from __future__ import annotations

import math
import statistics
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.cards import CUDA, Matmuls, counted, llama, operators, reseal, rows_of
from support.packs import alone, key, pack, short_rows, small, unlike_rows
from support.training import Recorder, stop_at

from sweeps.config.spec import ModelSpec, TrainSpec
from sweeps.storage.run_folder import RunFolder
from trainers.best_checkpoint import assemble, prove
from trainers.model import kernels
from trainers.packed.compatibility import obstacle
from trainers.packed.dropout import Stream
from trainers.sft.optimizers import available

pytestmark = pytest.mark.gpu

LAST = 6  # step of a trial of packs.EXAMPLES


def trial(model: ModelSpec | None = None, **more: Any) -> TrainSpec:
    return small(model=model or llama(), **{"learning_rate": 3e-4, **more})


def prove_again(folder: Path, spec: TrainSpec, seen: Recorder, place: int) -> None:
    """Raises where the best, loaded as PEFT loads it, has not the loss that was reported."""
    draft = folder / f"draft-{place}"
    assemble(RunFolder(folder).checkpoint(key(place), LAST), draft, spec.model)
    expected = seen.reports[-1].metrics["eval_loss"]
    assert prove(draft, spec, short_rows(), expected=expected, device=CUDA)["eval_tokens"] > 0


# -- the number types


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_the_proof_accepts_what_lanes_report(tmp_path: Path, quantization: str, lanes: int) -> None:
    model = replace(llama(), quantization=quantization)
    specs = [trial(model, seed=seed, peft={"lora_dropout": 0.1}) for seed in range(lanes)]
    if quantization == "int8" and obstacle(specs[0], CUDA):
        pytest.skip("int8 trains alone")
    made = pack(tmp_path, specs, device=CUDA).finish()
    for place, spec in enumerate(specs):
        assert made.state(place) == "completed"
        prove_again(tmp_path, spec, made.seen[place], place)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_the_proof_accepts_what_sft_trainer_reports(tmp_path: Path, quantization: str) -> None:
    spec = trial(replace(llama(), quantization=quantization))
    prove_again(tmp_path, spec, alone(tmp_path, spec, device=CUDA), 0)


@pytest.mark.parametrize(("dtype", "rel"), [("bfloat16", 5e-3), ("float32", 1e-4)])
def test_rows_of_unlike_length_flat_and_padded(tmp_path: Path, dtype: Any, rel: float) -> None:
    """By PyTorch's kernel and grouped matmuls, or padded inside attention and lane by lane."""
    specs = [trial(replace(llama(), dtype=dtype), seed=seed, peft={"r": 8}) for seed in (3, 4)]
    flat, padded = (
        pack(tmp_path / str(pads), specs, data=unlike_rows(), device=CUDA, pads=pads).finish()
        for pads in (False, True)
    )
    assert flat.engine._base.is_flat
    for mine, other in zip(flat.seen, padded.seen, strict=True):
        assert mine.losses == pytest.approx(other.losses, rel=rel)
        assert mine.measured == [pytest.approx(each, rel=rel) for each in other.measured]


def test_thirty_steps_of_a_lane_are_those_of_sft_trainer(tmp_path: Path) -> None:
    specs = [trial(seed=seed, evaluations=2) for seed in (3, 4)]
    made = pack(tmp_path / "pack", specs, examples=240, device=CUDA).finish()
    for place, spec in enumerate(specs):
        theirs = alone(tmp_path / str(place), spec, examples=240, device=CUDA)
        ours = made.seen[place]
        assert len(ours.losses) == len(theirs.losses) == 30
        assert ours.losses == pytest.approx(theirs.losses, abs=5e-3)
        norms = [[row["grad_norm"] for row in seen.rows] for seen in (ours, theirs)]
        ratios = [math.log(mine / other) for mine, other in zip(*norms, strict=True)]
        assert abs(statistics.mean(ratios)) < 5e-4
        for mine, other in zip(ours.measured, theirs.measured, strict=True):
            assert mine == pytest.approx(other, abs=5e-3)


def test_full_fine_tuning_computes_in_bfloat16_and_its_evaluation_too(tmp_path: Path) -> None:
    """Over weights in float32; this thread sees the forward passes and the evaluation."""
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    spec = replace(trial(learning_rate=2e-5), peft={"method": "full"})
    with Matmuls() as seen:
        alone(tmp_path, spec, device=CUDA)
    halves = seen.types[torch.bfloat16]
    assert halves > 100
    assert seen.types.total() - halves <= 0.05 * halves, seen.types


@pytest.mark.parametrize("engine", ["solo", "packed"])
def test_grouped_queries_in_float32_do_without_the_math_kernel(tmp_path: Path, engine: str) -> None:
    """Which keeps all scores."""
    spec = trial(replace(llama(), dtype="float32"), evaluations=1)

    def act() -> None:
        if engine == "solo":
            alone(tmp_path, spec, device=CUDA)
        else:
            pack(tmp_path, [spec], device=CUDA).finish()

    called = operators(act)
    assert not [name for name in called if "attention_math" in name]
    assert [name for name in called if "attention" in name and "aten::" in name]


# -- dropout


def is_kept(stream: Stream, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    """Where the next draw of a lane keeps an activation."""
    return stream.mask("module", shape, dtype, again=False) != 0


def stream_of(seed: int, probability: float = 0.1) -> Stream:
    state = torch.Generator(device=CUDA).manual_seed(seed).get_state()
    return Stream(probability, state, torch.device(CUDA))


SHAPES = [(1, 1, 64), (3, 77, 33), (4, 512, 2048), (2, 129, 8192)]


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5])
def test_a_lanes_masks_are_those_of_f_dropout(probability: float) -> None:
    """In float32, since PEFT casts what comes in to the adapter's type first."""
    lane = stream_of(5, probability)
    torch.cuda.manual_seed(5)
    for shape in SHAPES:
        theirs = F.dropout(torch.ones(shape, device=CUDA), probability, training=True)
        assert torch.equal(is_kept(lane, shape, torch.float32), theirs != 0), shape


def test_lanes_that_draw_in_turn_do_not_disturb_each_other_or_the_global_state() -> None:
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    one, other = stream_of(5), stream_of(6)
    mixed = [(is_kept(one, s, torch.float32), is_kept(other, s, torch.float32)) for s in SHAPES]
    for seed, place in ((5, 0), (6, 1)):
        quiet = stream_of(seed)
        for shape, masks in zip(SHAPES, mixed, strict=True):
            assert torch.equal(is_kept(quiet, shape, torch.float32), masks[place])
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_lane_draws_on_from_a_state_that_was_saved() -> None:
    lane = stream_of(5)
    is_kept(lane, SHAPES[1], torch.float32)
    again = Stream(0.1, lane.state, torch.device(CUDA))
    assert torch.equal(
        is_kept(lane, SHAPES[2], torch.float32), is_kept(again, SHAPES[2], torch.float32)
    )


def test_fused_dropout_draws_what_native_dropout_draws() -> None:
    for shape in SHAPES:
        ones = torch.ones(shape, device=CUDA)
        torch.cuda.manual_seed(5)
        _, native = torch.native_dropout(ones, 0.1, True)
        torch.cuda.manual_seed(5)
        _, fused = torch._fused_dropout(ones, 0.9)
        assert torch.equal(native.bool(), fused.bool())


# -- going on


def test_a_trial_with_dropout_goes_on_from_engine_to_engine(tmp_path: Path) -> None:
    """Alone, as a lane beside another, alone."""
    spec = trial(peft={"lora_dropout": 0.1}, evaluations=6)
    whole = alone(tmp_path / "whole", spec, device=CUDA)
    root = tmp_path / "parts"
    first, second = Recorder(to_row=stop_at(2)), Recorder(to_row=stop_at(4), attempt=2)
    alone(root, spec, first, device=CUDA)
    made = pack(root, [spec], [second], device=CUDA)
    made.attach(trial(seed=9, peft={"r": 3}), Recorder())
    made.finish()
    third = alone(root, spec, Recorder(attempt=3), device=CUDA)
    assert (second.step, third.step) == (2, 4)
    losses = [*first.losses, *second.losses, *third.losses]
    assert losses == pytest.approx(whole.losses, abs=5e-3)


@pytest.mark.parametrize("states", ["a list, one for each device", "none: a CPU's checkpoint"])
def test_a_lane_goes_on_from_a_checkpoint_of_other_devices(tmp_path: Path, states: str) -> None:
    spec = trial(peft={"lora_dropout": 0.1}, evaluations=6)
    alone(tmp_path, spec, Recorder(to_row=stop_at(3)), device=CUDA)

    def change(folder: Path) -> None:
        path = folder / "rng_state.pth"
        found = torch.load(path, weights_only=False)
        found["cuda"] = [found["cuda"], found["cuda"]]
        if states.startswith("none"):
            del found["cuda"]
        torch.save(found, path)

    reseal(RunFolder(tmp_path).checkpoint(key(0), 3), change)
    made = pack(tmp_path, [spec], [Recorder(attempt=2)], device=CUDA).finish()
    assert made.state(0) == "completed"
    assert made.seen[0].step == 3


# -- optimizers


def quantizing(dtype: str) -> list[str]:
    """The optimizers of bitsandbytes that step weights of this type here."""
    ours = ("bnb", "8bit", "paged", "lion", "ademamix", "32bit")
    found = [name for name in available(CUDA, dtype) if any(word in name for word in ours)]
    # Of matrices below 4,096 numbers its states have 32 bits, for which there is no kernel.
    return [name for name in found if (name, dtype) != ("rmsprop_bnb_8bit", "bfloat16")]


@pytest.mark.parametrize("quantization", ["none", "nf4"])  # adapters in float32; in bfloat16
def test_each_optimizer_of_bitsandbytes_steps_a_lane_as_it_steps_sft_trainers_model(
    tmp_path: Path, quantization: str
) -> None:
    model = replace(llama(), quantization=quantization)
    names = quantizing("float32" if quantization == "none" else "bfloat16")
    assert names, "bitsandbytes is not installed"
    specs = [
        trial(model, optim=name, seed=place, learning_rate=1e-4, evaluations=1)
        for place, name in enumerate(names)
    ]
    made = pack(tmp_path / "pack", specs, examples=24, device=CUDA)
    made.advance(2)  # one step: states and kernels are there
    with counted(torch.cuda, "synchronize") as waits:
        made.advance(2)
    assert len(waits) <= len(names), "a wait for each matrix"
    made.finish()
    for place, (name, spec) in enumerate(zip(names, specs, strict=True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = alone(tmp_path / name, spec, examples=24, device=CUDA)
        assert made.state(place) == "completed"
        assert made.seen[place].losses == pytest.approx(theirs.losses, abs=5e-3), name


def test_long_rows_of_unlike_lanes_are_those_of_sft_trainer(tmp_path: Path) -> None:
    """Of hundreds of tokens, as chats are: other kernels than for short rows."""
    data = rows_of([100, 400, 37, 511, 260, 333, 90, 150] * 8)
    specs = [
        trial(seed=1, per_device_train_batch_size=2, evaluations=1),
        trial(seed=2, peft={"r": 16}, per_device_train_batch_size=1, evaluations=1),
    ]
    specs = [replace(spec, data=replace(spec.data, max_length=512)) for spec in specs]
    made = pack(tmp_path / "pack", specs, examples=16, data=data, device=CUDA).finish()
    for place, spec in enumerate(specs):
        theirs = alone(tmp_path / str(place), spec, examples=16, data=data, device=CUDA)
        assert made.seen[place].losses == pytest.approx(theirs.losses, abs=5e-3)


# -- kernels


def test_liger_kernels_serve_a_base_and_lanes_learn_the_same(tmp_path: Path) -> None:
    if kernels.lacking():
        pytest.skip(kernels.EXTRA)
    specs = [
        trial(seed=seed, peft={"r": rank, "lora_dropout": 0.1}, learning_rate=1e-3)
        for seed, rank in ((1, 8), (2, 8), (3, 16))
    ]
    ours, theirs = (
        pack(tmp_path / kind, specs, device=CUDA, kernels=kind) for kind in ("liger", "torch")
    )
    layer = ours.engine._base.model.model.layers[0]
    assert "forward" in vars(layer.mlp), "they were tried, and computed something else"
    assert "forward" in vars(layer.input_layernorm)
    ours.finish()
    theirs.finish()
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        assert mine.losses == pytest.approx(other.losses, abs=5e-3)
    prove_again(tmp_path / "liger", specs[0], ours.seen[0], 0)
