"""Trials on two devices each: the numbers of one device, also when a process dies or hangs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support import apart
from support.real_sweeps import GRID, SMALL, Command, clearing_up, losses, of, other_rank, under_way
from support.sweep_events import history_of, of_kind, read
from support.training import Recorder, prepared, train_spec

from orchestrator.config.command import read_command
from orchestrator.workers.gloo_interface import interface_of
from sweeps.config.spec import TrainSpec
from sweeps.config.validation import read_train
from sweeps.core.errors import ConfigError
from sweeps.ledger.events import Retry, Start
from sweeps.storage.run_folder import RunFolder
from trainers.data.dataset import filled_up, load
from trainers.sft import trainer as sft_trainer
from trainers.trial.ranks import per_rank
from trainers.trial.task import Task

TWO = ("engine.devices_per_trial=2", "cluster.cpus=2")
HANG_S = "12"  # far longer than a step takes here


# ---------------------------------------------------------------------- what each rank trains


@pytest.mark.parametrize(
    ("batch", "accumulation", "ours"),
    [(8, 4, (8, 2)), (8, 2, (8, 1)), (8, 1, (4, 1)), (6, 3, (3, 3))],
)
def test_accumulation_is_shared_out_else_the_micro_batch(
    batch: int, accumulation: int, ours: tuple[int, int]
) -> None:
    spec = train_spec(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    rank: TrainSpec = per_rank(spec, 2)
    assert (rank.batch_size, rank.accumulation_steps) == ours


def test_what_cannot_be_shared_out_is_refused_with_the_ways_out() -> None:
    words = ["sweep=lr_grid", "engine.devices_per_trial=2"]
    with pytest.raises(ConfigError, match=r"3 x 5 rows, and neither can be divided"):
        read_command(
            [
                *words,
                "trainer.per_device_train_batch_size=5",
                "trainer.gradient_accumulation_steps=2,3",
            ]
        )


def test_lanes_do_not_span_devices() -> None:
    with pytest.raises(ConfigError, match="lanes share one device"):
        read_command(["sweep=lr_grid", "engine=packed", "engine.devices_per_trial=2"])


def test_rows_that_fill_up_teach_nothing() -> None:
    rows = prepared().train.select(range(5))
    filled = filled_up(rows, 4)
    assert len(filled) == 8
    assert filled[4]["input_ids"] == rows[4]["input_ids"]
    assert set(filled[7]["labels"]) == {-100}
    assert filled_up(rows, 5) is rows


# ---------------------------------------------------------------------- nodes of their own


def test_the_network_of_a_node_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") == ""


@pytest.mark.long
@pytest.mark.slow
def test_ranks_that_share_no_folder_leave_together_and_go_on_elsewhere(tmp_path: Path) -> None:
    ranks = apart.run(tmp_path)
    events = read(tmp_path / "run" / "ledger.jsonl")
    (record,) = history_of(events).trials.values()
    key, told = record.key, [each.metrics["eval_loss"] for each in record.reports.values()]
    step = of_kind(events, Start)[1].step
    assert step == apart.LEAVES_AT, "it committed where it was told to leave"
    assert [event.kind for event in of_kind(events, Retry)] == ["moved"]
    for disk, rank in zip(apart.DISKS[1], ranks, strict=True):
        assert rank.resumed[0] == ""
        its_own = Path(rank.resumed[1]).relative_to(tmp_path / str(disk))
        assert its_own.name == RunFolder(tmp_path).checkpoint(key, step).name
        assert rank.left[0] == [], "what has moved leaves no copy behind"
    assert ranks[1].left[1] == []
    assert told == pytest.approx(alone(tmp_path, key), rel=1e-5)
    proven = json.loads((tmp_path / "finish.json").read_text())
    assert proven["eval_loss"] == pytest.approx(told[-1], rel=1e-5)


def alone(root: Path, key: str) -> list[float]:
    """The eval_loss of the reports, where the trial is trained on one device."""
    seen = Recorder()
    config = OmegaConf.to_container(OmegaConf.load(RunFolder(root / "run").trial_config(key)))
    train = read_train(config)  # type: ignore[arg-type]
    assert train is not None
    task = Task(
        key="alone",
        train=train,
        examples=apart.EXAMPLES,
        folder=RunFolder(root / "alone"),
        device="cpu",
    )
    sft_trainer.train(task, load(root / "data"), seen)
    return [row[2] for row in seen.measured]


# ---------------------------------------------------------------------- whole sweeps

Make = Callable[..., Command]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes commands; whatever is left of their processes is ended in the end."""
    made: list[Command] = []

    def command(*words: str) -> Command:
        root = tmp_path_factory.mktemp("group")
        made.append(
            Command(
                (*SMALL, GRID, "sweep.trials=2", "tracking=off", *words),
                root,
                {"SWEEPS_HANG_S": HANG_S},
            )
        )
        return made[-1]

    with clearing_up(made):
        yield command


@pytest.mark.cluster
def test_two_devices_give_the_numbers_of_one_whatever_happens_to_them(make: Make) -> None:
    alone = make("engine=solo")
    assert alone.run() == 0, alone.output
    group = make(*TWO)
    group.start()
    first = group.wait_until(under_way)
    os.kill(other_rank(group), signal.SIGKILL)
    group.wait_until(lambda events: of(events, "start", first)[1:])
    group.wait_until(lambda events: len(of(events, "checkpoint")) >= 3)
    os.kill(other_rank(group), signal.SIGSTOP)  # it hangs; the first one waits, but not for ever
    assert group.wait() == 0, group.output
    assert len(of(group.events(), "retry")) == 2
    assert "each trial on 2 devices (ddp)" in group.output
    expected = losses(alone.events())
    assert {key: pytest.approx(v, rel=1e-5) for key, v in expected.items()} == losses(
        group.events()
    )
