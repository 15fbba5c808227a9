"""What the documents say is so: commands compose, targets, files and links exist, tables agree."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints
from xml.etree import ElementTree

import pytest
from support.own_project import write_project
from support.shown_sweeps import ShownSweep

from orchestrator.cli import help_text, main
from orchestrator.config.command import read_command
from sweeps.config.spec import DataSpec, SearchSpec
from sweeps.results.trials_csv import columns
from sweeps.search.samplers import SAMPLERS
from trainers.data.rows import read as rows_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sweeps", "trainers", "orchestrator")
PAGES = tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
DOCUMENTS = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "launch/README.md"),
    *PAGES,
)
OTHERS = ("docs/finetune.ipynb", "docs/live.svg", "docs/record.py", "Makefile")
FOLDERS = ("sweeps", "trainers", "orchestrator", "tests", "tools", "benchmarks", "conf", "launch")
COMMAND = re.compile(r"(?:python -m orchestrator|sft-sweeps(?= \w+[ =])|make sweep ARGS=)(.*)")


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
        for line in "\n".join(lines).replace("\\\n", " ").splitlines():
            found = COMMAND.search(line)
            words = re.split(r"\s{2,}|\s#", found[1], maxsplit=1)[0].strip() if found else ""
            if found and found[0].startswith("make"):  # make sweep's own words come first
                words = f"sweep=lr_grid {shlex.split(words)[0]}"
            if words.count("'") % 2:  # the end of what is handed to bash -c
                words = words.removesuffix("'")
            if words:
                yield where, words


@pytest.mark.slow
@pytest.mark.parametrize(("where", "words"), sorted(set(sweep_commands())))
def test_every_command_that_is_shown_is_accepted(
    where: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("orchestrator.cluster.gpus.usable", lambda: 8)  # some commands ask for GPUs
    # What a verb would do is left out; its words are read by the command line itself.
    monkeypatch.setattr("orchestrator.storage.run_dir.fetched", Path)
    monkeypatch.setattr("orchestrator.terminal.status.status", lambda folder: 0)
    monkeypatch.setattr("orchestrator.terminal.several.compare", lambda folders: 0)
    monkeypatch.setattr("orchestrator.report.write.report", lambda folder: 0)
    monkeypatch.setattr("orchestrator.steer.steer", lambda verb, options: 0)
    monkeypatch.setattr("orchestrator.terminal.as_json.status_object", lambda folder: {})
    monkeypatch.setattr("orchestrator.terminal.as_json.follow", lambda folder, as_json: ())
    monkeypatch.setattr("orchestrator.best.merge.export", lambda folder, merge, to: 0)
    monkeypatch.setattr("orchestrator.tracking.sync.sync", lambda folder, project, entity: 0)
    if where == "docs/own-project.md":
        monkeypatch.chdir(write_project(tmp_path))
    monkeypatch.setattr("orchestrator.show.show", lambda words, _: only_read(words))
    for module in ("plan.plan", "driver.run"):
        monkeypatch.setattr(f"orchestrator.{module}", only_read)
    assert main(shlex.split(words)) == 0


def only_read(argv: list[str], **_: bool) -> int:
    """Read and check a command line; raises ConfigError."""
    read_command(argv)
    return 0


@pytest.mark.parametrize("words", ["status", "report a b", "export", "export a --too b"])
def test_a_verb_with_the_wrong_words_would_be_found(words: str) -> None:
    with pytest.raises(SystemExit):
        main(words.split())


def test_each_kind_of_command_is_shown() -> None:
    """None of them was passed over by the way in which they are looked for."""
    shown = sorted(set(sweep_commands()))
    assert {"plan", "show", "status", "report", "export", "sync"} <= {
        words.split()[0] for _, words in shown
    }
    assert {"README.md", "launch/README.md", "--help"} <= {where for where, _ in shown}
    without = {"docs/benchmarks.md", "docs/gpu.md"}
    assert set(PAGES) - {where for where, _ in shown} <= without


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 170
    assert set(re.findall(r"\]\((docs/[\w-]+\.md)\)", text)) == set(PAGES)


def test_every_group_folder_has_a_command_in_its_files_heads() -> None:
    places = {Path(where).parent.name for where, _ in sweep_commands() if where.startswith("conf")}
    assert places == {"conf", *(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    shown = {found for line in code(read(name)) for found in re.findall(r"\bmake ([a-z-]+)", line)}
    assert shown <= targets


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    text, folder = read(name), (ROOT / name).parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = folder / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_and_modules_that_are_named_exist(name: str) -> None:
    """Paths (`conf/sweep`, `launch/sweep.sbatch`) and modules (`tools.size`) in code."""
    start = rf"(?<![\w./-])(?:docs|{'|'.join(FOLDERS)})"
    lines = code(read(name))
    named = {path for line in lines for path in re.findall(rf"{start}/[\w./-]*\w", line)}
    dotted = re.compile(rf"(?:^|python -m )((?:{'|'.join(FOLDERS)})(?:\.\w+)+)$")
    for line in lines:
        for found in dotted.finditer(re.split(r"\s{2,}|\s(?:-|#)", line, maxsplit=1)[0]):
            path = found[1].replace(".", "/")
            named.add(path if (ROOT / path).is_dir() else f"{path}.py")
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []
    there = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"(?<![\w./-])\w+\.py\b", read(name))) <= there


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_name_that_is_said_to_be_in_a_file_is_there(name: str) -> None:
    names = r"`(\w+)`(?:(?:,| or| and) `(\w+)`)? (?:in|of) `([\w/]+\.py)`"
    for *words, path in re.findall(names, read(name).replace("\n", " ")):
        text = read(path)
        assert [word for word in words if word not in text] == [], path


@pytest.mark.slow
def test_table_of_sweeps_lists_every_file_with_its_trials_and_search() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+) \| (\w+) \|$", read("README.md"), re.M)
    actual = []
    for path in (ROOT / "conf" / "sweep").glob("*.yaml"):
        spec, space = read_command([f"sweep={path.stem}"])
        trials = spec.sweep.trials or (space.size())
        actual.append((path.stem, str(trials), spec.sweep.search))
    assert sorted(rows) == sorted(actual)


def test_table_of_searches_is_that_of_the_samplers() -> None:
    text = read("docs/search.md")
    rows = re.findall(r"^\| `(\w+)` \|((?: (?:yes|no) \|){4})$", text, re.MULTILINE)
    said = {name: tuple(re.findall("yes|no", cells)) for name, cells in rows}
    assert said == {
        name: tuple(
            "yes" if can else "no"
            for can in (
                sampler.takes_intervals,
                sampler.takes_categories,
                sampler.takes_conditions,
                sampler.learns,
            )
        )
        for name, sampler in SAMPLERS.items()
    }


def test_every_pruner_is_named() -> None:
    line = read("docs/search.md").partition("`sweep.pruner` is")[2].partition(".")[0]
    pruners = get_args(get_type_hints(SearchSpec)["pruner"])
    assert tuple(re.findall(r"`(\w+)`", line)) == pruners


def test_table_of_columns_is_that_of_trials_csv() -> None:
    section = (
        read("docs/run-folder.md").partition("Columns of `trials.csv`")[2].partition("\n## ")[0]
    )
    cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert named == list(columns("eval_loss"))


def test_example_rows_are_read_as_the_shape_that_the_table_says(tmp_path: Path) -> None:
    rows = re.findall(r"^\| ([^|]+) \| `(\{.*?\})` \|", read("docs/data.md"), re.MULTILINE)
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


@pytest.mark.parametrize("name", [*DOCUMENTS, *OTHERS])
def test_no_path_of_one_machine(name: str) -> None:
    assert re.findall(r"(?<![\w.:/])/(?:tmp|work|root|home|Users|mnt|opt)/\S*", read(name)) == []


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(read("docs/finetune.ipynb"))["cells"]
    ran = [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert ran == []


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


@pytest.mark.parametrize("unfinished", [0, 2])
def test_the_picture_of_a_sweep_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfinished: int
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    record = importlib.import_module("record")
    monkeypatch.setattr(record, "LOOK_S", 0.0)
    ShownSweep(trials=6, unfinished=unfinished).write(tmp_path / "run")
    record.main(tmp_path / "run", tmp_path / "live.svg")
    picture = (tmp_path / "live.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert picture.count("-matrix {") == 2  # the live table, and the end
    assert "eval_loss" in picture
