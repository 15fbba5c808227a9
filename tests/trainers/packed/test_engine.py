"""Lanes: each is its own solo run, whoever its neighbours are and whatever becomes of them."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packs import (
    adapter,
    alone,
    alone_once,
    distance,
    key,
    pack,
    short_rows,
    small,
    small_base,
    unlike_rows,
)
from support.training import Recorder, stop_at
from torch.overrides import TorchFunctionMode
from transformers.trainer_pt_utils import safe_globals

from sweeps.config.spec import Warm
from sweeps.core.errors import ConfigError, StaleAttemptError
from sweeps.core.trial import Decision, Report, State
from sweeps.storage.run_folder import RunFolder
from trainers.best_checkpoint import load_trained
from trainers.model.loading import load_base
from trainers.packed.checkpoint import commit, first_state
from trainers.packed.compatibility import settings
from trainers.packed.frozen_base import Base
from trainers.trial.checkpoint import verify
from trainers.trial.evaluation import Measured, rows_for
from trainers.trial.failures import DivergedError

UNLIKE = [
    small(peft={"lora_dropout": 0.1}),
    small(
        peft={"r": 8, "use_rslora": True},
        seed=5,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=1,
        lr_scheduler_type="linear",
        weight_decay=0.1,
        max_grad_norm=0.1,
    ),
    small(optim="adafactor", peft={"target_modules": ["q_proj", "down_proj"]}, warmup_steps=0.3),
    small(optim="sgd", optim_args="momentum=0.9", learning_rate=0.05, seed=9, evaluations=4),
    small(
        seed=8,
        peft={"lora_dropout": 0.3, "rank_pattern": {"q_proj": 2}, "init_lora_weights": "gaussian"},
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "threshold": 0.9, "factor": 0.5},
        logging_steps=4,
    ),
]


def assert_same(ours: Recorder, theirs: Recorder, *, rel: float = 1e-5, start: int = 0) -> None:
    """What was trained and measured, from row `start` on; no times, no memory."""
    assert len(ours.trained) == len(theirs.trained[start:])
    for mine, other in zip(ours.trained, theirs.trained[start:], strict=True):
        assert mine == pytest.approx(other, rel=rel, abs=1e-9)
    for mine, other in zip(ours.measured, theirs.measured[-len(ours.measured) :], strict=True):
        assert mine == pytest.approx(other, rel=rel)
    for one, two in zip(ours.reports, theirs.reports[-len(ours.reports) :], strict=True):
        assert one.row_losses is not None
        assert two.row_losses is not None
        assert one.row_losses == pytest.approx(two.row_losses, rel=rel)


@pytest.mark.slow
def test_unlike_lanes_equal_their_solo_runs(tmp_path: Path) -> None:
    made = pack(tmp_path, UNLIKE).finish()
    for place, spec in enumerate(UNLIKE):
        folder, theirs = alone_once(spec)
        assert made.state(place) is State.COMPLETED
        assert_same(made.seen[place], theirs)
        last = theirs.commits[-1][0]
        assert [step for step, _ in made.seen[place].commits] == [s for s, _ in theirs.commits]
        assert (
            distance(made.checkpoint(place, last), RunFolder(folder).checkpoint(key(0), last))
            < 1e-5
        )
        counted = ("step", "examples", "tokens", "optimizer_state_mb")
        assert [[row[name] for name in counted] for row in made.seen[place].rows] == [
            [row[name] for name in counted] for row in theirs.rows
        ]
        assert list(made.seen[place].rows[-1]) == list(theirs.rows[-1])
        assert set(made.seen[place].reports[-1].metrics) == set(theirs.reports[-1].metrics)


@pytest.mark.slow
def test_rows_of_very_unlike_length_flat_padded_and_alone(tmp_path: Path) -> None:
    """Dropout and lanes' scales too: it is drawn as SFTTrainer draws it, for its own padding."""
    specs = [
        small(peft={"lora_dropout": dropout, "lora_alpha": alpha}, per_device_train_batch_size=rows)
        for dropout, alpha, rows in ((0.1, 8, 4), (0.3, 8, 4), (0.0, 4, 4), (0.1, 8, 1))
    ]
    flat, padded = (
        pack(tmp_path / str(pads), specs, data=unlike_rows(), pads=pads).finish()
        for pads in (False, True)
    )
    assert (flat.engine._base.is_flat, padded.engine._base.is_flat) == (True, False)
    for place, spec in enumerate(specs):
        theirs = alone(tmp_path / f"solo-{place}", spec, data=unlike_rows())
        assert_same(flat.seen[place], theirs)
        assert_same(padded.seen[place], theirs)


