"""The config files: those that come with the program, and before them those of --config-dir."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import takewhile
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from sweeps.core.commands import command_line, in_a_shell
from sweeps.core.errors import ConfigError, Problem, nearest

_PACKAGE = Path(str(files("orchestrator"))).resolve()
_INSTALLED = _PACKAGE / "conf"  # where a wheel has it; in the repository it is beside the package
CONF = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.with_name("conf")

_LINE = 94  # letters, beside a sweep's name in --help

OPTION = "--config-dir"
_FORM = "A sweep of your own is DIR/sweep/NAME.yaml; --config-dir DIR sweep=NAME chooses it."


def take_config_dir(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder of --config-dir, absolute; and the other words.

    Raises:
        ConfigError: it is no folder with config files, or several are named.
    """
    found: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, sign, value = word.partition("=")
        if name == OPTION:
            found.append(value if sign else next(words, ""))
        else:
            rest.append(word)
    folders = {Path(os.path.expanduser(text)).absolute() for text in found if text}
    if "" in found:
        raise _refused(None, f"names no folder. {_FORM}")
    if len(folders) > 1:
        raise _refused(" and ".join(found), "can be given once; put the files into one folder.")
    for folder in folders:
        _require_groups(folder)
        return folder, rest
    return None, rest


def with_config_dir(folder: Path | None, words: Sequence[str]) -> list[str]:
    """The words of a command that composes with the files of `folder`, too."""
    return [*words] if folder is None else [f"{OPTION}={folder}", *words]


def groups(own: Path | None = None) -> dict[str, list[str]]:
    """Config group -> its choices, the files GROUP/NAME.yaml in conf/ and in `own`."""
    found: dict[str, set[str]] = {}
    for path in [*CONF.glob("*/*.yaml"), *_files(own)]:
        if path.parent != own:
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(found[group]) for group in sorted(found)}


def sweep_files(root: Path) -> list[Path]:
    """The sweeps in a folder of config files."""
    return sorted((root / "sweep").glob("*.yaml"))


