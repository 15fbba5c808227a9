"""When pruners first compare trials, what that saves, and where a schedule misleads them."""

from __future__ import annotations

from typing import Any

import pytest
from support.driving import LR, OPTIM, make

from sweeps.config.spec import PrunerName, SearchSpec
from sweeps.search.pruning import expected_share, first_judged, misled

SCHEDULE = "trainer.lr_scheduler_type"


def pruning(pruner: PrunerName, **options: Any) -> SearchSpec:
    return SearchSpec(pruner=pruner, pruner_options=options, evaluations=8)


@pytest.mark.parametrize(
    ("spec", "first", "share"),
    [
        (pruning("none"), None, 1.0),
        (pruning("patient"), None, 1.0),
        (pruning("asha"), 1, 1 / 8 + 1 / 16 + 1 / 16 + 1 / 16),
        (pruning("asha", min_resource=5), 5, 5 / 8 + 3 / 16),
        (pruning("asha", min_resource=1, min_early_stopping_rate=2), 4, 0.75),
        (pruning("asha", min_resource=5, reduction_factor=4), 5, 5 / 8 + 3 / 32),
        (pruning("median", n_warmup_steps=4), 4, 0.75),
        (pruning("percentile", percentile=75.0, n_warmup_steps=4), 4, 0.875),
    ],
)
def test_what_a_pruner_saves_follows_from_when_it_compares(
    spec: SearchSpec, first: int | None, share: float
) -> None:
    assert first_judged(spec) == first
    assert expected_share(spec) == pytest.approx(share)


def notes(space: dict[str, Any], schedule: str = "cosine", **sweep: Any) -> list[str]:
    spec, parsed = make(space, **sweep)
    spec.sweep.__dict__["evaluations"] = 8
    return misled(spec.sweep, parsed, {SCHEDULE: schedule})


def test_a_pruner_that_compares_rates_too_early_is_told_with_the_way_out() -> None:
    rates = {LR: "choice(1e-4, 1e-3)"}
    early = {"pruner": "asha", "pruner_options": {"reduction_factor": 4}}
    (note,) = notes(rates, **early)
    assert note.startswith("asha compares trials from evaluation 1 of 8 on.")
    assert "sweep.pruner_options.min_resource=5 waits for that" in note
    assert notes({**rates, SCHEDULE: "choice(constant, linear)"}, "constant", **early)
    (note,) = notes(rates, pruner="asha", pruner_options={"min_resource": 5, "reduction_factor": 4})
    assert "stops all but one in 4 trials at evaluation 5" in note
    assert "sweep.pruner_options.reduction_factor=2 has not" in note
    for kept in (
        notes(rates, "constant_with_warmup", **early),
        notes({OPTIM: "choice(a, b)"}, **early),
        notes(rates, pruner="asha", pruner_options={"min_resource": 5}),
        notes(rates, pruner="percentile", pruner_options={"percentile": 75.0}),
        notes(rates, pruner="patient"),
        notes(rates),
    ):
        assert kept == []