def test_the_base_is_measured_without_any_lane_and_once(tmp_path: Path) -> None:
    made = pack(tmp_path, UNLIKE[:1])
    made.advance(3)
    made.attach(UNLIKE[3], Recorder(base=True))
    first = made.seen[1].reports[0]
    base = load_base(small_base(), "cpu")
    loss = rows_for(short_rows().evaluation, base, small_base()).measure(base).loss
    assert (first.index, first.metrics["eval_loss"]) == (0, loss)
    assert made.seen[0].reports == []


def test_the_clock_stops_for_a_lane_that_comes_once_the_device_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pack(tmp_path, [small()])
    clock, runs = made.engine._clock, []
    monkeypatch.setattr(
        "trainers.packed.engine.wait_for", lambda _: runs.append(clock._since is not None)
    )
    made.attach(small(seed=4))
    assert runs == [True]


def test_where_the_observer_says_no_there_is_no_lane(tmp_path: Path) -> None:
    made = pack(tmp_path, UNLIKE[:1])
    assert not made.attach(UNLIKE[1], Recorder(welcome=False, base=True))
    assert made.engine.keys == [key(0)]
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [key(0)]


def test_what_cannot_be_built_leaves_the_others_alone(tmp_path: Path) -> None:
    made = pack(tmp_path, UNLIKE[:1])
    made.advance(2)
    with pytest.raises(ConfigError, match=r"peft\.r = 0"):
        made.attach(small(peft={"r": 0}))
    assert made.engine.keys == [key(0)]
    assert_same(made.finish().seen[0], alone_once(UNLIKE[0])[1])


@pytest.mark.slow
def test_lanes_come_and_go_and_the_others_do_not_notice(tmp_path: Path) -> None:
    """Lanes of one shape come, are pruned, diverge and fail: the first one's bits stay."""
    watched = small(peft={"lora_dropout": 0.1})
    quiet = pack(tmp_path / "quiet", [watched]).finish()

    made = pack(tmp_path / "lively", [watched])
    made.advance()
    made.attach(small(seed=4), Recorder(to_report=lambda _: Decision.PRUNE))
    made.attach(small(seed=5, learning_rate=1e30, max_grad_norm=0.0))
    made.attach(small(seed=6), Recorder(fenced=True))
    made.advance(3)
    made.attach(small(seed=7, peft={"r": 2}))
    made.finish()
    assert made.state(1) is State.PRUNED
    assert isinstance(made.ended[2].error, DivergedError)
    assert isinstance(made.ended[3].error, StaleAttemptError)
    assert made.state(4) is State.COMPLETED
    assert_same(made.seen[0], quiet.seen[0], rel=1e-5)
    assert distance(made.checkpoint(0, 6), quiet.checkpoint(0, 6)) < 1e-5
    assert_same(made.seen[4], alone(tmp_path / "solo", made.specs[4]))


def test_a_pruned_lane_keeps_nothing_more(tmp_path: Path) -> None:
    pruning = Recorder(to_report=lambda r: Decision.PRUNE if r.index == 2 else Decision.CONTINUE)
    made = pack(tmp_path, UNLIKE[:1], [pruning]).finish()
    assert made.state(0) is State.PRUNED
    assert [step for step, _ in pruning.commits] == [2]
    assert made.ended[0].outcome is not None
    assert made.ended[0].outcome.totals["steps"] == 4


# -- numbers that are not finite


def poison(made: Any, place: int) -> None:
    lane = next(each for each in made.engine._lanes if each.task.key == key(place))
    lane.slot.weights.fill_(math.nan)


