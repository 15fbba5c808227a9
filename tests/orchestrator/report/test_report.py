"""`report RUN_DIR`: what the page holds, from ledgers; how it looks is the browser's test."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.shown_sweeps import RATE, ShownSweep
from support.sweep_events import Sweep

from orchestrator.cli import main
from orchestrator.report import write
from orchestrator.report.curves import (
    MOST_POINTS,
    curves_scale,
    smoothed,
    thinned,
    training_points,
)
from orchestrator.report.knobs import knobs_of
from orchestrator.report.text import clean, escaped
from orchestrator.report.timeline import Span, Timeline, rows_of, without_pauses
from orchestrator.report.view import View
from orchestrator.report.write import report, write_report
from sweeps.core.errors import SweepError
from sweeps.ledger.events import Attempt, Retry, Start
from sweeps.ledger.history import read_history
from sweeps.results.trials_csv import ranked, write_table
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"


def written(folder: RunFolder, holder: str | None = None) -> str:
    write_report(folder, holder=holder)
    return folder.report.read_text(encoding="utf-8")


def own_part(page: str) -> str:
    """The page without plotly's script."""
    return page[: page.index('<script type="application/json"')]


def figures(page: str) -> dict[str, dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    assert found
    return {figure["id"]: figure for figure in json.loads(found[1])}


def cells(page: str) -> list[dict[str, str]]:
    """The table as it was sorted: raw values, by the name of the column."""
    names = [unescape(name) for name in re.findall(r'<th data-column="([^"]*)"', page)]
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [
        dict(zip(names, (unescape(raw or text) for raw, text in found), strict=True))
        for line in body.splitlines()
        if (found := re.findall(r'<td[^>]*?(?: data-v="([^"]*)")?>(.*?)</td>', line))
    ]


@pytest.fixture(scope="module")
def asha(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    sweep = ShownSweep(name="asha", trials=40, prunes=True, pause_s=5000)
    folder = sweep.write(tmp_path_factory.mktemp("asha") / "run")
    write_table(read_history(folder.ledger), folder)
    return folder


@pytest.fixture(scope="module")
def asha_page(asha: RunFolder) -> str:
    return written(asha)


@pytest.mark.slow
def test_the_sections_stand_in_their_order(asha_page: str) -> None:
    names = re.findall(r'<section id="(\w+)"', asha_page)
    learning = ["table", "learning", "knobs", "parallel", "importance", "cost", "timeline"]
    assert names == [*learning, "facts", "commands"]


def test_the_answer_and_how_sure_it_is_come_first(asha_page: str) -> None:
    top = unescape(asha_page[: asha_page.index("<main>")])
    assert re.search(r"<h1>Best: trial \d+ \(lr=.*eval_loss 3\.\d{4} .* better than the base", top)
    assert re.search(r"<li>The best is 0\.\d+ ahead of the next .* One seed each cannot tell", top)
    assert "Every trial has ended: 29 completed, 6 pruned, 4 diverged, 1 failed." in top


def test_the_table_has_every_column_and_every_value_of_trials_csv(
    asha: RunFolder, asha_page: str
) -> None:
    with open(asha.table, newline="", encoding="utf-8") as file:
        there = list(csv.DictReader(file))
    here = cells(asha_page)
    assert len(here) == len(there) == 40
    assert here[0].keys() == there[0].keys()
    for ours, theirs in zip(here, there, strict=True):
        for name in ("rank", "number", "status", "key", "seed", "best_step", "trainer.optim"):
            assert ours[name] == theirs[name]
        for name in ("eval_loss", RATE, "tokens_per_second", "optimizer_state_mb"):
            if theirs[name]:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-2)
    assert {row["error"] for row in here} >= {"bug: RuntimeError: a <b>bad</b> device"}


def test_a_figure_for_every_question(asha_page: str) -> None:
    found = figures(asha_page)
    slices = [name for name in found if name.startswith("slice-")]
    costs = [
        f"cost-{name}" for name in ("tokens_per_second", "peak_memory_mb", "optimizer_state_mb")
    ]
    assert list(found) == [
        "curves",
        "training",
        *slices,
        "coordinates",
        "shares",
        *costs,
        "devices",
    ]
    assert len(slices) == 6
    assert all(any(len(trace["x"]) for trace in figure["data"]) for figure in found.values())


def test_the_best_is_highlighted_and_what_stopped_early_is_marked(asha_page: str) -> None:
    traces = {trace["name"]: trace for trace in figures(asha_page)["curves"]["data"]}
    assert traces["best"]["line"]["width"] > traces["completed"]["line"]["width"]
    for state, count in (("pruned", 6), ("diverged", 4), ("failed", 1)):
        assert traces[state]["line"]["dash"] == "dot"
        assert len(traces[f"{state} here"]["x"]) == count


def test_diverged_values_stay_off_the_scale(asha: RunFolder, asha_page: str) -> None:
    found = figures(asha_page)["curves"]
    low, high = found["layout"]["yaxis"]["range"]
    assert 3.0 < low < 3.6
    assert 5.0 < high < 6.2  # a diverged trial came to 700
    marks = next(trace for trace in found["data"] if trace["name"] == "diverged here")
    assert set(marks["y"]) == {float(f"{high:.5g}")}
    assert all(actual > 100 for _, actual in marks["customdata"])


def test_rates_have_a_log_axis_and_choices_their_values(asha_page: str) -> None:
    found = figures(asha_page)
    titles = re.findall(
        r'<h3>([\w.]+)</h3><div class="scroll"><div class="plot" id="(slice-\d)"', asha_page
    )
    by_key = {key: found[name]["layout"]["xaxis"] for key, name in titles}
    assert by_key[RATE]["type"] == "log"
    assert by_key["trainer.optim"]["type"] == "category"
    assert by_key["peft.r"]["ticktext"] == ["4", "8", "16"]
    assert by_key["trainer.weight_decay"].get("type") != "log"


@pytest.mark.slow
def test_repeats_are_points_of_their_own(tmp_path: Path) -> None:
    folder = ShownSweep(trials=12, repeats=3).write(tmp_path / "run")
    page = written(folder)
    assert len(figures(page)["slice-0"]["data"][0]["x"]) == 12
    assert "more than chance" in page or "within chance" in page


def test_the_line_of_the_best_goes_through_its_own_values(asha: RunFolder, asha_page: str) -> None:
    best = ranked(read_history(asha.ledger))[0]
    line = figures(asha_page)["coordinates"]["data"][-1]
    assert line["line"]["width"] > 3
    told = dict(line["customdata"])
    assert told["r"] == str(best.values["peft.r"])
    assert told["optim"] == best.values["trainer.optim"]
    assert float(told["lr"]) == pytest.approx(best.values[RATE], rel=1e-2)


def test_an_edge_is_told_at_its_knob(tmp_path: Path) -> None:
    sweep = Sweep({LR: "choice(1e-5, 1e-4, 1e-3)"})
    for rate, loss in ((1e-5, 3.0), (1e-4, 2.0), (1e-3, 1.0)):
        sweep.trial({LR: rate}, [loss] * 4)
    page = own_part(written(RunFolder(sweep.write(tmp_path))))
    knobs = page[page.index('<section id="knobs"') : page.index('<section id="parallel"')]
    assert "the best value, 0.001, is the highest that was tried" in knobs
    assert "learning_rate=1e-05,0.0001,0.001,0.01" in knobs


def test_a_running_sweep_says_how_far_it_is(tmp_path: Path) -> None:
    folder = ShownSweep(trials=10, unfinished=4).write(tmp_path / "run")
    page = own_part(written(folder, holder="box, pid 7"))
    assert "Unfinished: 6 of 10 trials have ended" in page
    assert "6 completed" in page.replace("4 running, ", "")
    assert "Go on with the sweep" in page
    assert "Train the winner again" not in page  # it may be another one at the end
    stopped = own_part(written(folder))
    assert "Stopped before the end: 6 of 10 trials have ended" in stopped


@pytest.mark.parametrize("trials", [0, 1])
def test_a_sweep_that_has_hardly_begun_has_a_page(tmp_path: Path, trials: int) -> None:
    folder = ShownSweep(trials=trials, unfinished=trials).write(tmp_path / "run")
    page = own_part(written(folder))
    assert "No trial has completed yet" in page
    assert ("No trial has been asked for yet" in page) == (trials == 0)


def test_one_trial_of_the_base_config_has_a_page(tmp_path: Path) -> None:
    sweep = Sweep({})
    sweep.trial({}, [3.0, 2.0, 1.5, 1.0])
    page = written(RunFolder(sweep.write(tmp_path)))
    assert "Best: trial 0 (base config)" in page
    assert {"curves", "devices"} <= figures(page).keys()


def test_no_text_of_the_users_is_read_as_html(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><img src=http://a/b>"
    sweep = Sweep({})
    for number, loss in enumerate([3.0, 2.0, 1.0, 1.5]):
        values = {"peft.init_lora_weights": [bad, "b"][number % 2], bad: number % 3}
        sweep.trial(values, [loss] * 4)
    sweep.trial({"peft.init_lora_weights": bad, bad: 1}, [], "failed", kind="bug", reason=bad)
    sweep.add(Attempt(host="h", pid=1, command=f"python -m orchestrator x={bad}"))
    page = written(RunFolder(sweep.write(tmp_path)))
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page[: page.index("<script>")]
    assert figures(page)  # and no text ends the element of their JSON
    names = json.dumps(figures(page))
    assert "<script" not in names
    assert "<img" not in names


def test_no_secret_is_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sesame-open-1234")
    sweep = Sweep({})
    sweep.trial({"model.path": "https://me:pass9word@host/m"}, [2.0] * 4)
    sweep.trial({"model.path": "other"}, [3.0] * 4)
    sweep.trial(
        {"model.path": "other"},
        [],
        "failed",
        kind="bug",
        reason="no sesame-open-1234 at hub_token=hf_zzz",
    )
    page = written(RunFolder(sweep.write(tmp_path)))
    for secret in ("pass9word", "sesame-open-1234", "hf_zzz"):
        assert secret not in page


def test_long_texts_are_cut(tmp_path: Path) -> None:
    sweep = Sweep({})
    for number in range(8):
        value = f"{number}" + "x" * 20_000
        sweep.trial({"data.path": value}, [float(number + 1)] * 4)
    sweep.trial({"data.path": "a"}, [], "failed", kind="bug", reason="e" * 100_000)
    page = own_part(written(RunFolder(sweep.write(tmp_path))))
    assert len(page) < 100_000


@pytest.mark.slow
def test_a_hundred_trials_take_at_most_six_megabytes(tmp_path: Path) -> None:
    folder = ShownSweep(trials=100, name="asha", prunes=True, rows=120).write(tmp_path / "run")
    assert len(written(folder).encode()) <= 6e6


def test_nothing_is_asked_of_a_network(asha_page: str) -> None:
    ours = own_part(asha_page)
    assert "default-src 'none'" in ours
    assert not re.search(r"""(?:src|href)=["'](?!#)""", ours.replace("default-src 'none'", ""))
    assert "url(" not in ours
    assert "@import" not in ours


def test_the_verb_writes_the_page_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ShownSweep(trials=4).write(tmp_path / "run")
    assert main(["report", str(folder.root)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Report, for any browser: .*report\.html \(\d\.\d MB\)", said)
    assert folder.report.is_file()


def test_what_cannot_be_reported_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError, match="no folder"):
        report(tmp_path / "nowhere")
    folder = ShownSweep(trials=1).write(tmp_path / "run")
    monkeypatch.setattr(write, "has_plotly", lambda: False)
    with pytest.raises(SweepError, match="pip install plotly"):
        report(folder.root)


# ------------------------------------------------------------------ the parts


def test_a_training_curve_is_smoothed_thinned_and_finite(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"examples": 8 * i, "loss": 5.0 - i / 1000} for i in range(1, 3001)]
    rows[10]["loss"] = float("nan")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"examples": 24008, "lo')
    points = training_points(path)
    assert len(points) == MOST_POINTS
    assert points[0][0] == 8
    assert all(abs(loss - (5.0 - x / 8000)) < 0.01 for x, loss in points)
    assert training_points(tmp_path / "none") == ()


def test_a_later_row_for_the_same_examples_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"examples": 8, "loss": 9}\n{"examples": 8, "loss": 3}\n')
    assert training_points(path) == ((8, 3.0),)


def test_smoothing_keeps_a_straight_line_and_a_short_curve() -> None:
    line = [(x, 2.0 * x) for x in range(200)]
    assert smoothed(line) == [(x, pytest.approx(2.0 * x)) for x in range(200)]
    assert smoothed([(1, 5.0), (2, 1.0)]) == [(1, 5.0), (2, 1.0)]
    assert thinned([]) == ()
    assert thinned([(1, 2.0)]) == ((1, 2.0),)


def test_one_bad_completed_trial_does_not_press_the_others_flat() -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3, 1)"})
    sweep.base(5.0)
    for loss in (3.0, 3.1, 80.0):
        sweep.trial({LR: loss}, [loss] * 4)
    history = sweep.history()
    for scale in (curves_scale(history), View.of(history, ranked(history), 0).scale):
        assert scale is not None
        assert 2.8 < scale[0] < 3.0 < 5.0 < scale[1] < 5.5


