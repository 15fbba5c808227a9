"""Whole sweeps on a GPU through Ray: they end well, and near where a CPU ends."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.cards import CUDA, child, llama
from support.real_sweeps import LR, REPOSITORY, SCHEDULE, SMALL, Command, clearing_up, losses, of

from sweeps.storage.run_folder import RunFolder

pytestmark = pytest.mark.gpu

SPACE = f"sweep.space={{{LR}: choice(1e-4,1e-3), {SCHEDULE}: choice(cosine,constant)}}"
METHODS = {"lora": (), "qlora": ("peft=qlora",), "full": ("peft=full",)}
NEAR = 0.02  # relative, of a loss in bfloat16 after sixteen steps
# Every Python process of a command says as it ends whether it has used CUDA.
_TELLS = """
import atexit, os, sys
def tell():
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    open(os.path.join(os.environ["TELLS"], f"{os.getpid()}-{used}"), "w").close()
atexit.register(tell)
"""

Make = Callable[..., Command]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes commands; whatever is left of their processes is ended in the end."""
    made: list[Command] = []

    def command(*words: str, **environment: str) -> Command:
        root = tmp_path_factory.mktemp("sweep")
        made.append(Command((*SMALL, SPACE, "tracking=off", *words), root, environment))
        return made[-1]

    with clearing_up(made):
        yield command


@pytest.fixture(scope="module")
def on_a_cpu(make: Make) -> Callable[[str], list[list[float]]]:
    """The losses of the same trials; all methods are begun at once, and run beside the GPU's."""
    begun = {
        name: make(*words, "cluster.cpus=2", CUDA_VISIBLE_DEVICES="")
        for name, words in METHODS.items()
    }
    for command in begun.values():
        command.start()

    @functools.cache
    def found(method: str) -> list[list[float]]:
        assert begun[method].wait() == 0, begun[method].output
        return in_order(begun[method])

    return found


def in_order(command: Command) -> list[list[float]]:
    """Losses of each trial, in the order in which they were asked for."""
    by_key = losses(command.events())
    asked = sorted(of(command.events(), "ask"), key=lambda event: event["number"])
    return [by_key[event["trial"]] for event in asked]


def assert_near(ours: list[list[float]], theirs: list[list[float]]) -> None:
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=NEAR)


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("lora", (), "engine: packed"),
        ("lora", ("engine=solo", "engine.gpus_per_trial=0.5"), "2 share a GPU"),
        ("lora", ("engine.gpus_per_trial=0.5",), "2 share a GPU"),
        ("qlora", (), "engine: packed"),
        ("full", (), "engine: solo"),
    ],
    ids=["packed", "solo-halves", "packed-halves", "qlora", "full"],
)
def test_a_sweep_ends_well_and_near_where_a_cpu_ends(
    method: str,
    words: tuple[str, ...],
    said: str,
    make: Make,
    on_a_cpu: Callable[[str], list[list[float]]],
) -> None:
    command = make(*METHODS[method], *words)
    assert command.run() == 0, command.output
    assert said in command.output
    assert {row["status"] for row in command.rows()} == {"completed"}
    assert all("cuda" in event["device"] for event in of(command.events(), "start"))
    assert (RunFolder(command.run_dir).root / "best" / "trial.yaml").is_file()
    assert_near(in_order(command), on_a_cpu(method))


def test_the_driver_holds_no_gpu(make: Make, tmp_path: Path) -> None:
    """Neither its memory nor, where a GPU takes one process at a time, the GPU."""
    place = tmp_path / "told"
    place.mkdir()
    (tmp_path / "sitecustomize.py").write_text(_TELLS)
    there = os.environ.get("PYTHONPATH", "")
    command = make(PYTHONPATH=f"{tmp_path}:{REPOSITORY}:{there}", TELLS=str(place))
    command.start()
    assert command.process is not None
    driver = command.process.pid
    assert command.wait() == 0, command.output
    told = {path.name.partition("-")[0]: path.name.endswith("True") for path in place.iterdir()}
    assert told[str(driver)] is False


# -- two GPUs


@pytest.fixture
def two() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


def test_a_plan_on_a_machine_with_two_gpus_finds_nothing_wrong(two: None, make: Make) -> None:
    command = make()
    command.words = ("plan", *command.words)
    assert command.run() == 0, command.output


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_trials_on_two_gpus_each(
    two: None, strategy: str, make: Make, on_a_cpu: Callable[[str], list[list[float]]]
) -> None:
    command = make("peft=full", "engine.devices_per_trial=2", f"trainer.strategy={strategy}")
    assert command.run() == 0, command.output
    assert_near(in_order(command), on_a_cpu("full"))


_SECOND_RANK = """
import torch
from sweeps.config.spec import ModelSpec
from trainers.model import load_base
torch.cuda.set_device(1)
model = load_base(ModelSpec(path={path!r}), {device!r})
print({{str(weight.device) for weight in model.parameters()}}, torch.cuda.memory_allocated(0))
"""


def test_the_second_rank_loads_nothing_onto_the_first_gpu(two: None) -> None:
    done = child(_SECOND_RANK.format(path=llama().path, device=CUDA))
    assert done.stdout.strip() == "{'cuda:1'} 0", done.stderr