@pytest.mark.slow
def test_a_bad_loss_is_found_before_the_step_and_the_others_keep_their_bits(
    tmp_path: Path,
) -> None:
    alike = [small(seed=seed) for seed in (1, 2, 3)]
    made = pack(tmp_path / "bad", alike)
    made.advance(5)  # two steps, and half of a window
    poison(made, 1)
    made.finish()
    with pytest.raises(DivergedError, match="the training loss is nan at step 3"):
        made.state(1)
    assert [step for step, _ in made.seen[1].commits] == [2]

    other = pack(tmp_path / "told", alike)
    other.advance(5)
    stopper = other.seen[1]
    stopper.to_row = lambda _: Decision.STOP  # leaves where the other diverges
    other.finish()
    for place in (0, 2):
        assert made.seen[place].trained == other.seen[place].trained
        assert made.seen[place].measured == other.seen[place].measured
        ours, theirs = (each.checkpoint(place, 6) for each in (made, other))
        assert torch.equal(adapter(ours), adapter(theirs))


def test_a_bad_evaluation_is_found_and_nothing_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pack(tmp_path, [small(), small(seed=4)])
    measure = made.engine._evaluation.measure

    def spoiled(lanes: Any) -> Any:
        bad = Measured(loss=math.nan, tokens=1)
        every = zip(lanes, measure(lanes), strict=True)
        return [bad if lane.task.key == key(0) else found for lane, found in every]

    monkeypatch.setattr(made.engine._evaluation, "measure", spoiled)
    made.finish()
    with pytest.raises(DivergedError, match="eval_loss is nan at step 2"):
        made.state(0)
    assert (made.seen[0].reports, made.seen[0].commits) == ([], [])
    assert made.state(1) is State.COMPLETED


@pytest.mark.slow
def test_on_a_gpu_a_bad_step_is_undone_at_once_and_found_at_the_next_look(tmp_path: Path) -> None:
    specs = [small(seed=seed, logging_steps=5, evaluations=1) for seed in (1, 2)]
    made = pack(tmp_path / "gpu", specs)
    lanes = {lane.task.key: lane for lane in made.engine._lanes}
    for lane in lanes.values():
        lane.looks_later = True
    made.advance(4)
    bad = lanes[key(0)]
    bad.slot.grads.fill_(math.inf)
    bad.in_window = True  # what a micro-batch left there
    before = bad.slot.weights.clone()
    made.advance(4)  # steps 3 and 4
    assert torch.equal(bad.slot.weights, before)
    assert made.ended == {}
    made.finish()
    with pytest.raises(DivergedError, match=r"the gradient norm is (nan|inf) at step 3"):
        made.state(0)
    assert made.seen[0].commits == []
    assert_same(made.seen[1], pack(tmp_path / "cpu", specs).finish().seen[1])


# -- checkpoints


def stop_and_go(
    root: Path, spec: Any, first: str, second: str, stops: Recorder | None = None
) -> tuple[Recorder, Recorder]:
    """Train to step 3 in one engine, and on from there in another."""
    parts = []
    stops = stops or Recorder(to_row=stop_at(3))
    for engine, seen in ((first, stops), (second, Recorder(attempt=2))):
        if engine == "solo":
            alone(root, spec, seen)
        else:
            neighbour = small(seed=11, peft={"r": 3})
            made = pack(root, [spec], [seen])
            made.attach(neighbour, Recorder(attempt=len(parts) + 1))
            made.finish()
        parts.append(seen)
    return parts[0], parts[1]


