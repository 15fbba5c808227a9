"""Config files of one's own: found before the shipped ones, told of, refused with the way out."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from orchestrator.cli import main
from orchestrator.config.command import Command
from orchestrator.config.config_files import CONF, groups, take_config_dir
from orchestrator.config.overrides import sort_overrides
from sweeps.core.errors import ConfigError

RANKS = """\
# @package _global_
# Which rank is enough for my tickets?
defaults:
  - base
  - _self_
sweep:
  space:
    peft.r: choice(2, 4)
"""
SHIPPED = ", ".join(groups()["sweep"])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep of one's own, `ranks`, below the working folder."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "own conf" / "sweep" / "ranks.yaml").parents[1]


def write(path: Path, text: str = RANKS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def searched(*argv: str) -> list[str]:
    return [dimension.name for dimension in Command.read(argv).space.dimensions]


def refused(*argv: str) -> str:
    """The one problem of a command line."""
    with pytest.raises(ConfigError) as error:
        Command.read(argv)
    (problem,) = error.value.problems
    return str(problem)


@pytest.mark.parametrize(
    "words",
    [["--config-dir", "own conf"], ["--config-dir=own conf"], ["--config-dir", "./own conf/."]],
)
def test_a_sweep_of_ones_own_is_chosen_by_name(words: list[str], own: Path) -> None:
    command = Command.read([*words, "sweep=ranks"])
    assert [dimension.name for dimension in command.space.dimensions] == ["peft.r"]
    assert command.space.notes == ()
    assert command.spec is not None
    assert (command.spec.name, command.spec.run_dir) == ("ranks", "outputs/ranks")
    assert searched("sweep=lr_grid", *words)[0] == "trainer.learning_rate"


def test_the_folder_is_in_no_other_composition(own: Path) -> None:
    searched(f"--config-dir={own}", "sweep=ranks")
    assert refused("sweep=ranks").startswith(f"sweep = ranks: is none of its choices: {SHIPPED}.")


def test_a_file_that_hides_a_shipped_one_is_read_and_told(own: Path) -> None:
    write(own / "sweep" / "lr_grid.yaml")
    write(own / "data" / "file.yaml", "source: file\npath: mine.jsonl\n")
    command = Command.read([f"--config-dir={own}", "sweep=lr_grid"])
    assert [dimension.name for dimension in command.space.dimensions] == ["peft.r"]
    note = f"in place of the shipped ones: data/file.yaml, sweep/lr_grid.yaml of {own}"
    assert command.space.notes == (note,)


def test_other_groups_and_a_group_that_is_new(own: Path) -> None:
    write(own / "data" / "tickets.yaml", "source: file\npath: tickets.jsonl\n")
    write(own / "gentle" / "yes.yaml", "# @package trainer\nlearning_rate: 1e-5\n")
    words = [f"--config-dir={own}", "data=tickets", "sweep=ranks", "+gentle=yes"]
    spec = Command.read(words).spec
    assert spec is not None
    assert spec.train.data.path == str(Path("tickets.jsonl").absolute())
    assert spec.train.trainer["learning_rate"] == 1e-5


def test_the_folder_is_no_part_of_a_run_folders_name(own: Path) -> None:
    assert sort_overrides([f"--config-dir={own}", "sweep=ranks"]).naming == []


def test_a_relative_folder_is_made_absolute_for_commands_to_paste(own: Path) -> None:
    assert take_config_dir(["plan", "--config-dir", "own conf", "seed=1"]) == (
        own,
        ["plan", "seed=1"],
    )


def test_hydra_of_the_program_that_composes_stays_as_it_was(own: Path) -> None:
    mine = object()
    GlobalHydra.instance().hydra = mine  # type: ignore[assignment]
    try:
        searched(f"--config-dir={own}", "sweep=ranks")
        assert GlobalHydra.instance().hydra is mine
    finally:
        GlobalHydra.instance().clear()


def test_help_lists_sweeps_of_ones_own_with_what_they_answer(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(own / "sweep" / "asha.yaml", RANKS.replace("Which rank", "How much"))
    assert main(["--config-dir", "own conf", "--help"]) == 0
    said = capsys.readouterr().out
    ours = said.partition(f"Sweeps of {own}:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split(maxsplit=1) for line in ours] == [
        ["asha", "How much is enough for my tickets?"],
        ["ranks", "Which rank is enough for my tickets?"],
    ]
    assert "successive" not in said  # of the shipped asha
    assert main(["--config-dir", "own conf"]) == 1  # a usage error, as without it


# ---------------------------------------------------------------------- what is refused


def test_a_folder_that_is_not_there(own: Path) -> None:
    message = refused("--config-dir=own-conf", "sweep=ranks")
    assert message.startswith(f"--config-dir = {own.with_name('own-conf')}: is no folder.")
    assert message.endswith(f"Did you mean {shlex.quote(str(own))}?")
    assert refused("sweep=ranks", "--config-dir").startswith("--config-dir: names no folder.")
    write(own / "other" / "sweep" / "a.yaml")
    twice = refused("--config-dir=own conf", "--config-dir", "own conf/other")
    assert "own conf and own conf/other: can be given once" in twice


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("notes.txt", f"has no folder of a group ({', '.join(groups())}) with .yaml files in it."),
        ("sweeps/a.yaml", "Did you mean sweep/?"),
        ("sweep/a.yml", "config files end in .yaml: rename sweep/a.yml."),
        ("a.yaml", "a.yaml must lie in the folder of a group ("),
        (".github/a.yaml", "has no folder of a group ("),
    ],
)
def test_a_folder_without_files_of_a_group(file: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / file)
    assert said in refused(f"--config-dir={tmp_path}", "sweep=a")


@pytest.mark.parametrize("below", ["sweep", "sweep/ranks.yaml"])
def test_a_folder_below_the_right_one(below: str, own: Path) -> None:
    message = refused(f"--config-dir={own / below}", "sweep=ranks")
    option = shlex.split(message)[-1]
    assert searched(option, "sweep=ranks") == ["peft.r"]


def test_a_choice_that_is_nearly_there(own: Path) -> None:
    message = refused(f"--config-dir={own}", "sweep=rank")
    assert "scheduler. Did you mean ranks?" in message
    write(own / "sweep" / "wide.yml")
    message = refused(f"--config-dir={own}", "sweep=wide")
    assert message.endswith(
        f"{own / 'sweep' / 'wide.yml'} is passed over: config files end in .yaml."
    )


@pytest.mark.parametrize("path", ["./my sweep.yaml", "own conf/sweep/ranks.yaml", "my.yml"])
@pytest.mark.parametrize("option", [[], ["--config-dir=own conf"]])
def test_a_sweep_by_its_path_is_told_what_to_type(
    path: str, option: list[str], own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Path(path))
    message = refused(*option, f"sweep={path}")
    *steps, words = message.partition("of a folder sweep/: ")[2].split(" && ")
    for step in steps:
        assert os.system(step) == 0
    assert searched(*shlex.split(words)[3:]) == ["peft.r"]


def test_a_path_that_leads_nowhere(own: Path) -> None:
    assert refused("sweep=lr_grid.yaml").endswith("is written by its name: sweep=lr_grid.")
    assert refused("sweep=./joints.yaml").endswith(f"{SHIPPED}. Did you mean joint?")
    assert "is none of its choices" in refused("sweep=own conf/ranks")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "sweep:\n\tspace: {}",
            "in line 2: found character '\\t' that cannot start any token. YAML",
        ),
        ("sweep: {}\nsweep: {}\n", "in line 2: found duplicate key sweep."),
        ("- a\n- b\n", "must hold KEY: VALUE lines, and holds a list."),
        ("# caf\xe9", "is not in UTF-8"),
        (RANKS.partition("\n")[2], "write `# @package _global_` as the first line of the file."),
    ],
)
def test_a_file_that_cannot_be_meant_is_named(text: str, said: str, own: Path) -> None:
    path = own / "sweep" / "ranks.yaml"
    path.write_bytes(text.encode("latin-1"))
    message = refused(f"--config-dir={own}", "sweep=ranks")
    assert message.startswith(f"{path}: ")
    assert said in message


def test_a_defaults_list_that_leads_nowhere(own: Path) -> None:
    write(own / "sweep" / "ranks.yaml", RANKS.replace("- base", "- joints"))
    assert refused(f"--config-dir={own}", "sweep=ranks") == (
        "sweep/ranks.yaml: its defaults list names sweep/joints.yaml, which is not there. "
        "Did you mean joint?"
    )
    write(own / "sweep" / "ranks.yaml", RANKS.replace("- base", "- ranks"))
    assert "a file names itself" in refused(f"--config-dir={own}", "sweep=ranks")


@pytest.mark.parametrize("word", ["--conf-dir=x", "--config_dir=x", "config_dir=x"])
def test_what_people_call_the_option_is_known(word: str) -> None:
    assert refused(word).endswith("Did you mean --config-dir DIR?")
    assert "is written --config-dir DIR" in refused("hydra.searchpath=[file:///x]")


def test_the_shipped_files_are_where_they_were() -> None:
    assert (CONF / "config.yaml").is_file()
