"""The benchmark of packs: what it shows is written as it is known, and it ends in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.packing import LAPTOP, Pages, lengths_of, micro_batches, random_rows


def test_each_row_is_in_the_file_before_the_next_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.md"
    path.write_text("of an earlier run\n")
    found: list[str] = []

    def rows() -> Iterator[Callable[[], Sequence[object]]]:
        for number in (1, 2):
            found.append(path.read_text())
            yield lambda number=number: (number, 10 * number)

    Pages(output=path, minutes=None).table(("lanes", "tokens/s"), rows())
    whole = "| lanes | tokens/s |\n| --- | --- |\n| 1 | 10 |\n| 2 | 20 |\n"
    assert found == [
        "of an earlier run\n",
        "of an earlier run\n" + whole.replace("| 2 | 20 |\n", ""),
    ]
    assert path.read_text() == "of an earlier run\n" + whole
    assert capsys.readouterr().out == whole


def test_what_would_not_end_in_time_is_not_begun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pages = Pages(output=None, minutes=4)

    def row(seconds: float) -> Sequence[object]:
        now[0] += seconds
        return (seconds,)

    pages.table(("s",), (lambda s=s: row(s) for s in (40.0, 80.0, 160.0)))
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| 80.0 |",
        "",
        "The rest of it is left out: there is no time for more (--minutes).",
    ]
    assert now[0] == 120
    assert pages.has_time(60)
    assert not pages.has_time(200)


def test_rows_of_unlike_length_are_as_long_as_those_of_chats() -> None:
    lengths = np.array(lengths_of("chat", LAPTOP))
    assert lengths.max() == 1024
    assert lengths.mean() == pytest.approx(243, rel=0.03)
    assert np.median(lengths) < 0.8 * lengths.mean()  # most are short


def test_the_limit_sees_the_rows_of_all_trials_and_each_trial_its_own() -> None:
    data = random_rows(lengths_of("chat", LAPTOP)[:100])
    own = [next(micro_batches(data, 4, [seed])) for seed in range(3)]
    assert own[0] != own[1]
    assert next(micro_batches(data, 4, range(3))) == [row for rows in own for row in rows]
    assert next(micro_batches(data, 4, [0, 0])) == own[0] * 2
