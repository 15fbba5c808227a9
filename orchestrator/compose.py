"""Hydra's compose, with a sweep's own reading of overrides.

Three kinds of override are taken out before Hydra sees them: `sweep.space={...}` replaces the file's
space (Hydra would merge), `sweep.space.KEY=...` sets one searched key, and any `KEY=choice(...)` or
`KEY=a,b` adds one. The rest goes to Hydra, which writes nothing of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeps.errors import ConfigError, Problem, nearest
from sweeps.resolve import SECTIONS
from sweeps.secrets import masked, scrub
from sweeps.spec import Spec
from sweeps.trial import fingerprint

CONF = Path(__file__).resolve().parent.parent / "conf"

# Keys that may differ between two starts on one folder, so the default folder's name leaves them out.
FREE_KEYS = (
    "sweep.trials sweep.keep sweep.time_budget_s sweep.max_concurrent sweep.max_retries "
    "tracking cluster engine run_dir name"
).split()

SPACE = "sweep.space"


@dataclass
class Overrides:
    """A command line, sorted by who reads what."""

    for_hydra: list[str] = field(default_factory=list)
    space: dict[str, str] = field(default_factory=dict)
    replaces_space: bool = False
    naming: list[str] = field(default_factory=list)  # what the default folder's hash is made of


def groups() -> dict[str, list[str]]:
    """Config group -> its choices, as they lie in conf/."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def compose_config(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], str, str]:
    """The config of a command line.

    Returns:
        the resolved config, its unresolved training sections, the sweep's default name, and its
        default folder.

    Raises:
        ConfigError: an override cannot be read, or names a group or choice that there is not.
    """
    overrides = sort_overrides(argv)
    config, choice = _compose(overrides)
    space = _space(config, overrides)
    config["sweep"]["space"] = {}
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError([Problem(key="config", message=str(error).splitlines()[0])]) from None
    base = OmegaConf.to_container(config, resolve=False)
    assert isinstance(resolved, dict) and isinstance(base, dict)
    _refuse_missing(resolved)
    resolved["sweep"]["space"] = space
    name = str(resolved.get("name") or choice)
    suffix = f"-{fingerprint(sorted(overrides.naming), 8)}" if overrides.naming else ""
    sections = {section: base[section] for section in SECTIONS}
    return resolved, sections, name, f"outputs/{name}{suffix}"


def _space(config: DictConfig, overrides: Overrides) -> dict[str, Any]:
    """The search space: the file's, or what the command line puts in its place."""
    written = OmegaConf.to_container(config.sweep.space or OmegaConf.create({}), resolve=True)
    assert isinstance(written, dict)
    space = {} if overrides.replaces_space else {str(key): value for key, value in written.items()}
    space.update(overrides.space)
    if overrides.replaces_space:  # the file's conditions go with the keys that they were about
        when = config.sweep.when or {}
        config.sweep.when = {key: when[key] for key in when if key in space}
    return space


def sort_overrides(argv: Sequence[str]) -> Overrides:
    """Sort a command line's words.

    Raises:
        ConfigError: with every word that cannot be read.
    """
    problems: list[Problem] = []
    sorted_ = Overrides()
    known = groups()
    for word in argv:
        problem = _sort(word, known, sorted_)
        if problem is not None:
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    _settle_budget(sorted_)
    return sorted_


