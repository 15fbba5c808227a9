"""What a running and a finished sweep look like in a terminal and in a log."""

from __future__ import annotations

import errno
import re
import shlex
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from support.sweep_events import Sweep

from orchestrator.config.compose import compose_config
from orchestrator.terminal.format import (
    Column,
    Grid,
    duration_text,
    megabytes_text,
    rate_text,
    show,
    unbroken,
)
from orchestrator.terminal.live_table import Display
from orchestrator.terminal.progress import Progress, planned_configs, planned_trials, time_left_s
from orchestrator.terminal.summary import summary
from sweeps.core.commands import command_line
from sweeps.ledger.history import History
from sweeps.results.importance import effects
from sweeps.results.ranking import best
from sweeps.storage.run_folder import RunFolder

LR = "trainer.learning_rate"
SPACE = {LR: "choice(1e-4, 1e-3)", "trainer.optim": "choice(sgd, adamw_torch)"}


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 2000.0

    def __call__(self) -> float:
        return self.now


def sweep_of_four() -> Sweep:
    """Completed, pruned, failed and running, over a base model of 3.0."""
    sweep = Sweep(SPACE)
    sweep.base(3.0)
    totals = {"seconds": 40.0, "tokens_per_second": 12345.0, "peak_memory_mb": 512.0}
    sweep.trial({LR: 1e-3, "trainer.optim": "sgd"}, [2.5, 2.25], totals=totals)
    sweep.trial({LR: 1e-4, "trainer.optim": "sgd"}, [2.9], "pruned")
    sweep.trial({LR: 1e-3, "trainer.optim": "adamw_torch"}, [], "failed", kind="bug", reason="boom")
    sweep.trial({LR: 1e-4, "trainer.optim": "adamw_torch"}, [2.7], state=None)
    return sweep


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(
        file=StringIO(), force_terminal=True, width=width, height=height, color_system=None
    )


def log() -> Console:
    return Console(file=StringIO(), width=120)


def printed(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def view(history: History, width: int, height: int, progress: dict[str, Progress]) -> list[str]:
    """The lines of the live view."""
    console = terminal(width, height)
    display = Display(RunFolder(Path("outputs/x")), history.spec, console, clock=Clock())
    with console.capture() as capture:
        console.print(display.view(history, progress, left=75.0))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_the_live_view_fits_the_terminal_however_many_trials_run(width: int, height: int) -> None:
    sweep = Sweep({LR: "choice(1e-4, 1e-3)"})
    sweep.base(3.0)
    name = "a_rather_long_name_of_a_model/" * 4
    for number in range(90):
        values = {LR: 1e-3 / (number + 1), "model.path": name}
        sweep.trial(values, [2.0], "completed" if number < 10 else None)
    lines = view(sweep.history(), width, height, {})
    assert max(map(len, lines)) <= width
    assert len(lines) < height
    assert any("more running" in line for line in lines)


def test_the_live_view_shows_progress_leaders_and_the_base_model() -> None:
    sweep = sweep_of_four()
    history = sweep.history()
    running = next(key for key, record in history.trials.items() if record.number == 3)
    now = Progress(step=3, steps=4, examples=48, loss=2.7123, tokens_per_second=9876, seconds=30)
    text = "\n".join(view(history, 80, 24, {running: now}))
    assert "3 of 4" in text
    assert "1:15 left" in text
    assert "base model 3.0000" in text
    assert re.search(r"3  lr=1e-4 adamw_torch .* 75%\s+2\.7000\s+2\.7123\s+9\.88k\s+0:10", text)
    assert re.search(r"1\s+0  lr=1e-3 sgd\s+2\.2500\s+\+0\.7500\s+12\.3k\s+512", text)


def test_a_live_display_draws_no_more_often_than_it_should_and_leaves_the_cursor_shown() -> None:
    console, clock = terminal(), Clock()
    history = sweep_of_four().history()
    display = Display(RunFolder(Path("outputs/x")), history.spec, console, clock=clock)
    display.update(history, {})
    once = len(printed(console))
    clock.now += 0.01
    display.update(history, {})
    assert len(printed(console)) == once
    display.say("one line that stays")
    clock.now += 1
    display.update(history, {})
    display.close()
    assert "one line that stays" in printed(console)
    assert printed(console).rindex("\x1b[?25h") > printed(console).rindex("\x1b[?25l")


def test_a_log_gets_a_line_for_each_start_and_end_and_none_twice() -> None:
    console, clock = log(), Clock()
    sweep = Sweep(SPACE)
    display = Display(RunFolder(Path("outputs/x")), sweep.spec, console, clock=clock)
    display.say("4 trials")
    display.update(sweep.history(), {})
    whole = sweep_of_four()
    history = sweep.history()
    for event in whole.events[len(sweep.events) :]:
        history.apply(event)
        display.update(history, {})
    display.update(whole.history(), {})
    lines = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in printed(console).splitlines()]
    assert lines == [
        "4 trials",
        "base model: eval_loss 3.0000",
        "trial 0 started: lr=1e-3 sgd",
        "trial 0 evaluation 1 of 4, step 4: eval_loss 2.5000",
        "trial 0 evaluation 2 of 4, step 8: eval_loss 2.2500",
        "trial 0 completed: eval_loss 2.2500, rank 1 of 1, 0:40",
        "trial 1 started: lr=1e-4 sgd",
        "trial 1 evaluation 1 of 4, step 4: eval_loss 2.9000",
        "trial 1 pruned at report 1: eval_loss 2.9000",
        "trial 2 started: lr=1e-3 adamw_torch",
        "trial 2 failed: boom",
        "trial 3 started: lr=1e-4 adamw_torch",
        "trial 3 evaluation 1 of 4, step 4: eval_loss 2.7000",
    ]
    assert "\x1b" not in printed(console)


