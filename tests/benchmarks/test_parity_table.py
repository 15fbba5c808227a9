"""The table of how far lanes are from SFTTrainer: built in pieces, the largest distance of each."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import parity
from benchmarks.parity import Distance, Found


def found(name: str, rows: str, *, flat: Distance) -> Found:
    return Found(
        name=name, rows=rows, flat=flat, padded=Distance(losses=2e-7, weights=4e-6), seconds=5.0
    )


def test_the_largest_of_all_trials_counts() -> None:
    one, other = Distance(losses=1e-7, weights=3e-5), Distance(losses=2e-6, weights=1e-5)
    assert one | other == other | one == Distance(losses=2e-6, weights=3e-5)
    assert Distance() | one == one
    assert [str(one), str(Distance())] == ["1e-07, 3e-05", "-"]


def test_what_is_in_the_file_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[str, str]] = []

    def train(name: str, rows: str) -> Found:
        trained.append((name, rows))
        return found(name, rows, flat=Distance())

    kinds = {name: (lambda rows, name=name: train(name, rows)) for name in ("sgd", "mamba")}
    monkeypatch.setattr(parity, "everything", lambda: kinds)
    output = tmp_path / "parity.jsonl"
    before = found("sgd", "short", flat=Distance(losses=1e-6, weights=3e-6))
    output.write_text(json.dumps(asdict(before)) + "\n")

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["parity", "--output", str(output), *words])
        parity.main()
        return capsys.readouterr().out

    assert "3 of 4 are left: the same command goes on with them." in run("--minutes", "0")
    assert trained == []
    assert "are left" not in run()
    assert trained == [("sgd", "unlike"), ("mamba", "short"), ("mamba", "unlike")]
    assert "| mamba | - | 2e-07, 4e-06 | - | 2e-07, 4e-06 |" in run()
    assert len(trained) == 3


def test_every_optimizer_and_architecture_is_in_it() -> None:
    from support.parity import FAMILIES, optimizers

    there = set(parity.everything())
    assert there == {*optimizers(), parity.LANES, *FAMILIES}
    assert len(FAMILIES) >= 89