@pytest.mark.parametrize(
    ("first", "second"), [("lane", "lane"), ("lane", "solo"), ("solo", "lane")]
)
@pytest.mark.parametrize("place", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_trial_goes_on_in_another_engine(
    tmp_path: Path, first: str, second: str, place: int
) -> None:
    spec = UNLIKE[place]
    whole = alone_once(spec)[1]
    before, after = stop_and_go(tmp_path, spec, first, second)
    assert before.commits[-1][0] == after.step == 3
    assert_same(after, whole, start=3)
    assert after.reports[-1].index == spec.evaluations
    last = RunFolder(tmp_path).checkpoint(key(0), 6)
    assert verify(last).attempt == 2
    folder = RunFolder(alone_once(spec)[0]).checkpoint(key(0), 6)
    assert distance(last, folder) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "steps"),
    [
        ("lane", "lane", 0),
        ("lane", "lane", 2),
        ("lane", "lane", 3),
        ("lane", "solo", 3),
        ("solo", "lane", 3),
    ],
)
def test_stopped_in_the_middle_of_a_window_a_trial_is_as_after_its_last_step(
    tmp_path: Path, first: str, second: str, steps: int
) -> None:
    spec = UNLIKE[0]
    stops = Recorder(stops_after=steps)
    before, after = stop_and_go(tmp_path, spec, first, second, stops)
    assert [step for step, _ in before.commits] == {0: [], 2: [2], 3: [2, 3]}[steps]
    assert (len(before.rows), after.step) == (steps, steps)
    assert_same(after, alone_once(spec)[1], start=steps)


@pytest.mark.slow
def test_a_lane_stopped_in_its_window_leaves_in_one_micro_step(tmp_path: Path) -> None:
    specs = [small(gradient_accumulation_steps=8), small(seed=4)]
    seen = [Recorder(), Recorder()]
    made = pack(tmp_path, specs, seen)
    made.advance(2)
    seen[0].stops_after = 0
    made.advance()
    assert made.state(0) is State.WAITING
    assert seen[0].commits == []
    made.finish()
    assert_same(seen[1], alone_once(specs[1])[1])


def test_dropout_goes_on_whatever_device_the_checkpoint_was_written_on(tmp_path: Path) -> None:
    """A trial on several GPUs saves a list of states; one that trained elsewhere saves no such."""
    made = pack(tmp_path, UNLIKE[:1], [Recorder(to_row=stop_at(3))]).finish()
    builder, folder = made.engine._builder, made.checkpoint(0, 3)
    found = folder, verify(folder)
    with safe_globals():
        saved = torch.load(folder / "rng_state.pth", weights_only=True)
    one, fresh = saved["cpu"], first_state(UNLIKE[0].seed)
    assert not torch.equal(one, fresh)
    for states, expected in [
        (saved, one),
        (saved | {"cpu": [one, fresh]}, one),
        ({name: state for name, state in saved.items() if name != "cpu"}, fresh),
    ]:
        torch.save(states, folder / "rng_state.pth")
        assert torch.equal(builder._stream(UNLIKE[0], found).state, expected)


def test_a_lane_told_to_stop_waits_and_a_finished_one_has_nothing_left(tmp_path: Path) -> None:
    made = pack(tmp_path, [small()], [Recorder(to_row=stop_at(3))]).finish()
    assert made.state(0) is State.WAITING
    assert pack(tmp_path, [small()]).finish().state(0) is State.COMPLETED
    again = pack(tmp_path, [small()])
    again.advance()
    assert again.state(0) is State.COMPLETED
    assert (again.seen[0].rows, again.seen[0].reports, again.seen[0].commits) == ([], [], [])
    assert [report.index for report in again.seen[0].known] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["lane", "solo"])
def test_a_warm_trial_begins_with_anothers_weights_and_a_fresh_optimizer_and_schedule(
    tmp_path: Path, engine: str
) -> None:
    parent = small()
    root, whole = alone_once(parent)
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    best = min(whole.reports, key=lambda report: report.metrics["eval_loss"])
    still = small(learning_rate=1e-30)  # so small that no weight moves
    warm = replace(still, warm=Warm(trial=key(0), step=best.step))
    if engine == "solo":
        seen = alone(tmp_path, warm, place=1)
    else:
        seen = pack(tmp_path, [parent, warm]).finish().seen[1]
    assert seen.step == 0
    losses = [report.metrics["eval_loss"] for report in seen.reports]
    assert losses == pytest.approx([best.metrics["eval_loss"]] * 3, rel=1e-5)
    rates = [row["learning_rate"] for row in whole.rows]
    assert [row["learning_rate"] for row in seen.rows] == pytest.approx(
        [rate * 1e-30 / 2e-3 for rate in rates], rel=1e-9, abs=0
    )
    saved = RunFolder(tmp_path).checkpoint(key(1), 2) / "optimizer.pt"
    state = torch.load(saved, weights_only=True)["state"]
    assert {float(each["step"]) for each in state.values()} == {2.0}


