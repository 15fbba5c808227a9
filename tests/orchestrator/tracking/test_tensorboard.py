"""TensorBoard's event files, read back by TensorBoard's own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tracked_sweep import CANARY, PUBLIC, Driver, no_account

from orchestrator.config.command import Command
from orchestrator.tracking.tracker import Patience, look_for_server, tracking_problems
from sweeps.config.spec import TrackingSpec

pytest.importorskip("tensorboard")
__all__ = ["no_account"]  # a fixture that every test here uses

RATE = "trainer.learning_rate"


def driver(root: Path, public: dict[str, Any] = PUBLIC, kind: str = "tensorboard") -> Driver:
    return Driver(root, public=public, kind=kind)


def scalars(run: Path, tag: str) -> list[tuple[int, float]]:
    """Step and value of each point that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run))
    found.Reload()
    assert tag in found.Tags()["scalars"], found.Tags()["scalars"]
    return [(each.step, round(each.value, 4)) for each in found.Scalars(tag)]


def run_of(driver: Driver, number: int = 0) -> Path:
    (found,) = driver.folder.tensorboard.glob(f"{number:03d}-*")
    return found


def session_groups(folder: Path) -> Any:
    """HParams' table, as its page asks for it."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler

    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = Context(TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100)
    request.allowed_statuses.extend(
        [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_UNKNOWN]
    )
    experiment = context.experiment_from_metadata(
        RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), None
    )
    return experiment, Handler(RequestContext(), context, "", request).run().session_groups


@pytest.mark.slow
def test_a_trial_is_a_folder_with_its_curves(tmp_path: Path) -> None:
    begun = driver(tmp_path / "run")
    command = f"TensorBoard: tensorboard --logdir {begun.folder.tensorboard}"
    assert begun.line == command
    begun.trial("a", 0, steps=10)
    begun.trial("b", 1, steps=10)
    assert begun.was_never_delayed()
    assert begun.finish() == [command]
    assert run_of(begun, 1).name == "001-lr=2e-4"
    assert scalars(run_of(begun, 1), "train/loss") == [(s, round(1 / s, 4)) for s in range(1, 11)]
    assert scalars(run_of(begun, 1), "eval/loss") == [(5, 3.0), (10, 2.0)]
    assert scalars(run_of(begun, 1), "best_eval_loss") == [(5, 3.0), (10, 2.0)]
    assert not begun.folder.tracking.exists()  # nothing of W&B's


@pytest.mark.slow
def test_hparams_lists_each_trial_with_its_values_and_end(tmp_path: Path) -> None:
    begun = driver(tmp_path / "run")
    begun.trial("a", 0)
    begun.ask("b", 1, **{RATE: 2e-4})
    begun.begin("b")
    begun.end("b", "diverged", kind="diverged", reason=f"in /home/someone/{CANARY}")
    begun.half_trial("c", 2)
    begun.finish()
    experiment, groups = session_groups(begun.folder.tensorboard)
    assert {info.name for info in experiment.hparam_infos} == {RATE, "seed"}
    assert [info.name.tag for info in experiment.metric_infos] == ["best_eval_loss", "eval/loss"]
    rows = {group.name: group for group in groups}
    assert {name: group.hparams[RATE].number_value for name, group in rows.items()} == {
        "0": 1e-4,
        "1": 2e-4,
        "2": pytest.approx(3e-4),
    }
    assert [each.value for each in rows["0"].metric_values] == [1.0, 1.0]
    ended = {name: group.sessions[0].status for name, group in rows.items()}
    assert ended == {"0": 1, "1": 2, "2": 0}  # success, failure, unknown
    written = [file.read_bytes() for file in begun.folder.tensorboard.rglob("events*")]
    assert not any(CANARY.encode() in each or b"/home/someone" in each for each in written)


def test_values_that_are_no_numbers_are_text(tmp_path: Path) -> None:
    space = {"trainer.optim": "choice(sgd, lion)", "peft.target_modules": "choice([a], [a, b])"}
    space["trainer.hub_token"] = "choice(x, y)"
    begun = driver(tmp_path / "run", {**PUBLIC, "sweep": {**PUBLIC["sweep"], "space": space}})
    values = {"trainer.optim": "sgd", "peft.target_modules": ["a", "b"]}
    begun.ask("a", 0, **values, **{"trainer.hub_token": CANARY})
    begun.begin("a")
    begun.end("a")
    begun.finish()
    _, (group,) = session_groups(begun.folder.tensorboard)
    shown = {key: value.string_value for key, value in group.hparams.items() if key != "seed"}
    assert shown == {"trainer.optim": "sgd", "peft.target_modules": "a+b"}


@pytest.mark.slow
def test_a_resumed_trial_goes_on_without_a_point_twice(tmp_path: Path) -> None:
    first = driver(tmp_path / "run")
    first.half_trial("a", steps=5)
    first.report("a", 1, 4, 3.0)
    first.tracker._process.kill()  # type: ignore[union-attr]  # as by kill -9, with rows on its way
    first.rows("a", range(6, 8))
    first.finish()
    second = driver(tmp_path / "run")
    second.begin("a", attempt=2, step=4)
    second.rows("a", range(5, 9))
    second.report("a", 2, 8, 2.0)
    second.end("a")
    second.finish()
    assert [step for step, _ in scalars(run_of(second), "train/loss")] == list(range(1, 9))
    assert scalars(run_of(second), "eval/loss") == [(4, 3.0), (8, 2.0)]
    _, (group,) = session_groups(second.folder.tensorboard)
    assert len(group.sessions) == 1


def test_a_retry_under_one_driver_has_no_point_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Driver, "patience", Patience(linger_s=0.0))
    begun = driver(tmp_path / "run")
    begun.half_trial("a", steps=6)
    begun.begin("a", attempt=2, step=4)
    begun.rows("a", range(5, 9))
    begun.end("a")
    begun.finish()
    assert [step for step, _ in scalars(run_of(begun), "train/loss")] == list(range(1, 9))


@pytest.mark.slow
def test_what_ran_without_it_is_there_too(tmp_path: Path) -> None:
    untracked = Driver(tmp_path / "run", "off")
    untracked.trial("a", steps=6)
    untracked.finish()
    second = driver(tmp_path / "run")
    second.finish()
    assert [step for step, _ in scalars(run_of(second), "train/loss")] == list(range(1, 7))
    before = sorted(run_of(second).iterdir())
    driver(tmp_path / "run").finish()  # all is there
    assert sorted(run_of(second).iterdir()) == before


@pytest.mark.slow
def test_repeats_of_a_config_are_one_row(tmp_path: Path) -> None:
    repeated = {**PUBLIC, "sweep": {**PUBLIC["sweep"], "repeats": 2}}
    begun = driver(tmp_path / "run", repeated)
    begun.trial("a")
    begun.finish()
    assert run_of(begun).name == "000-lr=1e-4-seed=7"
    _, (group,) = session_groups(begun.folder.tensorboard)
    assert group.name == "config 0"


def test_a_missing_package_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look_for_server(TrackingSpec(kind="tensorboard")).startswith("TensorBoard: event files")
    monkeypatch.setattr("orchestrator.tracking.tracker.installed", lambda names: {})
    (problem,) = tracking_problems(TrackingSpec(kind="tensorboard"))
    assert str(problem) == (
        "tracking.kind = tensorboard: needs tensorboard, which is not installed: "
        "pip install 'sft-sweeps[tensorboard]'"
    )
    assert tracking_problems(TrackingSpec(kind="tensorboard", mode="off")) == []
    assert tracking_problems(TrackingSpec()) == []


def test_the_choice_names_no_key_of_anothers() -> None:
    spec = Command.read(["sweep=base", "tracking=tensorboard"]).spec
    assert spec is not None
    assert spec.tracking.kind == "tensorboard"
    text = Path(__file__).parents[3] / "conf" / "tracking" / "tensorboard.yaml"
    assert yaml.safe_load(text.read_text()) == {"kind": "tensorboard"}
