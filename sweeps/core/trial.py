"""Defines trials, their reports, and the Coordinator's decisions, for every layer."""

from __future__ import annotations

import enum
import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

OUTSIDE = 2**40  # numbers of configs that no Optuna trial stands for begin here
KEY_LENGTH = 10  # hex digits: 40 bits, far beyond any sweep's number of trials


class State(enum.StrEnum):
    """The state of a trial, as in the `status` column of trials.csv."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    FAILED = "failed"

    def is_finished(self) -> bool:
        return self not in (State.WAITING, State.RUNNING)

    @property
    def is_cut_short(self) -> bool:
        """Whether it ended before its budget was spent, by a pruner or by a user: not ranked."""
        return self in (State.PRUNED, State.STOPPED)


class Decision(enum.StrEnum):
    """The Coordinator's answer to a report or a log."""

    CONTINUE = "continue"
    PRUNE = "prune"  # stop: this trial is not worth its budget
    STOP = "stop"  # commit a checkpoint and leave: the sweep is interrupted, or the trial stopped


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One config to train.

    Attributes:
        key: hash of `config`; names the trial's folder.
        number: 0, 1, 2, ... in the order in which trials were asked for.
        seed: seeds initialisation, data order and dropout.
        values: the searched config keys and what they are set to, e.g. `trainer.optim: sgd`.
        config: the resolved training config: sections model, data, peft, trainer, and seed,
            budget and evaluations (see `sweeps.config.spec.TrainSpec`).
        halvings: how often its micro-batch is to be halved (`TrainSpec.halved`), since it ran out
            of memory; the config, and with it the key, stay what they are.
    """

    key: str
    number: int
    seed: int
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    halvings: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a trial measured at one evaluation.

    Attributes:
        index: i of `sweep.evaluations`; 0 is the base model before any step.
        step: optimizer steps done.
        examples: training examples seen.
        tokens: training tokens seen, padding left out.
        metrics: finite numbers by name; always `eval_loss` (nats per labelled token).
        row_losses: what `sweeps.results.row_losses` keeps in a file; no part of the JSON.
    """

    index: int
    step: int
    examples: int
    tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    row_losses: np.ndarray[Any, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, self.metrics.values()))
        assert finite, f"a report holds finite numbers only: {self.metrics}"

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "step": self.step,
            "examples": self.examples,
            "tokens": self.tokens,
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        return cls(
            index=int(data["index"]),
            step=int(data["step"]),
            examples=int(data["examples"]),
            tokens=int(data["tokens"]),
            # A long sweep holds hundreds of thousands of these, under the same few names.
            metrics={sys.intern(name): value for name, value in data["metrics"].items()},
        )


def fingerprint(value: object, length: int = KEY_LENGTH) -> str:
    """A short stable hash of any JSON-like value; dictionaries compare by content, not order."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