def test_knobs_that_never_varied_are_left_out() -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3)", "peft.r": "choice(8)"})
    for rate in (1e-4, 1e-3):
        sweep.trial({LR: rate, "peft.r": 8}, [1.0] * 4)
    history = sweep.history()
    (knob,) = knobs_of(history, ranked(history))
    assert (knob.name, knob.head, knob.is_log, knob.values) == (LR, "lr", True, (1e-4, 1e-3))


def test_keys_that_are_set_together_are_one_knob() -> None:
    batch, accumulation = (
        "trainer.per_device_train_batch_size",
        "trainer.gradient_accumulation_steps",
    )
    options = [{batch: 8, accumulation: 1}, {batch: 4, accumulation: 2}]
    sweep = Sweep({"batching": options})
    for option in options:
        sweep.trial(option, [1.0] * 4)
    history = sweep.history()
    (knob,) = knobs_of(history, ranked(history))
    assert not knob.is_number
    assert knob.values == ("batch=8 accum=1", "batch=4 accum=2")


def test_a_trial_that_moved_has_a_bar_for_each_stay() -> None:
    sweep, timeline = Sweep({}), Timeline()
    key = sweep.trial({}, [1.0], state=None)
    sweep.add(Retry(trial=key, attempt=1, reason="its worker died"))
    sweep.add(Start(trial=key, attempt=2, worker="box:2", device="cpu", step=4))
    sweep.add(Attempt(host="box", pid=2))
    sweep.add(Start(trial=key, attempt=3, worker="box:3", device="cpu", step=4))
    for event in sweep.events:
        timeline.apply(event)
    spans = timeline.until_now(sweep.history(), None)
    assert [span.outcome for span in spans] == ["moved or retried", "interrupted", "interrupted"]
    assert timeline.until_now(sweep.history(), sweep.now + 60)[-1].outcome == "running"
    assert [span.place for span in spans] == ["w0 cpu", "box cpu", "box cpu"]


def span(start: float, end: float, worker: str = "box:1") -> Span:
    return Span(trial="a", worker=worker, device="cpu", start=start, end=end, outcome="completed")


def test_no_two_bars_of_a_row_overlap_and_a_later_worker_takes_an_earlier_ones_rows() -> None:
    spans = [
        span(0, 10),
        span(1, 11),
        span(2, 9, "box:2"),
        span(20, 30, "box:7"),
        span(21, 22, "b:1"),
    ]
    rows, places = rows_of(spans)
    assert rows[:3] == [1, 2, 3]
    assert rows[3] in rows[:3]
    assert places == ["b cpu", "box cpu", "box cpu", "box cpu"]


def test_long_pauses_are_cut_out_and_short_ones_stay() -> None:
    moved, pauses = without_pauses([span(1000, 1100), span(1130, 1200), span(9200, 9300)])
    assert [(each.start, each.end) for each in moved] == [(0, 100), (130, 200), (200, 300)]
    assert pauses == [(200, 8000)]
    assert without_pauses([]) == ([], [])


def test_texts_are_one_escaped_line() -> None:
    assert escaped("a\n <b> & c") == "a &lt;b&gt; &amp; c"
    assert clean("x" * 100, 10) == "x" * 9 + "…"
