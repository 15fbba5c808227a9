"""What a sweep shows in a notebook: text that is one output, and a table that is another."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.sweep_events import Sweep

from orchestrator.terminal.format import make_console
from orchestrator.terminal.live_table import Display
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of a notebook's cell, as IPython has them; a replaced one stays in its place."""
    outputs: list[Any] = []

    class Handle:
        def __init__(self) -> None:
            self.place = len(outputs) - 1

        def update(self, data: dict[str, str], raw: bool) -> None:
            outputs[self.place] = data

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        outputs.append(data)
        return Handle()

    fake = ModuleType("IPython.display")
    fake.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return outputs


def test_the_live_table_is_one_output_however_often_it_is_drawn(
    cell: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3)"})
    sweep.base(3.0)
    now = [0.0]
    display = Display(RunFolder(tmp_path), {}, clock=lambda: now[0])
    display.say("sweep of two", "searched: lr")
    for loss in (2.5, 2.25):
        now[0] += 2.0
        sweep.trial({LR: loss / 1000}, [loss])
        display.update(sweep.history(), {})
    (shown,) = cell
    assert "2.2500" in shown["text/plain"]
    assert "2.2500" in shown["text/html"]
    assert "\x1b" not in shown["text/plain"]
    before = dict(shown)
    now[0] += 0.3
    sweep.trial({LR: 1.0}, [1.5])
    display.update(sweep.history(), {})
    assert cell == [before]  # no message to the browser at every turn of the loop
    display.close()
    assert cell == [{"text/plain": "", "text/html": ""}]
    display.close()
    display.say("the end")
    assert capsys.readouterr().out == "sweep of two\nsearched: lr\nthe end\n"
    assert len(cell) == 1


def test_text_in_a_notebook_is_as_wide_as_in_a_log(
    cell: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = make_console()
    assert (console.width, console.is_terminal, console.is_jupyter) == (120, False, False)


def test_a_command_in_a_cell_has_a_terminal_that_can_only_print(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert make_console().is_terminal
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not make_console().is_terminal
