"""A sweep's config as frozen dataclasses, with each key's type, range and facts at its field.

`Config` is what conf/config.yaml says, `Spec` the sweep that it describes, and `TrainSpec` what a
worker needs to train one trial. `sweeps.config.validation` makes them, and finds every error of a
config at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from sweeps.config.setting import (
    Count,
    FromZero,
    Keys,
    Mappings,
    NotNegative,
    Number,
    Positive,
    Whole,
    Words,
    YamlWord,
    setting,
)

Direction = Literal["minimize", "maximize"]
Metric = Literal["eval_loss", "train_loss"]
# What trials can be ranked by, and which way it is better; each is in every report of a trial.
METRICS: Mapping[Metric, Direction] = {"eval_loss": "minimize", "train_loss": "minimize"}
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
SearchName = Literal["grid", "random", "tpe", "gp", "cmaes", "qmc", "quick"]
PrunerName = Literal["none", "median", "percentile", "asha", "hyperband", "patient"]
Kernels = Literal["torch", "liger"]  # of the norms and gated layers of a pack's base
Strategy = Literal["ddp", "fsdp"]  # the devices of a trial share its rows; its weights, too

_WHERE = "it says where trials run"
_FILES = "it says where files go"
_MEASURED = (
    "it changes what the evaluation measures, so trials could not be compared; run one sweep for "
    "each value"
)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The base model. `path` is a Hub id or a local folder."""

    path: str = setting(tracked=True)
    revision: str | None = setting(None, tracked=True)
    dtype: Dtype = setting("auto", tracked=True, searched=True)
    quantization: Literal["none", "nf4", "int8"] = setting("none", tracked=True, searched=True)
    attn_implementation: str = setting("auto", tracked=True, searched=True)
    # A Jinja file, for a base model without a template.
    chat_template: str | None = setting(None, tracked=True)
    trust_remote_code: bool = setting(False, tracked=True)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The data and how it is split. Fractions are shares of rows, decided by a hash of each row."""

    source: Literal["docstrings", "file", "hub"] = setting(tracked=True)
    # file: paths, globs or folders; hub: the data set's id
    path: str | Words | None = setting(None, tracked=True)
    name: str | None = setting(None, tracked=True)  # hub: the data set's config
    revision: str | None = setting(None, tracked=True)
    split: str = setting("train", tracked=True)
    format: Literal["auto", "json", "csv", "parquet", "arrow"] = setting("auto", tracked=True)
    encoding: str | None = setting(None, tracked=True)  # of text files; None: UTF-8, or their mark
    columns: Mapping[str, Any] = field(default_factory=dict)  # our column <- theirs
    limit: Whole | None = setting(None, tracked=True)  # rows, before the split
    eval_path: str | Words | None = setting(None, tracked=True)  # files of the evaluation's own
    eval_split: str | None = setting(None, tracked=True)  # hub: a split of its own for it
    eval_fraction: Number = setting(0.05, tracked=True)
    eval_limit: Whole | None = setting(None, tracked=True)  # rows of it that are measured
    test_fraction: Number = setting(0.0, tracked=True)
    # What becomes of rows to measure on whose prompt is trained on; None: they stay.
    shared_prompts: Literal["move", "drop"] | None = setting(None, tracked=True)
    max_length: Whole = setting(1024, tracked=True)  # tokens
    max_truncated: Number = setting(0.5, tracked=True)  # share of rows that may be cut there
    on_bad_row: Literal["error", "skip"] = setting("error", tracked=True)


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Where a trial trains."""

    kind: Literal["auto", "packed", "solo"] = "auto"
    lanes: Count | Literal["auto"] = "auto"
    kernels: Kernels = "torch"
    cpus_per_trial: Positive = 1
    gpus_per_trial: NotNegative | Literal["auto"] = "auto"
    devices_per_trial: Count = 1


@dataclass(frozen=True, kw_only=True)
class BudgetSpec:
    """Training examples that each trial sees: one of the two is set."""

    examples: Count | None = None
    epochs: Positive | None = None

    def rows(self, available: int) -> int:
        """Examples per trial, if the training split has `available` rows."""
        if self.examples is not None:
            return self.examples
        assert self.epochs is not None
        return max(1, round(self.epochs * available))


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """What to try, in what order, and when to stop."""

    space: Mapping[str, Any] = setting(factory=dict, may_grow=True, tracked=True)
    when: Mapping[str, Any] = setting(factory=dict, tracked=True)
    # Partial configs that are tried before the search's own; may_change: a folder may get more.
    first: Mappings = setting((), may_change=True, tracked=True)
    # Run folders: of whose finished trials those that are this sweep's are taken over; whose best
    # configs are tried first.
    reuse: Words = setting((), may_change=True)
    learn_from: Words = setting((), may_change=True)
    metric: Metric = setting("eval_loss", tracked=True)
    direction: Direction = setting("minimize", tracked=True)
    search: SearchName = setting("grid", tracked=True)
    search_options: Mapping[str, Any] = setting(factory=dict, tracked=True)
    pruner: PrunerName = setting("none", tracked=True)
    pruner_options: Mapping[str, Any] = setting(factory=dict, tracked=True)
    # None: the whole grid
    trials: Count | None = setting(None, may_change=True, may_set=True, tracked=True)
    repeats: Count = setting(1, may_grow=True, may_set=True, tracked=True)
    # None: all configs get the repeats; else so many of the best, once the search is over.
    finalists: Count | None = setting(None, may_change=True, may_set=True, tracked=True)
    keep: Count = setting(3, may_change=True, may_set=True)
    evaluations: Count = setting(8, tracked=True)
    budget: BudgetSpec = setting(
        factory=BudgetSpec,
        tracked=True,
        owner="all trials see equally much, or they could not be compared; run one sweep for each "
        "value, or read the losses of one long trial at its sweep.evaluations",
    )
    device_hours: Positive | None = setting(None, may_change=True, may_set=True, tracked=True)
    time_budget_s: Positive | None = setting(None, may_change=True, may_set=True, tracked=True)
    max_concurrent: Count | None = setting(None, may_change=True, may_set=True)
    max_retries: FromZero = setting(2, may_change=True, may_set=True)
    max_same_error: Count = 3

    @property
    def kept(self) -> int:
        """Configs whose checkpoints are kept: each may still be the best."""
        return max(self.keep, self.finalists or 0)

    def planned_trials(self, configs: int) -> int:
        """Trials of so many configs, with their repeats."""
        repeated = configs if self.finalists is None else min(configs, self.finalists)
        return configs + repeated * (self.repeats - 1)