def first_comment(path: Path) -> str:
    """What a file says about itself: the first sentences of its head, as many as fit a line.

    Lines that are indented, such as commands, and directives are no part of them.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    head = [line[1:] for line in takewhile(lambda line: line.startswith("#") or not line, lines)]
    text = " ".join(line.strip() for line in head if not line.startswith(("   ", " @package")))
    first, *more = re.split(r"(?<=[.?!]) ", text.strip())
    for sentence in more:
        if len(first) + len(sentence) < _LINE:
            first += f" {sentence}"
        else:
            break
    return first


def hiding(own: Path | None) -> list[str]:
    """Notes on the files of `own` that are read in place of shipped ones."""
    there = [path.relative_to(own).as_posix() for path in _files(own)] if own else []
    names = [name for name in there if (CONF / name).is_file()]
    return [f"in place of the shipped ones: {', '.join(names)} of {own}"] if names else []


def path_problem(group: str, choice: str, own: Path | None) -> Problem | None:
    """What to do with a file that was named by its path; None if `choice` is no path."""
    choice = choice.strip().strip("'\"")
    path = Path(os.path.expanduser(choice)).absolute()
    is_there = os.path.isfile(path)  # a Path raises OSError if its name is too long
    if path.suffix not in (".yaml", ".yml") and not ("/" in choice and is_there):
        return None
    near = None
    if is_there:
        holder = path.parent.parent if path.parent.name == group else own or path.parent
        there = holder / group / f"{path.stem}.yaml"
        words = command_line(with_config_dir(holder, [f"{group}={path.stem}"]))
        moved = ["mkdir", "-p", str(there.parent)], ["mv", str(path), str(there)]
        steps = [" ".join(map(in_a_shell, step)) for step in (moved if there != path else ())]
        message = f"is chosen by its name, out of a folder {group}/: {' && '.join([*steps, words])}"
    elif path.stem in (known := groups(own).get(group, [])):
        message = f"is written by its name: {group}={path.stem}."
    else:
        near = nearest(path.stem, known)
        message = f"is no file; a choice is written by its name: {', '.join(known)}."
    return Problem(key=group, value=choice, message=message, nearest=near)


def renamed_note(group: str, choice: str, own: Path | None) -> str:
    """What to do if the choice would be there by another ending; empty if it would not."""
    path = (own or CONF) / group / f"{choice}.yml"
    return f" {path} is passed over: config files end in .yaml." if os.path.isfile(path) else ""


def not_there(said: str, own: Path | None) -> Problem | None:
    """What Hydra says of a file in a defaults list that is not there, with the nearest that is."""
    if not (found := re.match(r"In '(.+)': Could not (?:load|find) '(\w+)/(.+)'", said)):
        return None
    file, group, choice = found.groups()
    choices = groups(own).get(group, [])
    message = f"its defaults list names {group}/{choice}.yaml, which is not there."
    return Problem(key=f"{file}.yaml", message=message, nearest=nearest(choice, choices))


def unreadable(own: Path | None) -> list[Problem]:
    """The files of `own` that hold no settings, each with what is wrong and in which line."""
    return [
        Problem(key=str(path), message=why) for path in _files(own) if (why := _why_unread(path))
    ]


def choice_problem(own: Path | None, group: str, choice: str) -> Problem | None:
    """What is wrong with a chosen file of `own`, though Hydra takes it."""
    if own is None or not (path := own / group / f"{choice}.yaml").is_file():
        return None
    why = _why_unread(path)
    text = "" if why else path.read_text(encoding="utf-8")
    others = [key for key in OmegaConf.create(text) if key in groups()]
    if others and "@package" not in text:
        why = (
            f"its {', '.join(others)} would be read as settings of {group}: write "
            "`# @package _global_` as the first line of the file."
        )
    return Problem(key=str(path), message=why) if why else None


def _files(own: Path | None) -> list[Path]:
    """config.yaml and the files of the groups."""
    found = [] if own is None else [*own.glob("config.yaml"), *own.glob("*/*.yaml")]
    return sorted(path for path in found if path.parent == own or path.parent.name.isidentifier())


def _why_unread(path: Path) -> str:
    try:
        value = OmegaConf.load(path)
    except UnicodeDecodeError:
        return "is not in UTF-8; save it so."
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or "it is no YAML"
        tab = " YAML is indented by blanks, not by tabs." if "'\\t'" in said else ""
        return f"cannot be read{where}: {said}.{tab}"
    except OSError as error:
        return (
            f"cannot be read: {error.strerror}." if error.errno else "must hold KEY: VALUE lines."
        )
    return "" if OmegaConf.is_dict(value) else "must hold KEY: VALUE lines, and holds a list."


def _require_groups(folder: Path) -> None:
    """Check that --config-dir names a folder in which config files lie.

    Raises:
        ConfigError: it does not; it says what is there instead.
    """
    shipped = groups()
    known = ", ".join(shipped)
    if folder.is_file():
        option = f"{OPTION}={in_a_shell(str(folder.parent.parent))}"
        around = f"name the folder around {folder.parent.name}/, as in {option}"
        raise _refused(folder, f"is a file; {around}")
    if not folder.is_dir():
        beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
        near = nearest(folder.name, [path.name for path in beside if path.is_dir()])
        where = None if near is None else in_a_shell(str(folder.with_name(near)))
        raise _refused(folder, f"is no folder. {_FORM}", where)
    there = {path.parent.name if path.parent != folder else path.stem for path in _files(folder)}
    if there & {*shipped, "config"}:
        return
    why = f"has no folder of a group ({known}) with .yaml files in it. {_FORM}"
    near = next((close for name in sorted(there) if (close := nearest(name, shipped))), None)
    loose = sorted(path.name for path in folder.glob("*.yaml"))
    other = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.yml"))
    if loose and folder.name in shipped:
        around = in_a_shell(str(folder.parent))
        why = f"is the folder of one group; name the one around it: {OPTION}={around}"
    elif loose:
        why = f"{', '.join(loose[:3])} must lie in the folder of a group ({known}). {_FORM}"
    elif other:
        why = f"config files end in .yaml: rename {', '.join(other[:3])}."
    raise _refused(folder, why, near and f"{near}/")


def _refused(value: object, message: str, near: str | None = None) -> ConfigError:
    return ConfigError([Problem(key=OPTION, value=value, message=message, nearest=near)])
