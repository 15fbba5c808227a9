"""What a process imports, and what it does without: imports are most of a short sweep's time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.config.spec import Spec
    from sweeps.space.space import Space

# Those that torch and transformers make by themselves.
_PLAIN_OPTIMIZERS = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}


def unneeded(spec: Spec, space: Space) -> tuple[str, ...]:
    """Libraries that no trial has a use for, and that others import wherever they find them.

    TRL imports wandb, which only the tracking process uses, and PEFT bitsandbytes: a sixth of a
    worker's start.
    """
    return ("wandb",) if _may_use_bitsandbytes(spec, space) else ("wandb", "bitsandbytes")


def _may_use_bitsandbytes(spec: Spec, space: Space) -> bool:
    from sweeps.core.errors import SweepError
    from trainers.model.source import load_config

    train, searched = spec.train, space.values_by_key()
    optimizers = {train.trainer.get("optim", "adamw_torch"), *searched.get("trainer.optim", ())}
    quantizations = {train.model.quantization, *searched.get("model.quantization", ())}
    if quantizations != {"none"} or not optimizers <= _PLAIN_OPTIMIZERS:
        return True
    if train.model.trust_remote_code:  # which may import whatever it likes
        return True
    try:
        return getattr(load_config(train.model), "quantization_config", None) is not None
    except SweepError:  # no such model, which is for others to tell
        return True


def leave_out(names: Sequence[str]) -> None:
    """Have this process find none of these libraries, unless it has imported them already."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


@contextmanager
def importing() -> Iterator[None]:
    """Import much, faster: a million new objects, and the collector would look for garbage in vain.

    It does not look at them later either, which would cost more than a short trial.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
