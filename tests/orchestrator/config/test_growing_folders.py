"""A run folder takes the same sweep, or one that has grown; what else changed is told in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.sweep_events import BOX

from orchestrator.config.command import Command
from orchestrator.config.run_folder_claim import claim_folder, refuse_another, write_spec
from sweeps.config.spec import Spec
from sweeps.coordinator.changes import with_changes
from sweeps.core.errors import SweepError
from sweeps.ledger.events import Attempt, Request
from sweeps.ledger.events import Sweep as SweepBegins
from sweeps.ledger.history import read_history
from sweeps.ledger.ledger import Ledger
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"
WORDS = ["sweep=joint", f"{LR}=tag(log, interval(1e-4, 1e-3))", "run_dir=run"]
WIDER = f"{LR}=tag(log, interval(1e-5, 1e-2))"


def spec_of(*words: str) -> Spec:
    spec = Command.read([*WORDS, *words]).spec
    assert spec is not None
    return spec


def begin(folder: RunFolder, spec: Spec, *, first: bool = False) -> None:
    """As the Coordinator does at a start."""
    ledger = Ledger(folder.ledger, lambda _: None)
    if first:
        ledger.append(SweepBegins(name=spec.name, spec=spec.public))
    ledger.append(Attempt(host=BOX.host, pid=BOX.pid, spec=spec.public))
    ledger.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder in which the sweep of WORDS has begun."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    assert claim_folder(folder, spec_of()) == []
    begin(folder, spec_of(), first=True)
    return folder


def test_a_wider_space_is_told_and_taken(folder: RunFolder) -> None:
    (line,) = claim_folder(folder, spec_of(WIDER))
    assert line.startswith(f"grows: sweep.space.{LR}: there 'tag(log, interval(1e-4, 1e-3))', now")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((f"{LR}=tag(log, interval(1e-4, 5e-4))",), "which does not hold 0.0001 to 0.001"),
        ((f"{LR}=1e-4,1e-3",), "which is searched in another way"),
        ((f"sweep.space={{{LR}: choice(1e-4, 1e-3)}}",), "which is no longer searched"),
        (("peft.lora_dropout=0.0,0.1",), "now '0.0,0.1', which was not searched"),
        (("sweep.search=random",), "sweep.search: there 'gp', now 'random'"),
        ((WIDER, "sweep.evaluations=3"), "sweep.evaluations: there 8, now 3"),
    ],
)
def test_all_else_is_refused_with_what_may_grow(
    words: tuple[str, ...], said: str, folder: RunFolder
) -> None:
    with pytest.raises(SweepError, match="may grow: more options or wider intervals") as refused:
        refuse_another(folder, spec_of(*words))
    assert said in str(refused.value)
    assert WIDER not in words or LR not in str(refused.value)


@pytest.mark.slow
def test_what_was_refused_before_it_began_leaves_the_folder_as_it_was(folder: RunFolder) -> None:
    """Say, the data or the model refuses a new value: the sweep goes on as it was."""
    claim_folder(folder, spec_of(WIDER))
    assert claim_folder(folder, spec_of()) == []


@pytest.mark.slow
def test_the_ledger_says_how_far_it_has_grown(folder: RunFolder) -> None:
    """Killed between the ledger's line and sweep.yaml, the wider sweep is the one that began."""
    begin(folder, spec_of(WIDER))
    with pytest.raises(SweepError, match=r"does not hold 1e-05 to 0\.01"):
        claim_folder(folder, spec_of())
    assert claim_folder(folder, spec_of(WIDER)) == []
    written = yaml.safe_load(folder.spec.read_text())
    assert written["sweep"]["space"][LR] == "tag(log, interval(1e-5, 1e-2))"


@pytest.mark.slow
def test_seeds_that_a_user_has_set_the_same_command_goes_on_with(folder: RunFolder) -> None:
    ledger = Ledger(folder.ledger, lambda _: None)
    key = "sweep.repeats"
    asked = Request(request="1", verb="set", by="ann", said="", values={key: 3}, typed={key: 1})
    ledger.append(asked)
    ledger.close()
    assert claim_folder(folder, spec_of()) == []
    begin(folder, with_changes(spec_of(), read_history(folder.ledger)))
    assert claim_folder(folder, spec_of()) == []
    with pytest.raises(SweepError, match=r"sweep\.repeats: there 3, now 2"):
        claim_folder(folder, spec_of("sweep.repeats=2"))


@pytest.mark.slow
def test_values_that_are_new_are_held_against_the_libraries(folder: RunFolder) -> None:
    """What the sweep began with goes on as it is; not what is added."""
    from orchestrator.config.run_folder_claim import holds, is_as_begun

    write_spec(folder, spec_of())
    assert holds(folder, spec_of())
    assert not holds(folder, spec_of(WIDER))
    assert not is_as_begun(spec_of(WIDER), spec_of().public)
    assert is_as_begun(spec_of(WIDER), {})
