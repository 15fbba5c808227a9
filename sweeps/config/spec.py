"""A sweep's config as frozen dataclasses; standard library only, so every layer may import it.

`TrainSpec` is what a worker needs to train one trial; `Spec` is the whole sweep. Both are made by
`sweeps.config.validation`, which finds every error of a config at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Direction = Literal["minimize", "maximize"]
# What trials can be ranked by, and which way it is better; each is in every report of a trial.
METRICS: Mapping[str, Direction] = {"eval_loss": "minimize", "train_loss": "minimize"}
Strategy = Literal["ddp", "fsdp"]  # the devices of a trial share its rows; its weights, too


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The base model. `path` is a Hub id or a local folder."""

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"
    attn_implementation: str = "auto"
    chat_template: str | None = None  # a Jinja file, for a base model without a template
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The data and how it is split. Fractions are shares of rows, decided by a hash of each row."""

    source: Literal["docstrings", "file", "hub"]
    path: str | None = None  # file: path or glob; hub: data set id
    name: str | None = None  # hub: the data set's config
    revision: str | None = None
    split: str = "train"
    format: Literal["auto", "json", "csv", "parquet"] = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)  # our column <- theirs
    limit: int | None = None  # rows, before the split
    eval_path: str | None = None  # a file of its own for the evaluation
    eval_split: str | None = None  # hub: a split of its own for the evaluation
    eval_fraction: float = 0.05
    eval_limit: int | None = None  # rows of the evaluation split that are measured
    test_fraction: float = 0.0
    max_length: int = 1024  # tokens
    max_truncated: float = 0.5  # share of rows that may be cut at max_length
    on_bad_row: Literal["error", "skip"] = "error"


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Where a trial trains."""

    kind: Literal["auto", "packed", "solo"] = "auto"
    lanes: int | Literal["auto"] = "auto"
    cpus_per_trial: float = 1
    gpus_per_trial: float | Literal["auto"] = "auto"
    devices_per_trial: int = 1


@dataclass(frozen=True, kw_only=True)
class BudgetSpec:
    """Training examples that each trial sees: one of the two is set."""

    examples: int | None = None
    epochs: float | None = None

    def rows(self, available: int) -> int:
        """Examples per trial, where the training split has `available` rows."""
        if self.examples is not None:
            return self.examples
        assert self.epochs is not None
        return max(1, round(self.epochs * available))


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """What to try, in what order, and when to stop."""

    space: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, str] = field(default_factory=dict)
    metric: str = "eval_loss"
    direction: Direction = "minimize"
    search: Literal["grid", "random", "tpe", "gp", "cmaes", "qmc"] = "grid"
    search_options: Mapping[str, Any] = field(default_factory=dict)
    pruner: Literal["none", "median", "percentile", "asha", "hyperband", "patient"] = "none"
    pruner_options: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None  # None: the whole grid
    repeats: int = 1
    keep: int = 3
    evaluations: int = 8
    budget: BudgetSpec = field(default_factory=BudgetSpec)
    time_budget_s: float | None = None
    max_concurrent: int | None = None
    max_retries: int = 2
    max_same_error: int = 3


@dataclass(frozen=True, kw_only=True)
class TrackingSpec:
    """Weights & Biases. `auto` is online when a key is found, else offline."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "sft-sweeps"
    entity: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """`local` starts Ray on this machine; `ray` joins the cluster at `address`."""

    kind: Literal["local", "ray"] = "local"
    address: str | None = None
    cpus: int | None = None  # local: None takes what there is
    gpus: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One trial's training: all that changes its numbers, nothing that only says where it runs.

    Attributes:
        peft: `method` (lora, qlora, full), the rest LoraConfig's fields.
        trainer: SFTConfig's fields.
        examples: rows of the materialised training stream; None until the data is counted.
        evaluations: reports, evenly spread over the examples.
    """

    model: ModelSpec
    data: DataSpec
    peft: Mapping[str, Any]
    trainer: Mapping[str, Any]
    seed: int
    budget: BudgetSpec
    evaluations: int

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch."""
        return int(self.trainer.get("per_device_train_batch_size", 8))

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of an optimizer step."""
        return int(self.trainer.get("gradient_accumulation_steps", 1))

    def halved(self, times: int = 1) -> TrainSpec | None:
        """The same training with smaller micro-batches and as much more accumulation.

        The rows of an optimizer step stay the same, so an odd micro-batch goes to the largest
        divisor of them that is not above its half. None where it is one row already.
        """
        spec = self
        for _ in range(times):
            rows = spec.batch_size * spec.accumulation_steps
            half = spec.batch_size // 2
            if not half:
                return None
            batch = next(size for size in range(half, 0, -1) if rows % size == 0)
            smaller = {
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": rows // batch,
            }
            spec = replace(spec, trainer={**spec.trainer, **smaller})
        return spec

    def steps(self, examples: int) -> int:
        """Optimizer steps for `examples` rows; the last one may be smaller."""
        return math.ceil(examples / (self.batch_size * self.accumulation_steps))

    def report_steps(self, examples: int) -> dict[int, list[int]]:
        """Optimizer step -> the reports due there: i where i/evaluations of the budget is seen.

        Several reports fall on one step where the trial has fewer steps than evaluations.
        """
        due: dict[int, list[int]] = {}
        for index in range(1, self.evaluations + 1):
            step = self.steps(math.ceil(index * examples / self.evaluations))
            due.setdefault(step, []).append(index)
        return due


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A whole sweep. `base` is the training config before anything is searched, unresolved."""

    name: str
    run_dir: str
    storage: str | None
    seed: int
    engine: EngineSpec
    sweep: SearchSpec
    tracking: TrackingSpec
    cluster: ClusterSpec
    train: TrainSpec
    strategy: Strategy = "ddp"  # trainer.strategy: it says where a trial's weights lie
    base: Mapping[str, Any]
    public: Mapping[str, Any]  # the whole resolved config, secrets masked: sweep.yaml
    accept_changes: bool = False  # go on where the data or the base model is not what it was