def test_a_log_hears_of_the_whole_sweep_every_half_minute() -> None:
    console, clock = log(), Clock()
    history = sweep_of_four().history()
    display = Display(RunFolder(Path("outputs/x")), history.spec, console, clock=clock)
    display.update(history, {})
    assert "going on: 3 of 4 trials have ended before" in printed(console)
    clock.now += 29
    display.update(history, {})
    assert "best" not in printed(console)
    clock.now += 1
    display.update(history, {})
    display.update(history, {})
    standing = "3 of 4 trials ended, 1 running, 1 pruned, 1 failed, best 2.2500 (trial 0), about"
    assert printed(console).count(standing) == 1


def test_a_terminal_that_hangs_up_does_not_stop_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    for console in (log(), terminal()):
        history = sweep_of_four().history()
        display = Display(RunFolder(Path("outputs/x")), history.spec, console, clock=Clock())
        monkeypatch.setattr(console.file, "write", gone)
        display.update(history, {})
        display.say("nobody hears this")
        display.close()


def test_the_time_left_follows_from_finished_trials_and_how_many_run_at_once() -> None:
    sweep = Sweep(SPACE)
    for seconds in (30.0, 50.0):
        sweep.trial({LR: 1e-3}, [1.0], totals={"seconds": seconds})
    running = [sweep.trial({LR: 1e-3}, state=None) for _ in range(2)]
    history = sweep.history()
    half = Progress(step=5, steps=10, seconds=20.0)
    progress = dict.fromkeys(running, half)
    assert time_left_s(history, progress, 4, now=0) == pytest.approx(20.0)
    # four more of 40 s each: (20 + 20 + 4 * 40) / 2 at a time
    assert time_left_s(history, progress, 8, now=0) == pytest.approx(100.0)
    assert time_left_s(history, progress, None, now=0) is None
    assert time_left_s(Sweep().history(), {}, 4, now=0) is None


def test_the_time_budget_bounds_the_time_left() -> None:
    sweep = Sweep(SPACE, time_budget_s=50.0)
    sweep.trial({LR: 1e-3}, [1.0], totals={"seconds": 100.0})
    sweep.trial({LR: 1e-3}, state=None)
    history = sweep.history()
    assert time_left_s(history, {}, 9, now=(history.driver.time or 0) + 20) == pytest.approx(30.0)


def test_the_plan_counts_grid_conditions_and_repeats() -> None:
    space = {**SPACE, "trainer.momentum": "choice(0.8, 0.9)"}
    when = {"trainer.momentum": "trainer.optim=sgd"}
    assert planned_configs(Sweep(space, when=when).spec) == 2 * (2 + 1)
    assert planned_configs(Sweep(SPACE, trials=3).spec) == 3
    assert planned_configs(Sweep({LR: "interval(0.1, 0.2)"}, trials=7).spec) == 7
    # a key that a condition asks about, but nothing searches, has the base config's value
    base = Sweep({"trainer.beta": "choice(1, 2)"}, when={"trainer.beta": "trainer.optim=sgd"})
    assert planned_configs(base.spec) == 1


def test_a_config_that_was_pruned_takes_its_repeats_off_the_plan() -> None:
    sweep = Sweep(SPACE, repeats=3)
    assert planned_trials(sweep.history(), 4) == 12
    sweep.trial({LR: 1e-4}, [1.0], "pruned", config=0)
    sweep.trial({LR: 1e-3}, [1.0], config=1)
    assert planned_trials(sweep.history(), 4) == 1 + 3 * 3
    assert planned_trials(sweep.history(), None) is None


