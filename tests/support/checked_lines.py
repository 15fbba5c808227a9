"""Holds what the product makes of a generated command line against what was meant by it."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from support.command_lines import LineCase
from support.plain_config import SECTIONS, Between, Options, Space, combinations, set_key

from orchestrator.config.command import Command
from sweeps.config.spec import Spec, TrainSpec
from sweeps.config.trial_config import config_of
from sweeps.config.validation import read_train
from sweeps.core.errors import SweepError
from sweeps.space.space import Choice
from sweeps.space.space import Space as Found

_PATHS = ("data.path", "data.eval_path", "run_dir")
_READ = ("seed", "name", "sweep", "tracking", "engine")


def check_line(case: LineCase) -> str:
    """Compose and check the words of a case; says what became of them.

    Raises:
        AssertionError: they were not accepted as meant, or not refused in words that name the key.
    """
    with _elsewhere(case.files):
        try:
            spec, space = Command.read(case.words).check()
        except SweepError as error:
            refusal = str(error)
            assert case.refused, f"not accepted: {refusal}"
            assert re.search(case.refused, refusal), f"{case.refused!r} is not named: {refusal}"
            assert "\n\n" not in refusal, refusal
            if case.hint is not None:
                _check_hint(case, refusal)
            return "broken and refused"
        assert not case.refused, f"accepted, though {case.refused!r} was to be refused"
        _check_space(space, case.space)
        for ours, theirs in zip(_ours(case), _theirs(spec, space, case), strict=True):
            assert_same(theirs, ours, "trial")
        _check_sections(spec, case)
    return "valid and accepted"


def trial_of(case: LineCase) -> TrainSpec:
    """The training of the first trial that the words give."""
    spec, space = Command.read(case.words).check()
    return read_train(config_of(spec, next(space.ends())))


@contextmanager
def _elsewhere(files: tuple[str, ...]) -> Iterator[None]:
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "here"
        place.mkdir()
        for name in files:
            if not any(letter in name for letter in "*?"):
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).touch()
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)


def assert_same(found: Any, meant: Any, place: str) -> None:
    """Equal values of equal types, at any depth."""
    if isinstance(meant, Mapping) and isinstance(found, Mapping):
        assert set(found) == set(meant), f"{place}: {sorted(set(found) ^ set(meant))}"
        for key in meant:
            assert_same(found[key], meant[key], f"{place}.{key}")
    elif isinstance(meant, list | tuple) and isinstance(found, list | tuple):
        assert len(found) == len(meant), f"{place}: {found} is not {meant}"
        for index, (a, b) in enumerate(zip(found, meant, strict=True)):
            assert_same(a, b, f"{place}[{index}]")
    else:
        assert type(found) is type(meant), f"{place}: {found!r} is not {meant!r}"
        assert found == meant, f"{place}: {found!r} is not {meant!r}"


def _check_space(found: Found, meant: Space) -> None:
    assert {each.name for each in found.dimensions} == set(meant), found.dimensions
    for dimension in found.dimensions:
        wanted = meant[dimension.name]
        if isinstance(dimension, Choice):
            assert isinstance(wanted, Options), dimension
            assert_same(dimension.options, wanted.values, dimension.name)
        else:
            assert isinstance(wanted, Between), dimension
            got = (dimension.low, dimension.high, dimension.log, dimension.integer)
            assert got == (wanted.low, wanted.high, wanted.log, wanted.whole), dimension


_MOST = 6  # trials of each line


def _ours(case: LineCase) -> list[dict[str, Any]]:
    found = []
    for values in islice(combinations(case.space, case.when, case.config), _MOST):
        config = {section: _copied(case.config[section]) for section in SECTIONS}
        for key in ("path", "eval_path"):
            name = config["data"][key]
            if name and not os.path.isabs(name):
                config["data"][key] = str(Path.cwd() / name)
        config["trainer"].pop("strategy")
        for key, value in values.items():
            set_key(config, key, value)
        found.append(config)
    return found


def _copied(value: Any) -> Any:
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, dict) else value


def _theirs(spec: Spec, space: Found, case: LineCase) -> list[dict[str, Any]]:
    """The product's configs of the same trials: of an interval, its ends."""
    order = list(case.space)
    by_name = {each.name: each for each in space.dimensions}
    found = []
    for values in space.ends() if list(by_name) == order else _reordered(space, order):
        config = config_of(spec, values)
        found.append({section: config[section] for section in SECTIONS})
        if len(found) == _MOST:
            break
    return found


def _reordered(space: Found, order: list[str]) -> Iterator[dict[str, Any]]:
    raise AssertionError(f"{[each.name for each in space.dimensions]} is not {order}")


def _check_sections(spec: Spec, case: LineCase) -> None:
    sweep = {**case.config["sweep"]}
    for name in ("space", "when", "first"):
        sweep.pop(name)
    found = {key: value for key, value in asdict(spec.sweep).items() if key in sweep}
    assert_same(found, sweep, "sweep")
    assert_same(spec.seed, case.config["seed"], "seed")
    for section in ("tracking", "engine"):
        given = case.config[section]
        got = {key: value for key, value in asdict(getattr(spec, section)).items() if key in given}
        assert_same(got, given, section)
    if case.config["run_dir"]:
        assert spec.run_dir == str(Path.cwd() / case.config["run_dir"])


def _check_hint(case: LineCase, refusal: str) -> None:
    """What the refusal tells to type means what was meant."""
    found = re.search(r"(?:is searched with|To search:) (.*)", refusal)
    assert found is not None, f"no word to type: {refusal}"
    word = shlex.split(found[1])[0]
    words = [*case.words[: _place(case)], word, *case.words[_place(case) + 1 :]]
    if isinstance(case.hint, Between) and not any(w.startswith("sweep.search=") for w in words):
        words += ["sweep.search=random", "sweep.trials=3"]
    _, space = Command.read(words).check()
    key = word.partition("=")[0]
    assert case.hint is not None
    _check_space(
        Found(tuple(each for each in space.dimensions if each.name == key)), {key: case.hint}
    )


def _place(case: LineCase) -> int:
    return next(i for i, w in enumerate(case.words) if w.startswith("trainer.learning_rate="))
