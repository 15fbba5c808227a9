"""What a message tells the user to type means, when it is pasted, what the message means."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from orchestrator.config.checks import with_search
from orchestrator.config.overrides import sort_overrides
from orchestrator.tracking.tracker import Job
from orchestrator.tracking.wandb_runs import WandbRuns
from sweeps.config.spec import DataSpec, TrackingSpec
from sweeps.core.commands import command_line, searched
from sweeps.core.errors import ConfigError, Problem
from sweeps.core.secrets import scrub
from sweeps.space.grammar import foreign, plain
from trainers.data.readers import FileRow
from trainers.data.schema import layout
from trainers.model.lora import peft_problems
from trainers.model.lora_targets import missing_targets

PACKAGES = ("sweeps", "trainers", "orchestrator")
PARTS = st.sampled_from(
    [
        *(
            "a",
            "Frage",
            "données",
            "模型",
            " ",
            "  ",
            "(v2)",
            "[1]",
            "{x}",
            "'",
            '"',
            "=",
            ",",
            ":",
        ),
        *("$", "${b}", "\\", "#", "&", ";", "*", "~", "!", "%", "`", "2024", "1e5", "true", "null"),
        *("-", "."),
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=6).map("".join)
# A shell's word is masked where it looks like a secret; and what is only blanks names nothing.
NAMES = NAMES.filter(lambda name: scrub(name) == name and bool(name.strip()))


def typed_after(text: str, marker: str) -> str:
    """The first word after `marker` as a shell reads it; what follows may hold a lone quote."""
    assert marker in text
    words = shlex.shlex(text.partition(marker)[2], posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    return str(next(words))


def value_of(word: str) -> Any:
    value = OverridesParser.create().parse_override(word).value()
    value = [plain(each) for each in value.list] if isinstance(value, ChoiceSweep) else plain(value)
    container = OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)
    assert isinstance(container, dict)
    return container["value"]


def refusal(run: Callable[[], object]) -> str:
    """What is said; a value that is taken as it stands needs no hint."""
    try:
        run()
    except ConfigError as error:
        return str(error)
    assume(False)
    raise AssertionError


def told_of_a_column(name: str) -> tuple[Any, Any]:
    assume(name != "...")  # what stands for a column that is not known
    rows = [FileRow("f:1", {name: "a", "zz": "b"})]
    spec = DataSpec(source="file", path="f")
    said = refusal(lambda: layout(spec, rows))
    mapping = value_of(typed_after(said, "Say which of them are ours: "))
    return {*mapping.values()} - {"zz", "..."}, {name}


def told_of_a_file(name: str) -> tuple[Any, Any]:
    path = f"{name}.jsonl"
    said = refusal(lambda: sort_overrides([f"data={path}"]))
    assume("Write data=file " in said)  # not for what Hydra reads as several choices
    return value_of(typed_after(said, "Write data=file ")), path.strip()


def told_of_a_text(name: str) -> tuple[Any, Any]:
    said = refusal(lambda: sort_overrides([f"tracking.project={name}"]))
    assume("As text it is written " in said)  # not for what may be meant as an expression
    return value_of(typed_after(said, "As text it is written ")), name


def told_of_a_list_of_one(name: str) -> tuple[Any, Any]:
    (problem,) = peft_problems({"modules_to_save": name})
    return value_of(typed_after(problem.message, "Write ")), [name]


def told_of_modules(name: str) -> tuple[Any, Any]:
    peft = {"exclude_modules": name}
    found = missing_targets(peft, [f"model.layers.0.self_attn.long_name.{name}"])
    assume(found and "For the name alone write " in found[0].message)
    return value_of(typed_after(found[0].message, "For the name alone write ")), [name]


def told_of_a_search(name: str) -> tuple[Any, Any]:
    problem = Problem(key="model.dtype", value=[name, "b"], message="must be one of some.")
    said = with_search({}, problem).message
    return value_of(typed_after(said, "To search: ")), [name, "b"]


def told_of_another_tools_search(name: str) -> tuple[Any, Any]:
    ours = foreign({"values": [name, 1, None]})
    assert ours is not None
    return value_of(shlex.split(searched("peft.made_up", ours))[0]), [name, 1, None]


def told_of_a_folder(name: str) -> tuple[Any, Any]:
    return shlex.split(command_line(["export", name, "--merge"]))[3:], ["export", name, "--merge"]


def told_of_uploads(name: str) -> tuple[Any, Any]:
    root = Path("runs", name.replace("/", "_"))
    job = Job(tracking=TrackingSpec(), root=root, sweep_name="s", public={})
    runs = WandbRuns(job)
    runs._link = SimpleNamespace(online=False)  # type: ignore[assignment]
    (line,) = runs.last_lines(cut_short=False)
    return shlex.split(line.partition("python ")[2])[2:], ["sync", str(root)]


@pytest.mark.parametrize(
    "told",
    [
        told_of_a_column,
        told_of_a_file,
        told_of_a_text,
        told_of_a_list_of_one,
        told_of_modules,
        told_of_a_search,
        told_of_another_tools_search,
        told_of_a_folder,
        told_of_uploads,
    ],
)
def test_what_is_pasted_is_what_was_meant(told: Callable[[str], tuple[Any, Any]]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(NAMES)
    def holds(name: str) -> None:
        found, meant = told(name)
        assert found == meant

    holds()


def test_one_module_quotes_for_shells() -> None:
    """Else a hint could be written that nobody tries."""
    root = Path(__file__).parents[2]
    found = [
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(each.name == "shlex" for each in node.names)
    ]
    assert found == ["sweeps/core/commands.py"]
