"""The embedded data set: enough rows, no two alike, and nothing of them in the pretraining text."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import tiny_model
from trainers.data import docstrings

Documented = docstrings.Function | ast.ClassDef | ast.Module


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return docstrings.rows()


@pytest.fixture(scope="module")
def library() -> list[str]:
    return list(tiny_model.library_text())


def definitions(source: str) -> Iterator[Documented]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented):
            yield node


def words(text: str) -> str:
    return " ".join(re.findall("[a-z]+", text.lower()))


def test_there_are_thousands_of_rows_of_prompt_and_completion(rows: list[dict[str, str]]) -> None:
    assert len(rows) > 3000
    assert all(list(row) == ["prompt", "completion"] for row in rows)


def test_no_two_rows_share_a_prompt_or_what_a_completion_says(rows: list[dict[str, str]]) -> None:
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert len({words(row["completion"]) for row in rows}) == len(rows)


def test_a_row_is_a_function_whose_docstring_is_the_completion(rows: list[dict[str, str]]) -> None:
    for row in rows:
        (function,) = ast.parse(row["prompt"] + row["completion"]).body
        assert isinstance(function, docstrings.Function)
        docstring = ast.get_docstring(function)
        assert docstring is not None
        assert row["completion"] == f'    """{docstring}"""'


def test_a_known_function_is_there(rows: list[dict[str, str]]) -> None:
    prompt = "# textwrap\ndef dedent(text):\n"
    assert {
        "prompt": prompt,
        "completion": '    """Remove any common leading whitespace from every line in `text`."""',
    } in rows


def test_a_caller_may_change_its_rows(rows: list[dict[str, str]]) -> None:
    before = [dict(row) for row in rows]
    changed = docstrings.rows()
    changed[0]["prompt"] = "changed"
    changed.pop()
    assert docstrings.rows() == before


@pytest.mark.slow
def test_another_process_finds_the_same_rows(rows: list[dict[str, str]]) -> None:
    program = (
        "import sys; from trainers.data.docstrings import rows; found = rows(); print(len(found), "
        "found[0], found[-1]); assert not {'torch', 'datasets'} & set(sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == f"{len(rows)} {rows[0]} {rows[-1]}"


@pytest.mark.slow
def test_library_text_holds_code_but_no_docstring(library: list[str]) -> None:
    assert sum(map(len, library)) > 3_000_000
    for source in library[::5]:
        for definition in definitions(source):
            assert ast.get_docstring(definition) is None


@pytest.mark.slow
def test_library_text_has_the_functions_but_not_the_answers(
    rows: list[dict[str, str]], library: list[str]
) -> None:
    text = words("\n".join(library))
    asked = rows[::50]
    answered = [row for row in asked if f" {words(row['completion'])} " in text]
    assert len(answered) <= 0.03 * len(asked)  # phrases as common as "close the file"
    assert any("def dedent(text)" in source for source in library)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('def f():\n    """Doc."""\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    """Doc\n\n    more."""\n', "def f():\n    pass\n"),
        ('def f(): "Doc."\n', "def f(): pass\n"),
        ('class C:\n    "One."\n    "Two."\n    x = 1\n', "class C:\n    x = 1\n"),
        ('"Module."\nx = "é"; y = 2  # kept\n', 'x = "é"; y = 2  # kept\n'),
        ('if x:\n    async def f():\n        "é"; return 1\n', None),
        ('try:\n    pass\nexcept E:\n    def f():\n        def g():\n            "Doc."\n', None),
        ('match x:\n    case 1:\n        def f():\n            "Doc."\n            y()\n', None),
        ('x = """Not a docstring."""\n', 'x = """Not a docstring."""\n'),
    ],
)
def test_docstrings_are_cut_out_and_what_is_left_parses(source: str, expected: str | None) -> None:
    cut = tiny_model._without_docstrings(source)
    assert expected is None or cut == expected
    assert all(ast.get_docstring(definition) is None for definition in definitions(cut))


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Open a file. Then read it.", "Open a file."),
        ("Open a file\nthat is there.\n\nMore.", "Open a file that is there."),
        ("Open a file, e.g. one of yours.", "Open a file, e.g. one of yours."),
        ("Open it.", ""),  # two words say too little
        (">>> open(the, file)", ""),
        ("open(a, file) -> a file", ""),
        ("", ""),
        ("word " * 60, ""),
    ],
)
def test_the_first_sentence(docstring: str, sentence: str) -> None:
    (function,) = ast.parse(f"def f():\n    {docstring!r}\n").body
    assert isinstance(function, docstrings.Function)
    assert docstrings._first_sentence(function) == sentence


def test_a_python_without_its_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docstrings, "pairs", docstrings.pairs.__wrapped__)  # past its cache
    monkeypatch.setattr(docstrings, "_library", lambda: tmp_path)
    with pytest.raises(RuntimeError, match="data=file"):
        docstrings.rows()
