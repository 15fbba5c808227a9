"""A sweep from Python: what it returns, what it raises, and what it leaves as it was."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas
import pytest
import ray
from support.driving import LR, OPTIM, SMALL, drive, make, open_sweep

import orchestrator
from orchestrator.api import Outcome
from orchestrator.cluster.ray_cluster import begin_ray
from orchestrator.cluster.signals import Signals
from orchestrator.driver import Ended
from sweeps.config.spec import ClusterSpec
from sweeps.core.ending import Cause, Stop
from sweeps.core.errors import ConfigError, SweepError
from sweeps.storage.run_folder import RunFolder

Run = Callable[[Signals, Sequence[str]], Ended]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Puts a function in the place of the driver."""
    return lambda run: monkeypatch.setattr("orchestrator.api.run_under", run)


def ended(root: Path, code: int = 0, stop: Stop | None = None, proof_error: str = "") -> Ended:
    return Ended(folder=RunFolder(root), exit_code=code, stop=stop, proof_error=proof_error)


def trained(root: Path) -> Path:
    """A run folder with four completed trials whose losses are a formula."""
    coordinator = open_sweep(make(SMALL, search="grid", trials=None), root)
    drive(coordinator)
    coordinator.close()
    return root


def test_to_import_the_package_costs_nothing() -> None:
    code = "import sys, orchestrator; orchestrator.sweep; print(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "hydra", "optuna", "rich", "yaml"} & set(eval(said.stdout))


def test_what_a_sweep_returns(tmp_path: Path, given: Callable[[Run], None]) -> None:
    words: list[str] = []
    budget = Stop(cause=Cause.TIME_BUDGET)

    def run(signals: Signals, argv: Sequence[str]) -> Ended:
        words.extend(argv)
        return ended(trained(tmp_path / "run"), 4, budget)

    given(run)
    found = orchestrator.sweep(["sweep=lr_grid", "seed=3"])
    assert words == ["sweep=lr_grid", "seed=3"]
    assert isinstance(found, Outcome)
    assert (found.folder, found.metric) == (tmp_path / "run", "eval_loss")
    assert found.stopped == "the time budget is spent"
    assert [row["rank"] for row in found.ranking] == [1, 2, 3, 4]
    first = found.ranking[0]
    assert first[LR] == 1e-3
    assert first[OPTIM] == "adamw_torch"
    assert (first["status"], first["eval_loss"]) == ("completed", found.best.value)
    assert found.best.values == {LR: 1e-3, OPTIM: "adamw_torch"}
    assert found.best.folder == tmp_path / "run" / "best"
    table = pandas.DataFrame(found.ranking)
    assert list(table[LR]) == [row[LR] for row in found.ranking]
    for shown in (repr(found), found._repr_html_()):
        assert "Best: trial " in shown
        assert "adamw_torch" in shown
    assert found._repr_html_().startswith("<pre")
    assert "<" not in repr(found)


def test_files_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Callable[[Run], None]
) -> None:
    words: list[str] = []

    def run(signals: Signals, argv: Sequence[str]) -> Ended:
        words.extend(argv)
        return ended(trained(tmp_path / "run"))

    given(run)
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "a.yaml").touch()
    monkeypatch.chdir(tmp_path)
    orchestrator.sweep(["sweep=a"], config_dir=Path("mine"))
    assert words == [f"--config-dir={tmp_path / 'mine'}", "sweep=a"]
    with pytest.raises(ConfigError, match=r"Did you mean .*mine\?"):
        orchestrator.sweep(["sweep=a"], config_dir="min")


@pytest.mark.parametrize(
    ("stop", "proof_error", "said"),
    [
        (Stop(cause=Cause.SAME_ERROR, details=("3",)), "", "the first 3 trials failed with the sa"),
        (None, "it does not load.", "the best checkpoint could not be made ready: it does not lo"),
        (None, "", "no trial completed. See python -m orchestrator status "),
    ],
)
def test_a_sweep_without_a_result_is_an_error(
    stop: Stop | None, proof_error: str, said: str, tmp_path: Path, given: Callable[[Run], None]
) -> None:
    given(lambda signals, argv: ended(tmp_path, 1, stop, proof_error))
    with pytest.raises(SweepError, match=said):
        orchestrator.sweep(["sweep=lr_grid"])


def test_what_is_refused_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean lr_grid"):
        orchestrator.sweep(["sweep=lrgrid"])
    with pytest.raises(SweepError, match=r"a list of words, as in \['sweep=lr_grid'\]"):
        orchestrator.sweep("sweep=lr_grid")


def test_one_sweep_at_a_time(tmp_path: Path, given: Callable[[Run], None]) -> None:
    def run(signals: Signals, argv: Sequence[str]) -> Ended:
        with pytest.raises(SweepError, match="a sweep runs in this process already"):
            orchestrator.sweep(argv)
        return ended(trained(tmp_path / "run"))

    given(run)
    assert orchestrator.sweep([]) == orchestrator.sweep([])


def test_environment_and_loggers_are_given_back(
    tmp_path: Path, given: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(signals: Signals, argv: Sequence[str]) -> Ended:
        assert str(Path(orchestrator.__file__).parents[1]) in os.environ["PYTHONPATH"]
        os.environ.update(RAY_OURS="1", THEIRS="2")
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        return ended(trained(tmp_path / "run"))

    given(run)
    monkeypatch.setenv("THEIRS", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    before = dict(os.environ), logging.getLogger("ray").level
    orchestrator.sweep([])
    assert (dict(os.environ), logging.getLogger("ray").level) == before


def test_a_ray_of_the_programs_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.ray_cluster._ray", None)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(SweepError, match=r"ray.shutdown\(\) ends it"):
        begin_ray(ClusterSpec())


# ---------------------------------------------------------------------- interrupts


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT; a shell lets what it starts with `&` ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("is_collecting", [False, True], ids=["before", "while it trains"])
def test_an_interrupt_is_the_programs_once_the_sweep_has_stopped(
    is_collecting: bool, tmp_path: Path, given: Callable[[Run], None]
) -> None:
    def run(signals: Signals, argv: Sequence[str]) -> Ended:
        with signals:
            if is_collecting:
                signals.collect(signals.leave, bool)
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.seen
            return ended(tmp_path, 130)

    given(run)
    with pytest.raises(KeyboardInterrupt):
        orchestrator.sweep([])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_leaves_the_sweep_and_not_the_process(
    given: Callable[[Run], None],
) -> None:
    def run(signals: Signals, argv: Sequence[str]) -> Ended:
        with signals:
            signals.collect(signals.leave, bool)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it goes on")

    given(run)
    with pytest.raises(KeyboardInterrupt):
        orchestrator.sweep([])


def test_a_thread_leaves_signals_to_the_program(
    tmp_path: Path, given: Callable[[Run], None]
) -> None:
    found: list[object] = []
    before = signal.getsignal(signal.SIGINT)

    def run(signals: Signals, argv: Sequence[str]) -> Ended:
        with signals:
            signals.take_over()
            found.append(signal.getsignal(signal.SIGINT))
            return ended(trained(tmp_path / "run"))

    given(run)
    thread = threading.Thread(target=lambda: found.append(orchestrator.sweep([])))
    thread.start()
    thread.join()
    assert found[0] is before
    assert isinstance(found[1], Outcome)