def lines_of(sweep: Sweep, folder: Path, width: int = 120, **more: object) -> list[str]:
    history = sweep.history()
    console = Console(file=StringIO(), width=width)
    parts = summary(
        history,
        RunFolder(folder),
        effects(history),
        None,
        best(history),
        **more,  # type: ignore[arg-type]
    )
    show(console, parts)
    return [line.rstrip() for line in printed(console).splitlines()]


def test_the_summary_ends_with_the_best_trial_and_where_it_lies(tmp_path: Path) -> None:
    sweep_of_four().best(RunFolder(tmp_path), 0, 8)
    proof = {"test_loss": 2.3, "test_rows": 40.0, "test_low": 2.2, "test_high": 2.4}
    lines = lines_of(sweep_of_four(), tmp_path, proof=proof, again="train this")
    assert lines[-2] == (
        "Best: trial 0 (lr=1e-3 sgd), eval_loss 2.2500 at step 8; 0.7500 better than the base model"
    )
    assert lines[-1] == f"{tmp_path}/best/"
    text = "\n".join(lines)
    assert "  trainer.learning_rate=0.001\n  trainer.optim=sgd\n" in text
    assert "failed: trial 2: bug: boom" in text
    assert f"python -m orchestrator export {tmp_path} --merge" in text
    tested = "test split, which no decision has seen: 2.3000, 95% interval 2.2000 to 2.4000"
    tested += " (other rows like these 40). Its eval_loss of 2.2500 is the best of 4 configs"
    assert tested in " ".join(text.split())
    for command in (f"python -m orchestrator status {tmp_path}", "train this"):
        assert any(line.startswith(f"  {command}  # ") for line in lines)


def test_no_command_is_offered_that_would_do_nothing_new(tmp_path: Path) -> None:
    """A whole model has no adapter to merge, and one trial is trained again as it was."""
    sweep = Sweep(SPACE)
    sweep.spec["peft"] = {"method": "full"}
    sweep.trial({LR: 1e-3}, [2.0])
    sweep.best(RunFolder(tmp_path), 0, 8)
    text = "\n".join(lines_of(sweep, tmp_path, again="train this"))
    assert "python -m orchestrator status" in text
    assert "--merge" not in text
    assert "train this" not in text


