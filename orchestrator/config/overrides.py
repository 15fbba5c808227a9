"""Sort a command line's overrides by who reads them, and refuse what nobody can read.

Three kinds are taken out before Hydra sees them: `sweep.space={...}` replaces the file's space
(Hydra would merge), `sweep.space.KEY=...` and `sweep.when.KEY=...` set one key (Hydra would cut it
at its dots), and any `KEY=choice(...)` or `KEY=a,b` adds a searched key. The rest is Hydra's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from orchestrator.config.config_files import (
    OPTION,
    groups,
    path_problem,
    renamed_note,
    take_config_dir,
)
from orchestrator.config.paths import DATA_KEYS, literal
from sweeps.config.keys import may_change
from sweeps.config.spec import SearchName
from sweeps.core.commands import masked_word, searched, typed
from sweeps.core.errors import ConfigError, Problem, nearest
from sweeps.core.secrets import is_secret_key, scrub
from sweeps.space.grammar import foreign

SPACE = "sweep.space"
WHEN = "sweep.when"
_OF_SETTINGS = ("trainer.lr_scheduler_kwargs", "sweep.budget")
FIRST = "sweep.first"
# What other tools call a section.
_SECTIONS = {
    **dict.fromkeys(("training", "train", "training_args", "sft", "args"), "trainer"),
    **dict.fromkeys(("lora", "adapter", "peft_config"), "peft"),
    **dict.fromkeys(("dataset", "datasets"), "data"),
    **dict.fromkeys(("wandb", "mlflow", "tensorboard", "logging"), "tracking"),
    **dict.fromkeys(("tune", "search", "hpo"), "sweep"),
}
# What other tools call a choice of a group, and what to write.
_OTHER_CHOICES = {
    "tracking": dict.fromkeys(("none", "false", "no", "disabled", "null"), "tracking=off"),
    "peft": {
        **dict.fromkeys(("none", "false", "no", "null", "sft"), "peft=full"),
        **dict.fromkeys(("4bit", "nf4", "int4"), "peft=qlora"),
    },
    "engine": {
        "fsdp": "engine.devices_per_trial=2 trainer.strategy=fsdp",
        "ddp": "engine.devices_per_trial=2",
    },
    "cluster": dict.fromkeys(
        ("slurm", "kubernetes", "k8s", "auto"), "cluster=ray cluster.address=auto; see launch/"
    ),
}
_SECRET_REASON = "its value has a character that must be quoted"
_TEXTS = (
    "name",
    "model.",
    "data.",
    "tracking.",
    "trainer.optim_args",
)  # what begins the keys whose values are text
_MOST_QUOTED = 200  # letters of a text that a message repeats
# What is no plain text: a quote, an interpolation, or one of Hydra's functions.
_EXPRESSION = re.compile(r"""['"]|\$\{|^[\[{]|\b[a-z_]+\s*\(""")
_SPACE_FORM = "is written {key: choice(a, b), ...}."


@dataclass
class Overrides:
    """A command line, sorted by who reads which override.

    Attributes:
        for_hydra: overrides in Hydra's own grammar.
        space, when: searched key -> expression, searched key -> condition.
        replaces_space: `space` takes the place of the file's.
        naming: the overrides that the hash in the default folder's name is made of.
        forced: the keys that are set with ++, though no trial may read them.
        own: the folder of --config-dir.
    """

    for_hydra: list[str] = field(default_factory=list)
    space: dict[str, str] = field(default_factory=dict)
    when: dict[str, str] = field(default_factory=dict)
    replaces_space: bool = False
    naming: list[str] = field(default_factory=list)
    forced: set[str] = field(default_factory=set)
    own: Path | None = None

    @property
    def given(self) -> set[str]:
        """The keys that Hydra is told to set; those within a mapping too, if each is a setting."""
        keys = {word.lstrip("+").partition("=")[0] for word in self.for_hydra}
        for key in keys & {*_OF_SETTINGS}:
            word = next(each for each in reversed(self.for_hydra) if _cut(each)[1] == key)
            value = OverridesParser.create().parse_override(word).value()
            keys |= {f"{key}.{name}" for name in (value if isinstance(value, Mapping) else ())}
        return keys


def sort_overrides(argv: Sequence[str]) -> Overrides:
    """Sort the words of a command line.

    Raises:
        ConfigError: some cannot be read; it names each.
    """
    problems: list[Problem] = []
    own, words = take_config_dir(argv)
    sorted_ = Overrides(own=own)
    known = groups(own)
    for word in words:
        problem = _refused(word, known) or _sort(word, known, sorted_)
        if problem is not None:
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    _settle_budget(sorted_)
    if FIRST in sorted_.given:
        sorted_.for_hydra.insert(0, f"++{FIRST}=null")  # Hydra puts no list over a mapping
    return sorted_


def _refused(word: str, known: Mapping[str, Sequence[str]]) -> Problem | None:
    """Why a word is no override at all, whatever its key."""
    key, sign, _ = word.partition("=")
    if word in ("-m", "--multirun") or key == "hydra.mode":
        return Problem(
            key=word,
            message="Hydra's multirun is not used: the sweep is ours. Leave it out; "
            "key=1,2 or sweep.space says what to try.",
        )
    if word.startswith("-") or key in ("config_dir", "config-dir"):
        near = nearest(f"--{key.lstrip('-')}", [OPTION])
        message = "is no option. Overrides are written key=value; see --help."
        return Problem(key=key, message=message, nearest=near and f"{near} DIR")
    if key.lstrip("+~") == "hydra.searchpath":
        message = f"is written {OPTION} DIR, and DIR is searched before the shipped files."
        return Problem(key=key, message=message)
    if key.lstrip("+~").startswith("hydra."):
        message = "Hydra's own settings are not used; run_dir=... says where files go."
        return Problem(key=key, message=message)
    if key in known and not sign:
        message = f"is written {key}=CHOICE: one of {', '.join(known[key])}."
        return Problem(key=key, message=message)
    if not key.strip() or (not sign and not key.startswith("~")):
        near = nearest(key, known)
        return Problem(
            key=scrub(word) or "''", message="is no override; write key=value.", nearest=near
        )
    return None


def _sort(word: str, known: Mapping[str, Sequence[str]], into: Overrides) -> Problem | None:
    prefix, key, text = _cut(word)
    if not may_change(key):
        into.naming.append(masked_word(f"{'~' if prefix == '~' else ''}{key}", text))
    if key.split("@")[0] in known and (problem := path_problem(key, text, into.own)):
        return problem
    if prefix != "~":
        if key == SPACE:
            into.replaces_space = True
            return _take_space(text, into)
        for section, taken in ((SPACE, into.space), (WHEN, into.when)):
            if key.startswith(f"{section}."):
                taken[key.removeprefix(f"{section}.")] = _unquoted(text)
                return None
        text = literal(key, text)
        word = f"{prefix}{key}={text}" if "=" in word else word
    try:
        is_search = OverridesParser.create().parse_override(word).is_sweep_override()
    except (HydraException, ValueError) as error:  # ValueError: a number of thousands of digits
        if (ours := foreign(text)) is not None and not is_secret_key(key):
            message = f"is searched with {searched(key, ours)}"
            return Problem(key=key, value=text, message=message)
        if key in known and (meant := _meant(key, text)):
            message = f"is none of its choices: {', '.join(known[key])}.{meant}"
            return Problem(key=key, value=text, message=message)
        reason = _SECRET_REASON if is_secret_key(key) else _in_words(str(error))
        message = f"cannot be read: {reason}. Is it whole, and quoted in the shell?"
        return Problem(key=key, message=message + (_as_literal(key, text) or _as_text(key, text)))
    group = key.split("@")[0]
    if group in known:
        return _take_group(word, prefix, group, text, known[group], is_search, into)
    if is_search and key in DATA_KEYS:
        message = (
            "cannot be searched: all trials have the same data. Several files are a list: "
            f"{typed(key, ['a.jsonl', 'b.jsonl'])}"
        )
        return Problem(key=key, value=text, message=message)
    if is_search:
        into.space[key] = text
    elif prefix == "~":
        into.for_hydra.append(word)
    elif "." in key and key.split(".")[0] not in known:
        there = f"is no key of the config; its groups are {', '.join(known)}."
        section = key.split(".")[0]
        near = _SECTIONS.get(section) or nearest(section, known)
        return Problem(key=key, message=there, nearest=near)
    else:
        # Hydra's own + refuses a key that is there; a value is set in either case.
        # `sweeps.config.validation` finds unknown names.
        into.for_hydra.append(f"++{word.removeprefix(prefix)}")
        into.forced |= {key} if prefix == "++" else set()
    return None


def _in_words(said: str) -> str:
    """Reword a message of Hydra's parser without the names of its tokens."""
    line = said.splitlines()[0].partition(" expecting ")[0]
    if "integer string conversion" in line:
        return "it has a number of thousands of digits"
    if "'<EOF>'" in line:
        return "it ends where more should follow"
    found = re.search(r"'(.{1,60})", line)
    return f"it makes no sense from {found[1].rstrip(chr(39))} on" if found else line


def _as_text(key: str, text: str) -> str:
    """How the text is written that Hydra could not read, if it may be meant as text."""
    if is_secret_key(key) or not key.startswith(_TEXTS):
        return ""
    if not text or len(text) > _MOST_QUOTED or _EXPRESSION.search(text):
        return ""
    return f" As text it is written {typed(key, text)}"


def _as_literal(key: str, text: str) -> str:
    """How a mapping or list of Python or JSON is written."""
    try:
        value = ast.literal_eval(text.strip())
        is_known = isinstance(value, dict | list) and not is_secret_key(key)
        return f" It is written {typed(key, value)}" if is_known else ""
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""  # UnwritableError is a ValueError


def _cut(word: str) -> tuple[str, str, str]:
    """Split a word into Hydra's prefix (+, ++, ~ or none), the key, and the text after `=`."""
    key, _, text = word.partition("=")
    bare = key.strip().lstrip("+~")
    return key.strip().removesuffix(bare), bare, text


def _take_group(
    word: str,
    prefix: str,
    group: str,
    choice: str,
    choices: Sequence[str],
    is_search: bool,
    into: Overrides,
) -> Problem | None:
    if prefix == "~":
        message = f"cannot be left out; choose one of {', '.join(choices)}."
        return Problem(key=f"~{group}", message=message)
    if is_search:
        return Problem(
            key=group,
            value=choice,
            message="whole groups cannot be searched; search their keys (e.g. peft.r=4,8), or run "
            "the command once for each.",
        )
    if choice not in choices:
        message = f"is none of its choices: {', '.join(choices)}."
        message += renamed_note(group, choice, into.own)
        meant = _meant(group, choice)
        near = None if meant else nearest(choice, choices)
        return Problem(key=group, value=choice, message=message + meant, nearest=near)
    if group == "sweep":  # the folder has its name
        into.naming = [name for name in into.naming if name != f"{group}={choice}"]
    into.for_hydra.append(word)
    return None


def _meant(group: str, choice: str) -> str:
    """What to type for a file, a model or a mode that is given as a group's choice."""
    if group == "tracking" and choice in ("online", "wandb_online"):
        return " tracking=wandb is online if there is a key for it."
    choice = _unquoted(choice)
    if ours := _OTHER_CHOICES.get(group, {}).get(choice.lower()):
        return f" Write {ours}"
    if group == "sweep" and choice in get_args(SearchName):
        return f" Write {typed('sweep.search', choice)}"
    if group == "peft" and choice == "dora":
        return " Write peft.use_dora=true"
    holder = {"data": "file", "model": "hub"}.get(group)
    if holder is None or not re.search(r"[/.~]", choice):
        return ""
    is_data_set = group == "data" and re.fullmatch(r"[\w-]+/[\w.-]+", choice) is not None
    if is_data_set and Path(choice).suffix not in (".jsonl", ".json", ".csv", ".parquet"):
        holder = "hub"
    return f" Write {group}={holder} {typed(f'{group}.path', choice)}"


def _take_space(text: str, into: Overrides) -> Problem | None:
    body = text.strip()
    if not (body.startswith("{") and body.endswith("}")):
        return Problem(key=SPACE, value=text, message=_SPACE_FORM)
    for part in split_top(body[1:-1]):
        key, sign, expression = part.partition(":")
        if not sign:
            return Problem(key=SPACE, value=part, message=_SPACE_FORM)
        into.space[_unquoted(key)] = _unquoted(expression)
    return None


def split_top(text: str) -> Iterator[str]:
    """Split `text` at the commas that no bracket or quote encloses."""
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
    """Set the file's other budget to null if the command line sets one of the two."""
    examples, epochs = "sweep.budget.examples", "sweep.budget.epochs"
    if len(overrides.given & {examples, epochs}) == 1:
        other = examples if epochs in overrides.given else epochs
        overrides.for_hydra.append(f"++{other}=null")