def _sort(word: str, known: Mapping[str, list[str]], into: Overrides) -> Problem | None:
    if word in ("-m", "--multirun") or word.startswith("hydra.mode"):
        return Problem(
            key=word,
            message="Hydra's multirun is not used: the sweep is ours. Leave it out; "
            "key=1,2 or sweep.space says what to try.",
        )
    if word.startswith("-"):
        return Problem(key=word, message="is no option. Overrides are written key=value; see --help.")
    key, sign, text = word.partition("=")
    key = key.strip()
    if not sign and not key.startswith("~"):
        return Problem(
            key=scrub(key), message="is no override; write key=value.", nearest=nearest(key, known)
        )
    if not key.startswith(("hydra.", *FREE_KEYS)) and word != "sweep":
        into.naming.append(masked_word(key, text))
    if key == SPACE:
        into.replaces_space = True
        return _take_space(text, into)
    if key.startswith(f"{SPACE}."):
        into.space[key.removeprefix(f"{SPACE}.")] = text
        return None
    try:
        override = OverridesParser.create().parse_override(word)
        is_search = override.is_sweep_override()
    except HydraException as error:
        reason = scrub(str(error).splitlines()[0])
        return Problem(key=key, message=f"cannot be read: {reason}. Quote it in the shell?")
    bare = key.lstrip("+~").split("@")[0]
    if bare in known and "." not in bare:
        return _check_group(bare, text, known[bare], is_search, into, word)
    if is_search:
        into.space[bare] = text
    elif key.startswith(("~", "+", "hydra.")):
        into.for_hydra.append(word)
    elif bare.split(".")[0] not in known and "." in bare:
        return Problem(
            key=bare,
            message=f"is no key of the config; its groups are {', '.join(known)}.",
            nearest=nearest(bare.split(".")[0], known),
        )
    else:
        into.for_hydra.append(f"++{word}")  # unknown names are found, with the rest, by `reading`
    return None


def _check_group(
    group: str, choice: str, choices: list[str], is_search: bool, into: Overrides, word: str
) -> Problem | None:
    if is_search:
        return Problem(
            key=group,
            value=choice,
            message="whole groups cannot be searched; search their keys (e.g. peft.r=4,8), or run "
            "the command once for each.",
        )
    if choice not in choices and choice != "null":
        return Problem(
            key=group,
            value=choice,
            message=f"is none of its choices: {', '.join(choices)}.",
            nearest=nearest(choice, choices),
        )
    if group == "sweep":
        into.naming = [name for name in into.naming if name != word]
    into.for_hydra.append(word)
    return None


def masked_word(key: str, text: str) -> str:
    """An override as it may be hashed or shown."""
    return f"{key}={masked(key, text)}"


def _take_space(text: str, into: Overrides) -> Problem | None:
    body = text.strip()
    if not (body.startswith("{") and body.endswith("}")):
        return Problem(key=SPACE, value=text, message="is written {key: choice(a, b), ...}.")
    for part in split_top(body[1:-1]):
        key, sign, expression = part.partition(":")
        if not sign:
            return Problem(key=SPACE, value=part, message="is written {key: choice(a, b), ...}.")
        into.space[_unquoted(key)] = _unquoted(expression)
    return None


def split_top(text: str) -> Iterator[str]:
    """`text` cut at the commas that no bracket or quote encloses."""
    depth, quote, start = 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:place].strip()
            start = place + 1
    if text[start:].strip():
        yield text[start:].strip()


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", text) else text


def _settle_budget(overrides: Overrides) -> None:
    """Setting one of the two budgets on the command line takes the file's other one back."""
    examples, epochs = "sweep.budget.examples", "sweep.budget.epochs"
    given = {word.lstrip("+").partition("=")[0] for word in overrides.for_hydra}
    if len(given & {examples, epochs}) == 1:
        other = examples if epochs in given else epochs
        overrides.for_hydra.append(f"++{other}=null")


def _compose(overrides: Overrides) -> tuple[DictConfig, str]:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            whole = compose("config", overrides=overrides.for_hydra, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        message = scrub(str(error).strip().splitlines()[0])
        raise ConfigError([Problem(key="config", message=message)]) from None
    choice = str(whole.hydra.runtime.choices.get("sweep", "sweep"))
    OmegaConf.set_struct(whole, False)
    config = OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])
    return config, choice


def _refuse_missing(config: Mapping[str, Any]) -> None:
    missing = [
        Problem(key=key, message="is left open by its file; set it on the command line.")
        for key, value in flatten(config)
        if value == "???"
    ]
    if missing:
        raise ConfigError(missing)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested mapping, with its full key."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it may be written down: secrets masked."""
    shown = masked("", config)
    assert isinstance(shown, dict)
    return shown


def differences(spec: Spec, written: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Key, there, now: what differs from a folder's own config and may not."""
    there, now = dict(flatten(written)), dict(flatten(spec.public))
    return [
        (key, there.get(key), now.get(key))
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]
