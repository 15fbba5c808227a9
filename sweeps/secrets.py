"""Keeping secrets out of files, logs and tracked configs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

MASK = "***"

_SECRET_KEY = re.compile(
    r"(^|[._-])(api_?key|access_?key|secret\w*|passw(or)?d|credentials?|(hub|auth|access|hf)?_?token)$",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?$", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_URL_QUERY = re.compile(
    r"(?<=[?&])([\w-]*(?:token|key|secret|signature|password|credential|sig)[\w-]*)=[^&\s]+",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # a shorter value of KEY=... would mask ordinary words


def is_secret_key(key: str) -> bool:
    """Whether a config key of this name holds a secret, such as `trainer.hub_token`."""
    return _SECRET_KEY.search(key) is not None


def scrub(text: str) -> str:
    """`text` without URL logins, URL keys and the values of secret environment variables."""
    text = _URL_LOGIN.sub(MASK, text)
    text = _URL_QUERY.sub(rf"\1={MASK}", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_VARIABLE.search(name):
            text = text.replace(value, MASK)
    return text


def masked(key: str, value: object) -> object:
    """`value` as it may be shown or written: secrets replaced, at any depth."""
    if isinstance(value, Mapping):
        return {name: masked(f"{key}.{name}" if key else str(name), v) for name, v in value.items()}
    if is_secret_key(key) and value is not None:
        return MASK
    if isinstance(value, list | tuple):
        return [masked(key, item) for item in value]
    return scrub(value) if isinstance(value, str) else value
