"""How sure the ranking is: intervals of differences, what they cover, and if they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.sweep_events import Sweep

from sweeps.ledger import events
from sweeps.results import row_losses
from sweeps.results.intervals import by_prompt, interval, of_loss, ratio
from sweeps.results.significance import Comparison, compare
from sweeps.results.trials_csv import ranked, write_table
from sweeps.storage.run_folder import RunFolder

ROWS = 200
TOKENS = np.random.default_rng(0).integers(1, 80, ROWS).astype(np.float64)


class Measured:
    """A sweep whose trials have losses for each evaluation row, in a run folder."""

    def __init__(self, root: Path, prompts: Sequence[int] | None = None, **sweep: Any) -> None:
        self.folder = RunFolder(root)
        self.sweep = Sweep(**sweep)
        self.folder.data.mkdir(parents=True)
        numbers = np.array(range(ROWS) if prompts is None else prompts, dtype=np.int32)
        np.save(self.folder.eval_prompts, numbers)

    def trial(self, rows: Any, **more: Any) -> str:
        """A completed trial with these nats per token of each row; the ledger has their mean."""
        sums = (np.asarray(rows) * TOKENS[: len(rows)]).astype(np.float32)
        tokens = TOKENS[: len(rows)]
        loss = float(sums.astype(np.float64).sum() / tokens.sum())
        key = self.sweep.trial({"lr": len(self.sweep.events)}, [loss], **more)
        self.sweep.events = [
            replace(each, metrics={**each.metrics, "eval_loss": loss})
            if isinstance(each, events.Report) and each.trial == key
            else each
            for each in self.sweep.events
        ]
        row_losses.keep(self.folder, key, np.stack([sums, tokens]))
        return key

    def compare(self) -> Comparison:
        found = compare(self.sweep.history(), self.folder)
        assert found is not None
        return found


def noise(seed: int, size: float = 0.05) -> Any:
    return np.random.default_rng(seed).normal(0, size, ROWS)


def test_the_variance_is_that_of_leaving_out_a_prompt_at_a_time() -> None:
    random = np.random.default_rng(1)
    sums, tokens = random.normal(5, 1, 30), random.integers(1, 9, 30).astype(float)
    estimate, part = ratio(sums, tokens)
    left_out = [
        np.delete(sums, each).sum() / np.delete(tokens, each).sum() for each in range(len(sums))
    ]
    assert estimate == pytest.approx(sums.sum() / tokens.sum())
    assert part.variance == pytest.approx(sum((each - estimate) ** 2 for each in left_out))
    alike = ratio(sums, np.ones(30))[1]
    assert alike.freedom == pytest.approx(29)
    assert part.freedom < alike.freedom


def test_rows_that_share_a_prompt_count_once() -> None:
    """Each row twice tells nothing new; as rows of their own they would narrow the interval."""
    sums = TOKENS * (2 + noise(0))
    once = of_loss(sums, TOKENS, np.arange(ROWS))
    two, tokens = np.tile(sums, 2), np.tile(TOKENS, 2)
    shared = of_loss(two, tokens, np.tile(np.arange(ROWS), 2))
    assert (shared.estimate, shared.half) == pytest.approx((once.estimate, once.half))
    assert of_loss(two, tokens, np.arange(2 * ROWS)).half < 0.75 * once.half
    assert by_prompt(np.array([1.0, 2.0, 4.0]), np.array([7, 3, 7])).tolist() == [2.0, 5.0]


def test_of_two_parts_the_larger_sets_the_degrees_of_freedom() -> None:
    _, rows = ratio(TOKENS * (1 + noise(0)), TOKENS)
    few = replace(rows, freedom=2.0)
    assert interval(0.0, [rows, replace(few, variance=1e-12)]).half == pytest.approx(
        interval(0.0, [rows]).half, rel=1e-3
    )
    assert interval(0.0, [rows, few]).half > 1.5 * interval(0.0, [rows]).half
    assert interval(0.5, [replace(rows, variance=0.0)]).half == 0.0


def test_first_and_second_with_the_interval_of_their_difference(tmp_path: Path) -> None:
    made = Measured(tmp_path)
    hard = noise(9, 1.0)  # a row's own difficulty, which the trials share, is no noise
    made.trial(2.0 + hard + noise(1))
    made.trial(2.1 + hard + noise(2))
    made.trial(2.002 + hard + noise(3))
    made.trial(2.003 + hard + noise(4))
    found = made.compare()
    first, *others = found.order
    assert [found.numbers[each] for each in found.order][-1] == 1
    assert found.behind[1].low < 0.1 < found.behind[1].high
    assert found.behind[1].half < 0.02
    assert found.behind[1].excludes_zero
    assert not found.behind[others[0]].excludes_zero
    assert first not in found.behind
    said = " ".join(found.lines())
    assert "not distinguishable." in said
    assert "Not distinguishable from the best either: trial" in said
    assert f"Intervals cover other rows like these {ROWS}, and not other seeds" in said
    rows = ranked(made.sweep.history(), found)
    assert rows[0].behind is None
    last = rows[-1]
    assert last.value is not None
    assert rows[0].value is not None
    assert last.behind == pytest.approx(last.value - rows[0].value, abs=1e-6)
    write_table(made.sweep.history(), made.folder)
    head, *lines = made.folder.table.read_text().splitlines()
    assert "behind,behind_low,behind_high" in head
    assert f",{last.behind:.6f}"[:9] in lines[-1]


def test_with_repeats_the_spread_over_seeds_is_part_of_it(tmp_path: Path) -> None:
    made = Measured(tmp_path, repeats=2)
    for config, level in enumerate((2.0, 2.1)):
        for repeat, seed in enumerate((-0.05, 0.05)):
            made.trial(level + seed + noise(config), config=config, repeat=repeat)
    found = made.compare()
    assert found.behind[1].estimate == pytest.approx(0.1, abs=0.02)
    assert not found.behind[1].excludes_zero  # by its rows alone it would be
    assert "and other seeds." in " ".join(found.lines())
    alike = Measured(tmp_path / "alike", repeats=2)
    for config, level in enumerate((2.0, 2.1)):
        for repeat in range(2):
            alike.trial(level + noise(config), config=config, repeat=repeat)
    assert alike.compare().behind[1].excludes_zero


def test_what_is_not_known_is_not_compared(tmp_path: Path) -> None:
    """Older versions kept no rows; of a config, all repeats have to be known."""
    made = Measured(tmp_path)
    made.trial(2.0 + noise(1))
    second = made.trial(2.1 + noise(2))
    made.trial(2.2 + noise(3))
    made.folder.row_losses(second).unlink()
    found = made.compare()
    assert set(found.behind) == {2}
    assert found.lines() == []
    made.folder.eval_prompts.unlink()
    assert compare(made.sweep.history(), made.folder) is None
    by_training = Measured(tmp_path / "other", metric="train_loss")
    for level in (2.0, 2.1):
        by_training.trial(level + noise(1))
    assert compare(by_training.sweep.history(), by_training.folder) is None


@pytest.mark.parametrize(("prompts", "said"), [(9, None), (12, "Only 200 rows"), (100, "")])
def test_few_prompts_are_said_and_very_few_have_no_interval(
    tmp_path: Path, prompts: int, said: str | None
) -> None:
    made = Measured(tmp_path, prompts=[row % prompts for row in range(ROWS)])
    for seed, level in enumerate((2.0, 2.1)):
        made.trial(level + noise(seed))
    if said is None:
        assert compare(made.sweep.history(), made.folder) is None
        return
    assert (said in made.compare().lines()[-1]) is True
    assert ("Only" in made.compare().lines()[-1]) is bool(said)