def test_a_lanes_checkpoint_is_sft_trainers(tmp_path: Path) -> None:
    ours = pack(tmp_path, UNLIKE[:1]).finish().checkpoint(0, 6)
    theirs = RunFolder(alone_once(UNLIKE[0])[0]).checkpoint(key(0), 6)
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    configs = [json.loads((each / "adapter_config.json").read_text()) for each in (ours, theirs)]
    for config in configs:
        config["target_modules"] = sorted(config["target_modules"])
    assert configs[0] == configs[1]
    for name in ("optimizer.pt", "scheduler.pt"):
        mine, other = (torch.load(each / name, weights_only=True) for each in (ours, theirs))
        assert describe(mine) == describe(other)


def describe(value: Any) -> Any:
    """The structure of a saved state: names, shapes and types."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, Mapping):
        return {name: describe(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [describe(each) for each in value]
    return type(value)


def test_a_lanes_weights_are_copied_to_main_memory_at_once(tmp_path: Path) -> None:
    """However many matrices there are: on a GPU each copy waits for the device."""

    class Copies(TorchFunctionMode):
        count = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func in (torch.Tensor.to, torch.Tensor.cpu)
            return func(*args, **(kwargs or {}))

    counts = []
    for place, targets in enumerate((["q_proj"], "all-linear")):
        made = pack(tmp_path / str(place), [small(peft={"target_modules": targets})])
        made.advance(2)
        with Copies() as copies:
            commit(made.engine._lanes[0])
        counts.append(copies.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
def test_a_lanes_checkpoint_loads_as_it_was_measured(tmp_path: Path) -> None:
    made = pack(tmp_path, UNLIKE[:2]).finish()
    model = load_trained(made.checkpoint(0, 6), small_base(), "cpu")
    measured = rows_for(short_rows().evaluation, model, small_base()).measure(model)
    reported = made.seen[0].reports[-1].metrics["eval_loss"]
    assert measured.loss == pytest.approx(reported, rel=1e-6)


# -- memory


@pytest.mark.slow
def test_out_of_memory_the_pack_goes_on_in_smaller_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Gradients of what was passed before, and dropout, are as if nothing had happened."""
    specs = [UNLIKE[0], small(seed=6, peft={"lora_dropout": 0.2}), UNLIKE[1], UNLIKE[3]]
    whole = Base.train_pass
    calls: list[int] = []

    def tight(self: Base, lanes: Any, batches: Any) -> Any:
        calls.append(len(lanes))
        result = whole(self, lanes, batches)  # the gradients are there when it happens
        if len(calls) >= 4 and len(lanes) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(Base, "train_pass", tight)
    with caplog.at_level(logging.WARNING, "trainers.packed"):
        made = pack(tmp_path, specs).finish()
    assert [record.message for record in caplog.records] == [
        "out of memory: until one leaves, at most 2 trials pass at once"
    ]
    assert calls[:6] == [4, 4, 4, 4, 2, 2]
    for place, spec in enumerate(specs):
        assert_same(made.seen[place], alone_once(spec)[1])