@dataclass(frozen=True, kw_only=True)
class TrackingSpec:
    """Where a sweep is shown. `auto`: W&B is online when a key is found, else offline."""

    kind: Literal["wandb", "mlflow", "tensorboard"] = "wandb"
    mode: Annotated[Literal["auto", "online", "offline", "off"], YamlWord] = "auto"
    project: str = "sft-sweeps"
    entity: str | None = None
    uri: str | None = None  # MLflow's server or store; None: MLFLOW_TRACKING_URI, or a file here
    tags: Words = ()
    alert: bool = False  # one at the end of the sweep; W&B's alone


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """`local` starts Ray on this machine; `ray` joins the cluster at `address`."""

    kind: Literal["local", "ray"] = "local"
    address: str | None = None
    cpus: Count | None = None  # local: None takes what there is
    gpus: FromZero | None = None
    price_per_device_hour: Positive | None = setting(None, may_set=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The composed config. What a section's field says holds for all keys of the section."""

    seed: FromZero = setting(
        tracked=True, owner="sweep.repeats runs each config with several seeds"
    )
    name: str | None = setting(None, may_change=True, owner="it names the sweep")
    run_dir: str | None = setting(None, may_change=True, owner=_FILES)
    storage: str | None = setting(None, may_change=True, owner=_FILES)
    accept_changes: bool = setting(False, may_change=True, owner="it says whether to go on")
    model: ModelSpec = setting(owner=_MEASURED)
    data: DataSpec = setting(owner=_MEASURED)
    peft: Keys = setting(tracked=True, searched=True)  # LoraConfig's fields
    trainer: Keys = setting(tracked=True, searched=True)  # SFTConfig's fields
    engine: EngineSpec = setting(may_change=True, owner=_WHERE)
    sweep: SearchSpec = setting(owner="it says how to search")
    tracking: TrackingSpec = setting(may_change=True, owner="it says what is tracked")
    cluster: ClusterSpec = setting(may_change=True, owner=_WHERE)


def halved(batch: int, accumulation: int) -> tuple[int, int] | None:
    """The next smaller micro-batch, and its accumulation; None if it is one row already."""
    rows, half = batch * accumulation, batch // 2
    if not half:
        return None
    smaller = next(size for size in range(half, 0, -1) if rows % size == 0)
    return smaller, rows // smaller


@dataclass(frozen=True, kw_only=True)
class Warm:
    """The checkpoint of another trial whose weights a trial begins with."""

    trial: str
    step: int


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """One trial's training: all that changes its numbers, nothing that only says where it runs.

    Attributes:
        peft: `method` (lora, qlora, full), the rest LoraConfig's fields.
        trainer: SFTConfig's fields.
        examples: rows of the materialised training stream; None until the data is counted.
        evaluations: reports, evenly spread over the examples.
        warm: what it begins with, if not with the base model's weights.
    """

    model: ModelSpec
    data: DataSpec
    peft: Mapping[str, Any]
    trainer: Mapping[str, Any]
    seed: int
    budget: BudgetSpec
    evaluations: int
    warm: Warm | None = None

    @property
    def trains_base(self) -> bool:
        """Whether the base model's own weights are trained, not an adapter's."""
        return self.peft.get("method") == "full"

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
        divisor of them that is not above its half. None if it is one row already.
        """
        spec = self
        for _ in range(times):
            sizes = halved(spec.batch_size, spec.accumulation_steps)
            if sizes is None:
                return None
            smaller = {
                "per_device_train_batch_size": sizes[0],
                "gradient_accumulation_steps": sizes[1],
            }
            spec = replace(spec, trainer={**spec.trainer, **smaller})
        return spec

    def steps(self, examples: int) -> int:
        """Optimizer steps for `examples` rows; the last one may be smaller."""
        return math.ceil(examples / (self.batch_size * self.accumulation_steps))

    def report_steps(self, examples: int) -> dict[int, list[int]]:
        """Optimizer step -> the reports due there: i where i/evaluations of the budget is seen.

        Several reports fall on one step if the trial has fewer steps than evaluations.
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
    strategy: Strategy = setting(  # trainer.strategy: no field of SFTConfig, as the others are
        "ddp",
        may_change=True,
        owner="it says where a trial's weights lie, not what it learns",
    )
    base: Mapping[str, Any]
    public: Mapping[str, Any]  # the whole resolved config, secrets masked: sweep.yaml
    accept_changes: bool = False  # go on though the data or the base model has changed
