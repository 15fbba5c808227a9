"""Names a trial for people: the values that vary, in as few characters as possible.

Pure: the same searched values give the same name in W&B, in the live table and in messages. Names
are for reading only and may coincide; a trial's identity is its key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sweeps.core.secrets import masked

MAX_LENGTH = 100  # W&B shows 128 at most, and leaves room for a seed

_SHORT = {
    "learning_rate": "lr",
    "gradient_accumulation_steps": "accum",
    "per_device_train_batch_size": "batch",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "weight_decay": "decay",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "max_grad_norm": "clip",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "neftune_noise_alpha": "neftune",
    "init_lora_weights": "init",
}
# What people type, if it is too unlike the key to be found by similar spelling.
SPOKEN = {short: name for name, short in reversed(_SHORT.items())} | {
    "batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "grad_accum": "gradient_accumulation_steps",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "rank": "r",
    "modules": "target_modules",
}
_SPEAK_FOR_THEMSELVES = frozenset(
    (
        "lr_scheduler_type",
        "optim",
        "method",
        "quantization",
        "dtype",
        "path",
        "attn_implementation",
    )
)


def trial_name(values: Mapping[str, Any]) -> str:
    """The searched values as words, e.g. `lr=1e-4 cosine accum=4`; `base config` if none vary.

    Args:
        values: searched config keys and what they are set to, in the order of the search space.
    """
    labels = Counter(map(_label, values))
    words = [_word(key, value, labels) for key, value in values.items()]
    name = " ".join(words) or "base config"
    return name if len(name) <= MAX_LENGTH else f"{name[: MAX_LENGTH - 1]}…"


def short_value(value: object) -> str:
    """A value in short form: 1e-4, 0.1, 2048, cosine, q_proj+v_proj, true, none."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{short_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "+".join(short_value(item) for item in value)
    return str(value).rstrip("/").rpartition("/")[2] or str(value)


def _label(key: str) -> str:
    last = key.rpartition(".")[2]
    return _SHORT.get(last, last)


def _word(key: str, value: object, labels: Counter[str]) -> str:
    label = _label(key)
    value = masked(key, value)
    if labels[label] > 1:
        label = key  # two keys would look alike
    elif isinstance(value, str) and label in _SPEAK_FOR_THEMSELVES:
        return short_value(value)
    return f"{label}={short_value(value)}"


def _short_float(value: float) -> str:
    """At most three significant digits, with an exponent only if that is shorter."""
    if value == 0 or 1e-2 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    mantissa, exponent, power = f"{value:.2e}".partition("e")
    if not exponent:
        return mantissa  # inf, nan
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
