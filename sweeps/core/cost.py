"""The parts that the cost of training a config alone is put together from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a micro-batch and an optimizer step of one trial took, alone on a device.

    Memory is the peak of the device, or of the process on a CPU, in MiB.

    Attributes:
        micro_s: seconds of a micro-batch of the data's mean length: rows collected, forward and
            backward pass.
        tokens: of a micro-batch, the mean over the trial's rows.
        padded: the same, with the padding to the longest row of its micro-batch.
        passes_mb: peak of the passes, the optimizer's state left out.
        held_mb: held between the passes and the optimizer step, the state left out.
        update_s: seconds of an optimizer step: clipping, step, schedule, gradients cleared.
        update_mb: peak of the optimizer step beyond what was held before it.
        state_mb: the optimizer's state.
    """

    micro_s: float
    tokens: float
    padded: float
    passes_mb: float
    held_mb: float
    update_s: float
    update_mb: float
    state_mb: float

    @classmethod
    def from_json(cls, told: Mapping[str, float]) -> Parts:
        """Read what an event holds; keys of a newer version are passed over."""
        return cls(**{each.name: told[each.name] for each in fields(cls)})


def tokens_per_second(micro: Parts, update: Parts, accumulation: int) -> float:
    """Tokens a second of a config alone, padding not counted.

    Args:
        micro: of a config with the same micro-batches.
        update: of a config with the same optimizer step.
        accumulation: micro-batches of an optimizer step.
    """
    return micro.tokens / max(micro.micro_s + update.update_s / accumulation, 1e-9)


def peak_memory_mb(micro: Parts, update: Parts) -> float:
    """Peak memory of a config alone, from the same parts."""
    return max(micro.passes_mb, micro.held_mb + update.update_mb) + update.state_mb
