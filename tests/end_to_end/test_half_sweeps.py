"""Whole sweeps on a CPU that computes as a GPU does, in bfloat16: both engines, and QLoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.real_sweeps import GRID, SMALL, Command, clearing_up, losses

pytestmark = pytest.mark.slow

Make = Callable[..., Command]
AS_A_GPU = ("model.dtype=bfloat16", "trainer.bf16=true", "sweep.budget.examples=32")


@pytest.fixture
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes commands that have ended well."""
    made: list[Command] = []

    def command(*words: str) -> Command:
        root = tmp_path_factory.mktemp("half")
        made.append(Command((*SMALL, GRID, "tracking=off", *AS_A_GPU, *words), root))
        assert made[-1].run() == 0, made[-1].output
        return made[-1]

    with clearing_up(made):
        yield command


@pytest.mark.long
def test_a_cpu_that_computes_as_a_gpu_ends_well_in_both_engines(make: Make) -> None:
    """The best is proven in bfloat16, by PEFT, in another process than the lanes' passes."""
    packed, solo = make(), make("engine=solo")
    for command in (packed, solo):
        assert "bfloat16 (as asked for), autocast to bfloat16, causal_sdpa" in command.output
        assert (command.run_dir / "best" / "trial.yaml").is_file()
    ours, theirs = losses(packed.events()), losses(solo.events())
    assert ours == {key: pytest.approx(values, rel=5e-3) for key, values in theirs.items()}
    assert ours != theirs  # each rounds in its own order


@pytest.mark.long
def test_so_does_qlora(make: Make) -> None:
    packed = make("peft=qlora")
    assert "engine: packed" in packed.output
    assert (packed.run_dir / "best" / "trial.yaml").is_file()