@pytest.mark.parametrize("older", [False, True])
def test_a_best_that_could_not_be_made_ready_is_neither_named_nor_offered(
    older: bool, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    if older:
        sweep_of_four().best(folder, 1, 4)
    error = "SweepError: the best checkpoint, loaded again, has eval_loss 3.0."
    lines = lines_of(sweep_of_four(), tmp_path, 500, proof_error=error, again="train this")
    first = next(number for number, line in enumerate(lines) if line.startswith("Best: trial 0"))
    held = [f"{folder.best}/ holds trial 1, step 4, which was the best of an earlier start."]
    assert lines[first + 1 :] == [
        f"The best checkpoint could not be made ready: {error}",
        *(held if older else []),
        f"The checkpoint, as it was saved: {folder.checkpoint(f'{0:010x}', 8)}/",
        "The same command tries it again. If it fails again, train the winner again by the command "
        "above.",
    ]
    assert not any("export" in line for line in lines)
    assert any(line.startswith("  train this  #") for line in lines)


def test_before_best_is_made_the_checkpoint_is_named(tmp_path: Path) -> None:
    lines = lines_of(sweep_of_four(), tmp_path, 500)
    checkpoint = RunFolder(tmp_path).checkpoint(f"{0:010x}", 8)
    assert lines[-1] == f"{checkpoint}/ (so far; best/ is written at the end)"
    assert not any("export" in line for line in lines)


def test_the_best_values_can_be_pasted_as_they_stand(tmp_path: Path) -> None:
    values = {"model.revision": "2018", "peft.target_modules": "(q|v)_proj", "peft.r": [1, True]}
    sweep = Sweep()
    sweep.trial(values, [1.0])
    lines = lines_of(sweep, tmp_path)
    first = lines.index("Best values") + 1
    read = compose_config([word for line in lines[first : first + 3] for word in shlex.split(line)])
    assert (read[0]["model"]["revision"], read[0]["peft"]["r"]) == ("2018", [1, True])
    assert read[0]["peft"]["target_modules"] == "(q|v)_proj"


def test_the_base_model_stands_at_its_place_in_the_ranking(tmp_path: Path) -> None:
    sweep = Sweep(SPACE)
    sweep.base(2.0)
    for rate, loss in ((1e-4, 1.5), (1e-3, 2.5)):
        sweep.trial({LR: rate}, [loss] * 4)
    lines = lines_of(sweep, tmp_path)
    rows = [line for line in lines if re.match(r"\s+(\d|base)", line) or " base " in line[:14]]
    assert [re.search(r"(\d\.\d{4})", row).group(1) for row in rows[:3]] == [  # type: ignore[union-attr]
        "1.5000",
        "2.0000",
        "2.5000",
    ]
    assert "base" in rows[1]


def test_a_sweep_that_only_hurts_says_so(tmp_path: Path) -> None:
    sweep = Sweep(SPACE)
    sweep.base(1.0)
    sweep.trial({LR: 1e-3}, [2.0] * 4)
    text = "\n".join(lines_of(sweep, tmp_path))
    assert "No trial is better than the base model" in text
    assert "1.0000 worse than the base model" in text


def test_equal_winners_are_called_within_chance(tmp_path: Path) -> None:
    sweep = Sweep(SPACE, repeats=3)
    for config, rate in enumerate((1e-4, 1e-3)):
        for repeat, wobble in enumerate((-0.1, 0.0, 0.1)):
            value = 1.0 + 0.01 * config + wobble
            sweep.trial({LR: rate}, [value] * 4, config=config, repeat=repeat)
    text = "\n".join(lines_of(sweep, tmp_path))
    assert "The best is 0.0100 ahead of the next (trial 3): within chance" in text
    assert "mean of its repeats 1.0000 +- 0.1000" in text


def test_nothing_completed_has_no_best_and_no_command_for_it(tmp_path: Path) -> None:
    sweep = Sweep(SPACE)
    sweep.trial({LR: 1e-3}, [], "diverged", kind="diverged", reason="non-finite loss at step 3")
    lines = lines_of(sweep, tmp_path)
    assert lines[-1] == "No best checkpoint: no trial has completed."
    assert "diverged: trial 0: non-finite loss at step 3" in lines
    assert not any("export" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_tables_never_break_a_number(width: int, tmp_path: Path) -> None:
    sweep = Sweep()
    sweep.base(3.0)
    keys = [f"trainer.some_rather_long_key_{letter}" for letter in "abcdef"]
    for number in range(4):
        values = dict.fromkeys(keys, number * 1000.5)
        sweep.trial(values, [1.2345] * 4, totals={"seconds": 4000.0, "peak_memory_mb": 23456.0})
    lines = lines_of(sweep, tmp_path, width)
    head = next(index for index, line in enumerate(lines) if line.startswith("rank"))
    table = lines[head : head + 7]
    assert max(map(len, table)) <= width
    assert sum("1.2345" in line for line in table) == 4
    if width <= 80:
        assert "see" in "\n".join(lines[head + 7 : head + 8])


def test_columns_go_by_weight_and_text_shrinks_before_that() -> None:
    grid = Grid(
        columns=[
            Column("a", ["x" * 30], least=10),
            Column("b", ["12345"], keep=2),
            Column("c", ["12345"], keep=5),
        ],
        elsewhere="the file",
    )

    def lines(width: int) -> list[str]:
        console = Console(file=StringIO(), width=width)
        console.print(grid)
        return [line.rstrip() for line in printed(console).splitlines()[2:]]

    assert lines(60) == ["x" * 30 + "  12345  12345"]
    assert lines(30) == ["x" * 15 + "…  12345  12345"]
    assert lines(20) == ["x" * 12 + "…  12345", "No room for b: see", "the file"]


def test_numbers_are_short() -> None:
    assert [duration_text(s) for s in (0.4, 59.6, 3723, 183_900)] == [
        "0:00",
        "1:00",
        "1:02:03",
        "2d 03:05",
    ]
    assert [rate_text(r) for r in (3.14, 831, 1234, 12345, 4_560_000)] == [
        "3.1",
        "831",
        "1.23k",
        "12.3k",
        "4.56M",
    ]
    assert [megabytes_text(m) for m in (0.0123, 3.21, 81234.5)] == ["0.012", "3.2", "81,234"]


def test_what_is_copied_is_one_line_however_narrow_the_terminal_is() -> None:
    command = command_line(["sync", "/home/ann/projects/tickets/outputs/joint-86755436"])
    note, path, prose = f"W&B: offline; to upload it later: {command}", "a/" * 60, "word " * 40
    console = terminal(width=80)
    show(console, [Text(note), unbroken(path), Text(prose)])
    lines = printed(console).splitlines()
    assert lines[:2] == [note, path]
    assert len(lines) > 3
