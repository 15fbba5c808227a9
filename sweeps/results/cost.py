"""What it costs to train each trial's config alone: the part of the answer that a pack hides.

A trial that had its device to itself is its own measurement. The others' costs are put together
from parts, which one worker measures after the trials: those of a micro-batch, by the searched
values that it depends on, and those of an optimizer step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sweeps.config.spec import halved
from sweeps.core.cost import Parts, peak_memory_mb, tokens_per_second
from sweeps.core.trial import State
from sweeps.ledger.history import History, Record
from sweeps.results.ranking import config_ranks

BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_DROPOUT = "peft.lora_dropout"
# Values on which neither part depends. A key that is not listed is taken to count.
_NEITHER = frozenset(
    (
        *("trainer.learning_rate", "trainer.lr_scheduler_type", "trainer.lr_scheduler_kwargs"),
        *("trainer.warmup_steps", "trainer.weight_decay", f"trainer.{ACCUMULATION}"),
        *("trainer.adam_beta1", "trainer.adam_beta2", "trainer.adam_epsilon"),
        *("trainer.logging_steps", "trainer.logging_first_step"),
        *("peft.lora_alpha", "peft.use_rslora"),
    )
)
_OF_UPDATE = frozenset(("trainer.optim", "trainer.optim_args", "trainer.max_grad_norm"))
_OF_MICRO = frozenset(
    (
        *(f"trainer.{BATCH}", "trainer.gradient_checkpointing", "trainer.activation_checkpointing"),
        *(_DROPOUT, "data.max_length"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What training a config alone costs; None where that is not known."""

    tokens_per_second: float | None = None
    peak_memory_mb: float | None = None
    optimizer_state_mb: float | None = None


class Costs:
    """The costs of a sweep's trials, from its history as it is now."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._micro: dict[str, Parts] = {}
        self._update: dict[str, Parts] = {}
        self._failed: set[tuple[str, str]] = set()
        for event in history.costs:
            names = _name(event.micro), _name(event.update)
            if event.parts is None:
                self._failed.add(names)
                continue
            self._micro.setdefault(names[0], Parts.from_json(event.parts))
            self._update.setdefault(names[1], Parts.from_json(event.parts))

    def of(self, record: Record) -> Alone:
        """What a trial's config costs alone; of a running trial that has a device: so far."""
        own = Alone(
            tokens_per_second=measure(record, "tokens_per_second"),
            peak_memory_mb=measure(record, "peak_memory_mb"),
            optimizer_state_mb=measure(record, "optimizer_state_mb"),
        )
        if record.is_alone:
            return own
        if record.cost:
            return Alone(**{each.name: record.cost.get(each.name) for each in fields(Alone)})
        found = self.parts(record)
        speed = None if found is None else tokens_per_second(*found, self.sizes(record)[1])
        peak = own.peak_memory_mb  # of a process of its own, whoever trains beside it
        if record.is_lane:
            peak = None if found is None else peak_memory_mb(*found)
        return Alone(
            tokens_per_second=speed,
            peak_memory_mb=peak,
            optimizer_state_mb=own.optimizer_state_mb,
        )

    def measured(self, record: Record) -> dict[str, float] | None:
        """The cost of a trial that shared its device, to be kept elsewhere; None if not known."""
        found = {name: cost for name, cost in vars(self.of(record)).items() if cost is not None}
        return found if "tokens_per_second" in found else None

    def parts(self, record: Record) -> tuple[Parts, Parts] | None:
        """What was measured of its micro-batch and of its optimizer step; None without both."""
        of_micro, of_update = _names(record)
        micro, update = self._micro.get(of_micro), self._update.get(of_update)
        return None if micro is None or update is None else (micro, update)

    def sizes(self, record: Record) -> tuple[int, int]:
        """Rows of a micro-batch of a trial, and micro-batches of an optimizer step."""
        trainer = self._history.spec.get("trainer") or {}
        batch, accumulation = (
            int(record.values.get(f"trainer.{name}", trainer.get(name, default)))
            for name, default in ((BATCH, 8), (ACCUMULATION, 1))
        )
        for _ in range(record.halvings):
            batch, accumulation = halved(batch, accumulation) or (batch, accumulation)
        return batch, accumulation

    def next_to_measure(self) -> Record | None:
        """The trial whose measurement says most of what is missing; None if nothing is.

        Of several the one that ranks first.
        """
        if int((self._history.spec.get("engine") or {}).get("devices_per_trial") or 1) > 1:
            return None  # a group's trials are measured as they train, or not at all
        ranks = config_ranks(self._history)
        last = len(ranks) + 1  # of a trial that is not ranked
        missing = [
            (self._missing(r), -ranks.get(r.config, last), -r.number, r) for r in self._priced()
        ]
        found = max(missing, key=lambda each: each[:3], default=None)
        return found[3] if found and found[0] else None

    def unknown(self) -> int:
        """Completed trials of which the cost alone is not known."""
        return sum(self.parts(record) is None for record in self._priced())

    def _priced(self) -> Iterator[Record]:
        """The trials whose cost has to be put together."""
        for record in self._history.trials.values():
            is_complete = record.state is State.COMPLETED and record.tells_engine
            is_known = record.is_alone or record.cost
            if is_complete and not is_known and self._history.value(record) is not None:
                yield record

    def _missing(self, record: Record) -> int:
        """How many of its two parts a measurement of this trial would add."""
        names = _names(record)
        if names in self._failed:
            return 0
        return (names[0] not in self._micro) + (names[1] not in self._update)


def settings(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values on which a trial's micro-batch depends, and those of its optimizer step."""
    values = {key: value for key, value in record.values.items() if key not in _NEITHER}
    micro = {key: value for key, value in values.items() if key not in _OF_UPDATE}
    if _DROPOUT in micro:  # the mask is drawn alike at any rate
        micro[_DROPOUT] = bool(micro[_DROPOUT])
    if record.halvings:
        micro["halvings"] = record.halvings
    return micro, {key: value for key, value in values.items() if key not in _OF_MICRO}


def measure(record: Record, name: str) -> float | None:
    """One of a trial's own numbers: at its end, or in its latest report."""
    if name in record.totals:
        return record.totals[name]
    return None if record.latest is None else record.latest.metrics.get(name)


def _names(record: Record) -> tuple[str, str]:
    micro, update = settings(record)
    return _name(micro), _name(update)


def _name(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)
