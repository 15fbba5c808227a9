"""The best value at an edge of what was tried, and losses that still fall: said with a command."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.sweep_events import EXAMPLES, Sweep

from sweeps.core.commands import command_line
from sweeps.results.outlook import Hint, outlook
from sweeps.storage.run_folder import RunFolder

LR, RANK, DECAY = "trainer.learning_rate", "peft.r", "trainer.weight_decay"
FOLDER = RunFolder(Path("outputs/joint-1a2b"))
FLAT = (2.0, 1.5, 1.5, 1.5)
ARGV = ["sweep=joint", f"{LR}=1e-4,1e-3", "run_dir=outputs/mine", "seed=3"]


def begun_by(events: Sweep, argv: list[str]) -> None:
    """Say what started the sweep."""
    events.events[-1] = replace(events.events[-1], command=command_line(argv))


def told(
    expression: Any, losses: dict[Any, float | None], key: str = LR, **sweep: Any
) -> list[Hint]:
    """The hints of a sweep over one key, with the last loss of each value; None: it diverged."""
    events = Sweep({key: expression}, **sweep)
    begun_by(events, ARGV)
    for value, loss in losses.items():
        curve = [] if loss is None else [loss + 1, loss, loss, loss]
        events.trial({key: value}, curve, "diverged" if loss is None else "completed")
    return outlook(events.history(), FOLDER)


def words(hint: Hint) -> list[str]:
    return shlex.split(hint.command)[3:]


def test_a_best_value_at_the_edge_is_told_with_the_command_that_looks_beyond() -> None:
    (hint,) = told("choice(1e-4, 1e-3)", {1e-4: 2.0, 1e-3: 1.0})
    assert hint.text.startswith(f"{LR}: the best value, 0.001, is the highest that was tried.")
    kept = ["sweep=joint", "run_dir=outputs/mine", "seed=3"]  # the same sweep grows
    assert words(hint) == [*kept, f"{LR}=0.0001,0.001,0.01"]


def test_a_sweep_that_grows_gets_more_trials_and_names_its_folder() -> None:
    events = Sweep({LR: "choice(1e-4, 1e-3)"}, search="tpe", trials=2)
    begun_by(events, ["sweep=joint"])
    events.trial({LR: 1e-4}, [2.0, 1.9, 1.9, 1.9])
    events.trial({LR: 1e-3}, [2.0, 1.5, 1.5, 1.5])
    (hint,) = outlook(events.history(), FOLDER)
    # Other words for a searched key would name another folder.
    grown = [f"{LR}=0.0001,0.001,0.01", "sweep.trials=6", "run_dir=outputs/joint-1a2b"]
    assert words(hint) == ["sweep=joint", *grown]


@pytest.mark.parametrize(
    ("key", "expression", "losses", "word"),
    [
        (LR, "choice(1e-4, 3e-4, 1e-3)", {1e-4: 3.0, 3e-4: 2.0, 1e-3: 1.0}, "1e-4,3e-4,1e-3,3e-3"),
        (LR, "choice(1e-3, 1e-4)", {1e-3: 2.0, 1e-4: 1.0}, "1e-5,1e-4,1e-3"),
        (RANK, "choice(4, 8, 16)", {4: 3.0, 8: 2.0, 16: 1.0}, "4,8,16,32"),
        (RANK, "range(6, 9)", {6: 3.0, 7: 2.0, 8: 1.0}, "6,7,8,9"),
        (DECAY, "choice(0.0, 0.01, 0.1)", {0.0: 3.0, 0.01: 2.0, 0.1: 1.0}, None),  # not 1.0
        (DECAY, "choice(0.0, 0.01)", {0.0: 1.0, 0.01: 2.0}, None),  # nothing lies below 0
        ("trainer.gradient_accumulation_steps", "choice(1, 2)", {1: 1.0, 2: 2.0}, None),
        (LR, "tag(log, interval(1e-5, 1e-2))", {1e-4: 2.0, 9e-3: 1.0}, "tag(log, interval(1e-05, "),
        (RANK, "tag(log, int, interval(4, 16))", {4: 1.0, 9: 2.0}, None),
        (DECAY, "interval(0.0, 0.1)", {0.05: 2.0, 0.1: 1.0}, "interval(0.0, 0.2)"),
        (LR, "choice(1e-4, 1e-3, 1e-2)", {1e-4: 2.0, 1e-3: 1.0, 1e-2: None}, None),  # bracketed
        (LR, "choice(1e-4, 1e-3)", {1e-4: 1.0}, None),  # one value has no edge
        ("trainer.optim", "choice(a, b)", {"a": 1.0, "b": 2.0}, None),
        ("update", [{LR: 1e-4}, {LR: 1e-3}], {"x": 1.0}, None),
    ],
)
def test_how_a_space_is_widened(
    key: str, expression: Any, losses: dict[Any, Any], word: str | None
) -> None:
    hints = told(expression, losses, key)
    assert len(hints) == (word is not None)
    if word is not None and "interval" not in word:
        name, _, values = words(hints[0])[-1].partition("=")
        assert name == key
        assert [*map(float, values.split(","))] == [*map(float, word.split(","))]
    elif word is not None:
        assert words(hints[0])[-1].startswith(f"{key}={word}")


@pytest.mark.parametrize(
    ("search", "expression"),
    [("quick", "tag(log, interval(1e-7, 1.0))"), ("grid", "choice(1e-5, 1e-4, 1e-3, 1e-2)")],
)
def test_more_trials_are_the_way_if_the_space_goes_further(search: str, expression: str) -> None:
    (hint,) = told(expression, {1e-4: 2.0, 1e-3: 1.0}, search=search)
    assert words(hint)[-1] == "sweep.trials=6"
    assert "run_dir=outputs/mine" in words(hint)  # the same sweep goes on


def test_losses_that_still_fall_ask_for_more_budget() -> None:
    for last, is_told in ((1.4, True), (1.499, False), (1.6, False)):
        events = Sweep({"trainer.optim": "choice(a, b)"})
        events.base(3.0)
        events.trial({"trainer.optim": "a"}, [2.5, 2.0, 1.5, last])
        hints = outlook(events.history(), FOLDER)
        assert len(hints) == is_told
    events.trial({"trainer.optim": "b"}, [2.5, 2.0, 1.5, 1.2])
    assert not outlook(events.history(), FOLDER)  # the other of the best does not fall
    events = Sweep({"trainer.optim": "choice(a, b)"})
    begun_by(events, ["sweep=joint", "sweep.budget.examples=9"])
    events.trial({"trainer.optim": "b"}, [2.5, 2.0, 1.5, 1.2])
    (hint,) = outlook(events.history(), FOLDER)
    assert "by up to 0.3000 over the last 1/4 of the budget" in hint.text
    assert words(hint) == ["sweep=joint", f"sweep.budget.examples={2 * EXAMPLES}"]


def test_nothing_is_told_before_a_trial_completes() -> None:
    assert outlook(Sweep({LR: "choice(1e-4, 1e-3)"}).history(), FOLDER) == []
