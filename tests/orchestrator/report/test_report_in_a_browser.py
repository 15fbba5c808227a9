"""report.html in Chromium: every figure is drawn, the table sorts, and no network is asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import PROGRAM, WHY_NOT, Page, browser
from support.shown_sweeps import ShownSweep

from orchestrator.report.write import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT)]

FIGURES = """[...document.querySelectorAll(".plot")].map((plot) => ({
  name: plot.id,
  drawn: plot.querySelectorAll(".scatterlayer .trace, .barlayer .trace").length,
  traces: plot.data.length,
  paths: plot.querySelectorAll(".trace path").length,
  width: plot.querySelector(".main-svg").getBoundingClientRect().width,
  height: plot.querySelector(".main-svg").getBoundingClientRect().height,
}))"""
COLUMN = """[...document.querySelectorAll("#trials tbody tr")].map(
  (row) => row.cells[document.querySelector('[data-column="NAME"]').cellIndex].textContent)"""
CLICK = """document.querySelector('[data-column="NAME"] button').click()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sweep = ShownSweep(name="asha", trials=40, prunes=True, pause_s=5000)
    folder = sweep.write(tmp_path_factory.mktemp("asha") / "run")
    write_report(folder, holder="box, pid 7")
    return folder.report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("home")) as page:
        yield page


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_every_figure_is_drawn_without_an_error_or_a_request(
    report: Path, page: Page, width: int, dark: bool
) -> None:
    page.open(report, width=width, dark=dark)
    figures = page.run(FIGURES)
    assert len(figures) == 14
    for figure in figures:
        assert figure["drawn"] == figure["traces"] > 0, figure
        assert figure["paths"] > 0, figure
        assert figure["width"] > 280, figure
        assert figure["height"] > 100, figure
    assert page.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert page.errors == []
    assert page.requests == [report.as_uri()]


def test_the_table_sorts_by_numbers_and_texts_and_keeps_empty_cells_last(
    report: Path, page: Page
) -> None:
    def column(name: str) -> list[str]:
        found: list[str] = page.run(COLUMN.replace("NAME", name))
        return found

    def click(name: str) -> None:
        page.run(CLICK.replace("NAME", name))

    page.open(report)
    assert column("rank")[:3] == ["1", "2", "3"]
    click("peft.r")
    assert column("peft.r") == sorted(column("peft.r"), key=int)
    click("peft.r")
    assert column("peft.r") == sorted(column("peft.r"), key=int, reverse=True)
    click("trainer.optim")
    assert column("trainer.optim") == sorted(column("trainer.optim"))
    for _ in range(2):
        click("eval_loss")
        values = column("eval_loss")
        empty = values.count("")
        assert empty == 5
        assert values[-empty:] == [""] * empty
    losses = [float(value) for value in values[:-empty]]
    assert losses == sorted(losses, reverse=True)
    assert page.errors == []


def test_dark_and_light_differ_and_paper_is_light(report: Path, page: Page, tmp_path: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    page.open(report, dark=True)
    assert page.run(paper) == "rgb(13, 17, 23)"
    page.printed(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    page.open(report)
    assert page.run(paper) == "rgb(255, 255, 255)"
    assert page.errors == []
