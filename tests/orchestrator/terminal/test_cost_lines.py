"""What the summary says of costs: of what they are, what packs did, what padding explains."""

from __future__ import annotations

from dataclasses import asdict, replace

from support.sweep_events import Sweep

from orchestrator.terminal.cost_lines import cost_lines
from sweeps.core.cost import Parts
from sweeps.ledger.events import Cost, Report, Start

BATCH, ACCUMULATION = "trainer.per_device_train_batch_size", "trainer.gradient_accumulation_steps"
LARGE = Parts(
    micro_s=0.08,
    tokens=320.0,
    padded=400.0,
    passes_mb=500.0,
    held_mb=450.0,
    update_s=0.0,
    update_mb=20.0,
    state_mb=8.0,
)
SMALL = replace(LARGE, micro_s=0.016, tokens=80.0, padded=80.0)  # a quarter of the rows


def packed() -> Sweep:
    """Two lanes of equal optimizer steps: 8 rows at once, or 2 rows four times."""
    sweep = Sweep()
    keys = []
    for batch, accumulation in ((8, 1), (2, 4)):
        config = {BATCH: batch, ACCUMULATION: accumulation}
        keys.append(sweep.trial(config, state=None, start=False))
        begun = {"attempt": 1, "worker": "box:1", "device": "cpu", "step": 0, "lane": True}
        sweep.add(Start(trial=keys[-1], **begun))
    for key, padded in zip(keys, (4000, 3200), strict=True):
        told = {"attempt": 1, "index": 1, "step": 4, "examples": 80, "tokens": 3200}
        metrics = {"eval_loss": 1.0, "peak_memory_mb": 700.0}
        sweep.add(Report(trial=key, metrics=metrics, decision="continue", **told))
        sweep.end(key, "completed", totals={"tokens": 3200, "padded_tokens": padded})
    return sweep


def measured(sweep: Sweep, number: int, parts: Parts) -> None:
    micro = {BATCH: (8, 2)[number]}
    key = f"{number:010x}"
    sweep.add(Cost(trial=key, device="cpu", micro=micro, update={}, parts=asdict(parts)))


def test_before_the_measurement_the_way_to_it_is_said() -> None:
    unknown, packs = cost_lines(packed().history())
    assert unknown == "What 2 trials cost alone is not measured yet: the same command does it."
    assert "Packs of trials trained at" in packs
    assert packs.endswith("evaluations included, at most 700 MB of memory.")


def test_a_smaller_micro_batch_that_is_faster_is_explained() -> None:
    sweep = packed()
    measured(sweep, 0, LARGE)
    measured(sweep, 1, SMALL)
    columns, _, padding = cost_lines(sweep.history())
    assert columns.endswith("of training a config alone, measured after the trials on cpu.")
    assert padding == (
        "Micro-batches of 2 are 25% faster than of 8 at equal optimizer steps. Less padding "
        "explains 25%: rows are padded to the longest of their micro-batch, which makes 20% of the "
        "tokens padding with 8 rows, 0% with 2."
    )


def test_what_padding_does_not_explain_is_left_to_the_device() -> None:
    sweep = packed()
    measured(sweep, 0, LARGE)
    measured(sweep, 1, replace(SMALL, micro_s=0.01))
    *_, padding = cost_lines(sweep.history())
    assert padding.startswith("Micro-batches of 2 are 100% faster")
    assert "explains 25%" in padding
    assert padding.endswith("The rest is how the device takes larger passes.")


def test_trials_that_trained_alone_need_no_words() -> None:
    sweep = Sweep()
    sweep.trial({}, [1.0])
    assert cost_lines(sweep.history()) == []