@pytest.mark.slow
def test_when_the_lane_has_left_that_took_so_much_all_pass_at_once_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried again when a lane has left, and not before: each attempt that fails is a pass lost."""
    made = pack(tmp_path, [small(seed=seed) for seed in (3, 4, 5)])
    made.attach(small(seed=6), Recorder(to_report=lambda _: Decision.PRUNE))
    whole, measured = Base.train_pass, made.engine._evaluation._sums
    passes: list[int] = []
    evaluated: list[int] = []

    def tight(lanes: Any, seen: list[int]) -> None:
        seen.append(len(lanes))
        if len(lanes) > 2 and any(lane.task.key == key(3) for lane in made.engine._lanes):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def train_pass(self: Base, lanes: Any, batches: Any) -> Any:
        tight(lanes, passes)
        return whole(self, lanes, batches)

    def sums(lanes: Any) -> Any:
        tight(lanes, evaluated)
        return measured(lanes)

    monkeypatch.setattr(Base, "train_pass", train_pass)
    monkeypatch.setattr(made.engine._evaluation, "_sums", sums)
    made.advance(3)
    assert passes == [4, 2, 2, 2, 2, 2, 2]
    made.attach(small(seed=7))  # no reason to try again
    made.advance()  # the first report: the lane is pruned
    assert passes[7:] == [2, 2, 1]
    assert evaluated == [4, 2, 2]
    made.advance()
    assert passes[10:] == [4]
    made.finish()
    assert set(passes[11:]) <= {4, 1}  # the one that came later trains on alone
    assert set(evaluated[3:]) <= {3, 1}
    assert_same(made.seen[0], alone_once(small())[1])


def test_a_lost_device_ends_the_whole_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is undone and nobody is tried alone: each call would fail."""
    made = pack(tmp_path, [small(), small(seed=4)])
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    calls: list[int] = []

    def fails(*given: Any) -> Any:
        calls.append(len(given))
        raise lost

    monkeypatch.setattr(made.engine._evaluation, "_sums", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        made.advance(4)
    monkeypatch.setattr(Base, "train_pass", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        made.advance()
    assert len(calls) == 2


@pytest.mark.slow
def test_a_lane_that_alone_is_too_large_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Base.train_pass

    def tight(self: Base, lanes: Any, batches: Any) -> Any:
        if any(lane.task.key == key(1) for lane in lanes):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return whole(self, lanes, batches)

    monkeypatch.setattr(Base, "train_pass", tight)
    made = pack(tmp_path, [small(), small(seed=4), small(seed=5)]).finish()
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        made.state(1)
    assert_same(made.seen[0], alone_once(small())[1])
    assert made.state(2) is State.COMPLETED


@pytest.mark.slow
def test_out_of_memory_in_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = pack(tmp_path, [small(), small(seed=4), small(seed=5)])
    whole = made.engine._evaluation._sums

    def tight(lanes: Any) -> Any:
        if len(lanes) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(lanes)

    monkeypatch.setattr(made.engine._evaluation, "_sums", tight)
    made.finish()
    assert "until one leaves 1 trials at once" in caplog.text
    assert_same(made.seen[0], alone_once(small())[1])


def test_a_lane_gives_its_memory_back(tmp_path: Path) -> None:
    pruning = Recorder(to_report=lambda _: Decision.PRUNE)
    made = pack(
        tmp_path, [small(), small(seed=4), small(peft={"r": 9})], [Recorder(), pruning, pruning]
    )
    banks = made.engine._builder.banks
    assert sorted(len(bank.weights) for bank in banks.values()) == [1, 2]
    made.advance(4)
    assert [len(bank.weights) for bank in banks.values()] == [1]
    made.finish()
    assert not banks


@pytest.mark.slow
def test_reports_and_stops_fall_as_they_do_solo(tmp_path: Path) -> None:
    """Several reports on one step; told to stop at the last step, a trial is complete."""

    def recorder() -> Recorder:
        return Recorder(to_report=lambda _: Decision.STOP)

    specs = [small(evaluations=6), small(evaluations=1, gradient_accumulation_steps=100)]
    made = pack(tmp_path / "pack", specs, [recorder(), recorder()], examples=14).finish()
    for place, spec in enumerate(specs):
        theirs = alone(tmp_path / str(place), spec, recorder(), examples=14)
        assert told(made.seen[place].reports) == told(theirs.reports)
        assert [s for s, _ in made.seen[place].commits] == [s for s, _ in theirs.commits]
    assert (made.state(0), made.state(1)) == (State.WAITING, State.COMPLETED)


def told(reports: list[Report]) -> list[tuple[int, int, int, int]]:
    return [(each.index, each.step, each.examples, each.tokens) for each in reports]


def test_rows_are_padded_if_that_costs_less() -> None:
    base = Base(small(), settings(small()), "cpu")
    unlike = [[50, 4, 3], [6, 7, 2]]
    assert base.is_flat
    base._weights = 10**3
    assert not base.is_worth_it(unlike, 2 * 3 * 50)  # layers are very small
    base._weights = 10**6
    assert base.is_worth_it(unlike, 2 * 3 * 50)
    assert not base.is_worth_it([[9, 9], [9, 9]], 4 * 9)
