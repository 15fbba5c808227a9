"""Masks secrets in files, logs and tracked configs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

MASK = "***"

_WORDS = r"api_?key|access_?key|private_?key|secret\w*|passw(?:or)?d|passphrase|credentials?"
_SECRET_KEY = re.compile(rf"(?:^|[._-])(?:{_WORDS}|(?:hub|auth|access|hf)?_?token)$", re.IGNORECASE)
# Tokens of a tokenizer, which are no secrets: eos_token, pad_token and their like.
_PLAIN_KEY = re.compile(r"(?:^|[._-])(?:bos|eos|pad|unk|sep|cls|mask|image|video|audio)_token$")
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL)S?$", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s?#]+(?=@)")
_URL_QUERY = re.compile(
    r"(?<=[?&])([\w-]*(?:token|key|secret|signature|password|credential|sig)[\w-]*)=[^&\s]+",
    re.IGNORECASE,
)
# hub_token=..., "password": "..." in an override, a message or a traceback
_ASSIGNED = re.compile(
    rf"\b((?:[\w.]*[._])?(?:{_WORDS}|(?:hub|auth|access|hf)_token)[\"']?\s*[=:]\s*[\"']?)"
    r"[^\s,;\"'(){}\[\]]+",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 8  # a shorter value of KEY=... would mask ordinary words


def is_secret_key(key: str) -> bool:
    """Whether a config key of this name holds a secret, such as `trainer.hub_token`."""
    return _SECRET_KEY.search(key) is not None and _PLAIN_KEY.search(key) is None


def scrub(text: str) -> str:
    """`text` without URL logins, URL keys, assigned secrets and those in the environment."""
    text = _URL_LOGIN.sub(MASK, text)
    text = _URL_QUERY.sub(rf"\1={MASK}", text)
    text = _ASSIGNED.sub(rf"\g<1>{MASK}", text)
    for value in _environment():
        text = text.replace(value, MASK)
    return text


def masked(key: str, value: object) -> object:
    """`value` as it may be shown or written: secrets replaced, at any depth."""
    if is_secret_key(key) and value is not None:
        return MASK
    if isinstance(value, Mapping):
        return {name: masked(f"{key}.{name}" if key else str(name), v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [masked(key, item) for item in value]
    return scrub(value) if isinstance(value, str) else value


def _environment() -> list[str]:
    """Secret values of the environment; the longest first, since one may be part of another."""
    # Names first: a library's thread may take a variable away while they are looked through.
    found = {name: os.environ.get(name, "") for name in list(os.environ)}
    values = {
        value
        for name, value in found.items()
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name)
    }
    return sorted(values, key=len, reverse=True)
