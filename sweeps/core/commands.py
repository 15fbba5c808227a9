"""Writes commands to copy: values and overrides in Hydra's grammar, and whole command lines.

Every command that the user is told to type is written here, and means the same when pasted.
Standard library only: the hints of `trainers`, which knows no Hydra, come from here too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.core.secrets import masked

_PROGRAM = ("python", "-m", "orchestrator")
# Text that Hydra reads as text without quotes.
_BARE = re.compile(r"(?:[A-Za-z_]|\.{0,2}/)[A-Za-z0-9_./-]*")
_WORDS = ("null", "true", "false", "inf", "nan")  # no text, in upper or lower case
# A mapping's key cannot be quoted: these letters, those that a backslash escapes, and no others.
_KEY = re.compile(r"[A-Za-z0-9_/\-\\+.$%*@?|()\[\]{}:=, \t]+")
_ESCAPED = re.compile(r"[\\()\[\]{}:=, \t]")
_WHOLE = r"(?:0|[1-9](?:_?\d)*)"
_POINT = rf"(?:{_WHOLE}\.|{_WHOLE}?\.\d(?:_?\d)*)"
_NUMBER = re.compile(rf"[+-]?(?:(?:{_WHOLE}|{_POINT})(?:[eE][+-]?\d(?:_?\d)*)?|inf|nan)", re.I)


class UnwritableError(ValueError):
    """Hydra's grammar has no form for the value."""


def written(value: Any) -> str:
    """`value` as Hydra's override parser reads it back.

    Raises:
        UnwritableError: a mapping's key is text that cannot be a key in Hydra's grammar.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        is_bare = _BARE.fullmatch(value) and value.lower() not in _WORDS
        return value if is_bare else _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    return repr(value)


def override(key: str, value: Any) -> str:
    """The word of a command line that sets `key` to `value`, as the program receives it.

    Raises:
        UnwritableError: see `written`.
    """
    return f"{key}={written(_uninterpolated(value))}"


def typed(key: str, value: Any) -> str:
    """The word that sets `key` to `value`, as it is typed in a shell.

    Raises:
        UnwritableError: see `written`.
    """
    return in_a_shell(override(key, value))


def searched(key: str, expression: str) -> str:
    """The word that searches `key`, as it is typed in a shell; `expression` is Hydra's already."""
    return in_a_shell(f"{key}={expression}")


def among(values: Sequence[Any]) -> str:
    """A search among `values`, in Hydra's grammar, whose `choice` does not take null.

    Raises:
        UnwritableError: see `written`; or there is only null.
    """
    if list(values) == [None]:
        raise UnwritableError("null alone cannot be searched")
    parts = ", ".join(written(_uninterpolated(value)) for value in values)
    return parts if len(values) > 1 else f"choice({parts})"


def in_a_shell(word: str) -> str:
    """A word, such as a path, as it is typed in a shell."""
    return shlex.quote(word)


def masked_word(key: str, text: str) -> str:
    """An override as it may be hashed or shown."""
    return f"{key}={masked(key, text)}"


def command_line(words: Sequence[str]) -> str:
    """The command with these words, for a shell; secrets masked."""
    shown = [masked_word(*word.split("=", 1)) if "=" in word else word for word in words]
    return shlex.join([*_PROGRAM, *shown])


def holds_command(text: str) -> bool:
    """Whether a text has a command in it that `command_line` may have written."""
    return shlex.join(_PROGRAM) in text


def changed(command: str, words: Sequence[str], folder_suffix: str = "") -> str:
    """A command that `command_line` wrote, with these words in place of its own for their keys.

    Args:
        folder_suffix: is put behind the folder that the command names, if it does.
    """
    keys = {word.partition("=")[0] for word in words}
    kept = []
    for word in shlex.split(command)[len(_PROGRAM) :]:
        key = word.lstrip("+").partition("=")[0].removeprefix("sweep.space.")
        if key == "run_dir":
            word = f"{word}{folder_suffix}" if word[-1] != '"' else f'{word[:-1]}{folder_suffix}"'
        if key not in keys:
            kept.append(word)
    return command_line([*kept, *words])


def _quoted(text: str) -> str:
    """In double quotes. Backslashes count only before a quote, or at the end."""
    escaped = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + (r"\"" if found[2] else ""), text)
    return f'"{escaped}"'


def _key(key: Any) -> str:
    if not isinstance(key, str):
        return written(key)
    if not _KEY.fullmatch(key) or _NUMBER.fullmatch(key) or key.lower() in _WORDS:
        raise UnwritableError(f"{key!r} cannot be a key of a mapping on a command line")
    return _ESCAPED.sub(r"\\\g<0>", key)


def _uninterpolated(value: Any) -> Any:
    """`value` with `${` escaped for OmegaConf, which would look up what follows it."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _uninterpolated(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_uninterpolated(item) for item in value]
    return value
