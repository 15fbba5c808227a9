"""What a GPU is asked for, seen without one: launches, devices that mix, reads by the host."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_devices import (
    META,
    HostReadError,
    MixedDevicesError,
    Watch,
    fake_engine,
    model_without_weights,
)
from support.packs import short_rows, small

from sweeps.config.spec import TrainSpec
from trainers.packed import lane, layer

LLAMA_1B = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256},
}
SMALL = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
QUIET = {
    **{"logging_steps": 10**6, "logging_first_step": False, "gradient_accumulation_steps": 1},
    "optim": "adamw_torch",  # `meta` has no fused one
}


def lanes(count: int, shape: dict[str, int], **more: Any) -> list[TrainSpec]:
    model = model_without_weights(**shape)
    peft = more.pop("peft", {})
    return [
        small(model=model, seed=n, peft=peft, evaluations=1, **QUIET | more) for n in range(count)
    ]


def micro_step(
    monkeypatch: pytest.MonkeyPatch, specs: Sequence[TrainSpec], **options: Any
) -> Watch:
    """What one micro-step and optimizer step of all lanes comes to."""
    watch = Watch()
    engine = fake_engine(monkeypatch, specs, short_rows(), watch, **options)
    for _ in range(2):
        watch.launches.clear()  # at first some things are made that stay
        watch.sent = 0
        with watch:
            ended = engine.advance()
        for each in ended:
            raise each.error or AssertionError("a lane ended")
    return watch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "pads"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"peft": {"lora_dropout": 0.1}},
        {"gradient_checkpointing": True, "peft": {"lora_dropout": 0.1}},
        {"optim": "sgd", "max_grad_norm": 0.0},
    ],
)
def test_a_micro_step_waits_for_nothing_and_stays_on_its_device(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], dtype: torch.dtype, pads: bool
) -> None:
    watch = micro_step(monkeypatch, lanes(3, SMALL, **more), dtype=dtype, pads=pads)
    assert watch.sent == 2  # all that is counted or named; how many labels there are


@pytest.mark.slow
def test_unlike_lanes_wait_for_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = lanes(2, SMALL, peft={"lora_dropout": 0.1, "r": 8, "use_rslora": True})
    other = replace(
        second,
        peft={**second.peft, "target_modules": ["q_proj"], "lora_dropout": 0.0},
        trainer={**second.trainer, "per_device_train_batch_size": 3},
    )
    alike = replace(first, peft={**first.peft, "lora_alpha": 4, "lora_dropout": 0.3})
    assert micro_step(monkeypatch, [first, other, alike]).sent == 2


@pytest.mark.slow
def test_an_evaluation_reads_once_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    engine = fake_engine(monkeypatch, lanes(3, SMALL), short_rows(), watch)
    with watch, torch.no_grad():
        sums = engine._evaluation._sums(list(engine._lanes))
    rows = 1 + len(short_rows().evaluation)  # all labels, and those of each row
    assert (sums.shape, sums.device) == ((3, rows), META)
    assert watch.sent == len(engine._evaluation._rows.batches)


EACH_LANE = 30  # launches of its clip, its masked step and its AdamW


@pytest.mark.slow
@pytest.mark.parametrize("pads", [pytest.param(True, marks=pytest.mark.long), False])
@pytest.mark.parametrize("count", [1, 8, pytest.param(32, marks=pytest.mark.long)])
def test_launches_of_a_micro_step(monkeypatch: pytest.MonkeyPatch, count: int, pads: bool) -> None:
    """No more than docs/gpu.md says."""
    page = (Path(__file__).parents[3] / "docs" / "gpu.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {count} \| ([\d,]+) \| ([\d,]+) \| 0 \|$", page, re.MULTILINE)
    specs = lanes(count, LLAMA_1B, peft={"r": 8})
    watch = micro_step(monkeypatch, specs, dtype=torch.bfloat16, pads=pads)
    assert watch.count <= int(row[not pads].replace(",", "")), watch.launches.most_common(20)


@pytest.mark.slow
@pytest.mark.parametrize("pads", [True, False])
def test_lanes_of_one_shape_share_every_launch_of_a_pass(
    monkeypatch: pytest.MonkeyPatch, pads: bool
) -> None:
    """Lanes with unlike numbers of tokens in bfloat16 alone, which grouped matmuls take."""
    one, many = (
        micro_step(monkeypatch, lanes(count, SMALL), dtype=torch.bfloat16, pads=pads)
        for count in (4, 8)
    )
    assert (many.count - one.count) / 4 <= EACH_LANE


# -- the watch itself


@pytest.mark.slow
def test_a_read_in_the_micro_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    add = lane.Lane.add

    def reading(self: lane.Lane, loss: torch.Tensor, hits: torch.Tensor) -> None:
        add(self, loss, hits)
        self.loss.item()

    monkeypatch.setattr(lane.Lane, "add", reading)
    with pytest.raises(HostReadError, match="_local_scalar_dense"):
        micro_step(monkeypatch, lanes(1, SMALL))


@pytest.mark.slow
def test_a_tensor_of_the_host_in_the_micro_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    own = layer._own

    def mixing(*given: Any) -> torch.Tensor:
        return own(*given) * torch.ones(1)

    monkeypatch.setattr(layer, "_own", mixing)
    with pytest.raises(MixedDevicesError, match="mul"):
        micro_step(monkeypatch, lanes(1, SMALL))


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda x: x.tolist(), HostReadError),
        (lambda x: x.nonzero(), HostReadError),
        (lambda x: x[x > 0], HostReadError),
        (lambda x: x.cpu(), HostReadError),
        (lambda x: bool((x > 0).any()), HostReadError),
        (lambda x: x + torch.ones(2), MixedDevicesError),
        (lambda x: x[torch.tensor([0])], MixedDevicesError),
        (lambda x: x.copy_(torch.ones(2)), MixedDevicesError),
        (lambda x: torch.tensor([1.0, 2.0]).to(x.device), MixedDevicesError),
    ],
)
def test_what_the_watch_refuses(act: Any, error: type[Exception]) -> None:
    x = torch.ones(2, device=META)
    with Watch(), pytest.raises(error):
        act(x)


def test_what_the_watch_counts() -> None:
    x = torch.ones(2, 3, device=META)
    with Watch() as watch:
        y = x.t()[0].view(1, 2) * 2.0
        y.add_(torch.tensor(1.0))
        torch.empty_like(y).detach()
    assert watch.launches == {"mul": 1, "add_": 1}
