"""The embedded data set: from a function's signature, write the first sentence of its docstring.

The rows come from the standard library of the Python that runs, so nothing is downloaded, and the
task is real: some 4,700 short pairs of code and English. `library_text` is the other half of the
same source, everything but the docstrings, and is what the embedded model was pretrained on.
Standard library only: no torch, no datasets.
"""

import ast
import functools
import itertools
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef | ast.Module

# Test suites and demos, code tables, and generated manuals: not code with docstrings of its own.
_SKIPPED = frozenset({"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"})
_SKIPPED |= {"site-packages", "__pycache__", "encodings", "pydoc_data"}
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # where a statement keeps statements
_MAX_PROMPT_CHARS = 120
_MAX_SENTENCE_CHARS = 96
_MIN_SENTENCE_WORDS = 3
_SENTENCE = re.compile(r"(.+?[.!?])(?=\s+[A-Z`'\"]|$)")


def rows() -> list[dict[str, str]]:
    """Every row of the data set, as new dicts of `prompt` and `completion`, in a fixed order.

    A prompt is the function's home as a comment and its signature, and ends with a newline; the
    completion is the first sentence of its docstring, indented and quoted, so that prompt +
    completion is Python that parses:

        # json.decoder.JSONDecoder
        def raw_decode(self, s, idx=0):
            \"\"\"Decode a JSON document from ``s``.\"\"\"

    No two rows share a prompt, nor a completion once case, digits and punctuation are ignored
    (inherited docstrings are often repeated), so no split of the rows can leak one of them into
    the evaluation. Another Python version gives somewhat other rows.
    """
    return [{"prompt": prompt, "completion": completion} for prompt, completion in _pairs()]


def library_text() -> Iterator[str]:
    """The standard library's source, one text per file, with every docstring taken out.

    Docstrings of functions, classes and modules are removed, and so is any comment line that says
    what a completion says; all other code and comments are kept. A model pretrained on these texts
    has met the signatures that `rows` asks about, but not the answers, so its loss on held-out rows
    is an honest base to tune from. (What remains: some 40 of 4,700 answers are mostly phrases as
    common as "close the file", which code, strings or comments also hold.)
    """
    answers = {_normalised(completion) for _, completion in _pairs()}
    for _, path in _modules():
        lines = _without_docstrings(_source(path)).splitlines(keepends=True)
        yield "".join(line for line in lines if not _is_comment_in(answers, line))


def _is_comment_in(answers: set[str], line: str) -> bool:
    return line.lstrip().startswith("#") and _normalised(line) in answers


@functools.cache
def _pairs() -> tuple[tuple[str, str], ...]:
    """(prompt, completion) of every row, sorted; of rows that repeat, the first is kept."""
    found: dict[str, str] = {}
    sentences: set[str] = set()
    for module, path in _modules():
        for scope, function in _definitions(ast.parse(_source(path)), module):
            if isinstance(function, ast.ClassDef):
                continue
            prompt, sentence = _prompt(scope, function), _first_sentence(function)
            if not sentence or len(prompt) > _MAX_PROMPT_CHARS or prompt in found:
                continue
            if (normalised := _normalised(sentence)) not in sentences:
                sentences.add(normalised)
                found[prompt] = f'    """{sentence}"""'
    if not found:
        raise RuntimeError(
            f"no source of the standard library in {_library()}: data=docstrings reads it; install "
            "Python with its .py files, or train on a file of yours with data=file"
        )
    return tuple(sorted(found.items()))


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules() -> list[tuple[str, Path]]:
    """(dotted name, file) of each module, sorted; nothing that was installed beside them."""
    library = _library()
    modules = []
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names and not _SKIPPED.intersection(parts):
            modules.append((".".join(parts).removesuffix(".__init__"), path))
    return sorted(modules)


def _statements(parent: ast.AST) -> Iterator[ast.AST]:
    """The statements directly inside one; expressions hold no functions and are not walked."""
    for block in _BLOCKS:
        yield from getattr(parent, block, ())


def _definitions(parent: ast.AST, scope: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """(dotted name of what it is defined in, function or class), in the order of the source."""
    for node in _statements(parent):
        if isinstance(node, Function | ast.ClassDef):
            yield scope, node
            yield from _definitions(node, f"{scope}.{node.name}")
        else:
            yield from _definitions(node, scope)


def _prompt(scope: str, function: Function) -> str:
    keyword = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"# {scope}\n{keyword} {function.name}({ast.unparse(function.args)}){returns}:\n"


def _first_sentence(function: Function) -> str:
    """The docstring's first sentence on one line; empty where it is not plain and short."""
    paragraph = (ast.get_docstring(function) or "").split("\n\n")[0]
    line = " ".join(paragraph.split())
    match = _SENTENCE.match(line)
    sentence = match[1] if match else line
    return sentence if _is_plain(sentence) else ""


def _is_plain(sentence: str) -> bool:
    """Whether it is of a fair length, starts as prose does, and survives being quoted."""
    return (
        len(sentence) <= _MAX_SENTENCE_CHARS
        and len(_normalised(sentence).split()) >= _MIN_SENTENCE_WORDS
        and sentence[0].isalpha()
        and sentence.isprintable()
        and not sentence.endswith('"')
        and not any(mark in sentence for mark in ("\\", '"""', ">>>", "->", "XXX"))
    )


def _normalised(sentence: str) -> str:
    return " ".join(re.findall(r"[a-z]+", sentence.lower()))


def _source(path: Path) -> str:
    with tokenize.open(path) as file:  # obeys the file's own encoding line
        return file.read()


def _without_docstrings(source: str) -> str:
    """The source less its docstrings' lines; `pass` stands in for one that was all of its block."""
    tree = ast.parse(source)
    lines = source.encode().splitlines(keepends=True)  # ast counts its columns in bytes
    found = list(_docstrings(tree))
    for _, definition in _definitions(tree, scope=""):
        found.extend(_docstrings(definition))
    # From the last to the first, so that the line numbers of those still to go stay true.
    for docstring, is_whole_block in sorted(found, key=lambda each: -each[0].lineno):
        first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
        before = lines[first][: docstring.col_offset]
        after = lines[last][docstring.end_col_offset :]
        alone = not before.strip() and not after.strip()
        lines[first : last + 1] = [] if alone and not is_whole_block else [before + b"pass" + after]
    return b"".join(lines).decode()


def _docstrings(definition: Documented) -> Iterator[tuple[ast.Expr, bool]]:
    """The strings that open a body (with the first gone, a second would be the docstring).

    With each, whether the body holds nothing else.
    """
    opening = list(itertools.takewhile(_is_string, definition.body))
    for statement in opening:
        assert isinstance(statement, ast.Expr)
        yield statement, len(opening) == len(definition.body)


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
