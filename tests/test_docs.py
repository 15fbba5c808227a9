"""What the documents say is so: commands compose, targets, files and links exist, tables agree."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cli import VERBS, help_text
from orchestrator.config.command import read_command
from sweeps.config.spec import DataSpec
from sweeps.results.ranking import columns
from trainers.data.rows import read as rows_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sweeps", "trainers", "orchestrator")
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
FOLDERS = "conf|docs|sweeps|trainers|orchestrator|tests|benchmarks"
COMMAND = "python -m orchestrator"
NOT_COMMANDS = {"", "--help"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(text: str) -> list[str]:
    """Lines of indented and fenced blocks, and what stands in backticks."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in rest.splitlines() if line.startswith("    ")]
    prose = "\n".join(line for line in rest.splitlines() if not line.startswith("    "))
    return [*lines, *"\n".join(fenced).splitlines(), *re.findall(r"`([^`\n]+)`", prose)]


def sweep_commands() -> Iterator[tuple[str, str]]:
    """(where, the words after `python -m orchestrator`), of documents, --help and YAML heads."""
    places = {name: code(read(name)) for name in DOCUMENTS}
    places["--help"] = help_text().splitlines()
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        heads = [line for line in path.read_text().splitlines() if line.startswith("#")]
        places[str(path.relative_to(ROOT))] = heads
    for where, lines in places.items():
        for line in lines:
            _, found, rest = line.partition(COMMAND)
            words = re.split(r"\s{2,}|\s#", rest, maxsplit=1)[0].strip()  # then comes a remark
            if found and words not in NOT_COMMANDS:
                yield where, words


@pytest.mark.parametrize(("where", "words"), sorted(set(sweep_commands())))
def test_every_command_that_is_shown_is_accepted(
    where: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cluster.gpus.usable", lambda: 8)  # some commands ask for GPUs
    first, *rest = shlex.split(words)
    if first in VERBS and first != "plan":
        return
    read_command(rest if first == "plan" else [first, *rest])


def test_every_group_folder_has_a_command_in_its_files_heads() -> None:
    places = {Path(where).parent.name for where, _ in sweep_commands() if where.startswith("conf")}
    assert places == {"conf", *(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    shown = {found for line in code(read(name)) for found in re.findall(r"\bmake ([a-z-]+)", line)}
    assert shown <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_files_exist(name: str) -> None:
    text = read(name)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    named = re.findall(rf"(?<![\w/-])(?:{FOLDERS})/[\w./-]*\w", "\n".join(code(text)))
    modules = re.findall(r"python -m (benchmarks\.\w+)", text)
    paths = [*links, *named, *(module.replace(".", "/") + ".py" for module in modules)]
    missing = [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    assert missing == []


def test_table_of_sweeps_lists_every_file_with_its_trials_and_search() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+) \| (\w+) \|$", read("README.md"), re.M)
    actual = []
    for path in (ROOT / "conf" / "sweep").glob("*.yaml"):
        spec, space = read_command([f"sweep={path.stem}"])
        trials = spec.sweep.trials or (space.size())
        actual.append((path.stem, str(trials), spec.sweep.search))
    assert sorted(rows) == sorted(actual)


def test_table_of_columns_is_that_of_trials_csv() -> None:
    section = read("README.md").partition("Columns of `trials.csv`")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert named == list(columns("eval_loss"))


def test_example_rows_are_read_as_the_shape_that_the_table_says(tmp_path: Path) -> None:
    rows = re.findall(r"^\| ([^|]+) \| `(\{.*?\})` \|", read("README.md"), re.MULTILINE)
    for number, (shape, row) in enumerate(rows):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(f"{row}\n")
        form = rows_of(DataSpec(source="file", path=str(path))).layout
        wanted = "prompt and completion" if shape == "the same, as chats" else shape
        assert (form.shape, form.is_chat) == (wanted, '"role"' in row)
    assert len(rows) == 4


def test_architecture_has_a_line_for_each_folder() -> None:
    section = read("ARCHITECTURE.md").partition("## The folders")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `([\w/]+)/` \|", section, re.MULTILINE)
    there = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    folders = {str(path.relative_to(ROOT)) for path in there} - {"sweeps"}  # it holds folders alone
    assert set(named) == folders | {"tools", "tests"}


def test_no_folder_of_product_code_has_more_than_13_modules() -> None:
    counts = Counter(
        str(path.parent.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    )
    assert {folder: count for folder, count in counts.items() if count > 13} == {}


@pytest.mark.parametrize("name", [*DOCUMENTS, "docs/live.svg", "docs/record.py", "Makefile"])
def test_no_path_of_one_machine(name: str) -> None:
    assert re.findall(r"(?<![\w.:/])/(?:tmp|work|root|home|Users|mnt|opt)/\S*", read(name)) == []


def test_each_test_that_the_page_on_gpus_names_is_there() -> None:
    """Of a row's `file`: `words`, ... each of the words is part of a test's name, or a case's."""
    findings = read("docs/gpu.md").partition("## The 32 findings")[2]
    rows = re.findall(r"^\| \d+ \|.*\|([^|]*)\|$", findings, re.MULTILINE)
    assert len(rows) == 32
    for row in rows:
        for named in filter(None, row.split("; ")):
            if not (found := re.match(r"((?:`test_\w+`(?:, )?)+)(?:: (.*))?$", named.strip())):
                assert not named.strip(), named
                continue
            files = re.findall(r"test_\w+", found[1])
            texts = [next((ROOT / "tests").rglob(f"{name}.py")).read_text() for name in files]
            for words in re.findall(r"`(\w+)`", found[2] or ""):
                assert any(words in text for text in texts), (files, words)
