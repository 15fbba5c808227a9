"""Makes the embedded data set: from a function's signature, write its docstring's first sentence.

The rows come from the standard library of the Python that runs, so nothing is downloaded, and the
task is real: some 4,700 short pairs of code and English. `library_text` is the other half of the
same source, everything but the docstrings, and is what the embedded model was pretrained on.
Standard library only: no torch, no datasets.
"""

import ast
import functools
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Test suites and demos, code tables, and generated manuals: not code with docstrings of its own.
_SKIPPED = frozenset({"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo"})
_SKIPPED |= {"site-packages", "__pycache__", "encodings", "pydoc_data"}
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")  # a statement's fields of statements
_MAX_PROMPT_CHARS = 120
_MAX_SENTENCE_CHARS = 96
_MIN_SENTENCE_WORDS = 3
_SENTENCE = re.compile(r"(.+?[.!?])(?=\s+[A-Z`'\"]|$)")


def rows() -> list[dict[str, str]]:
    """Make every row of the data set, as new dicts of `prompt` and `completion`, in a fixed order.

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
    return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs()]


@functools.cache
def pairs() -> tuple[tuple[str, str], ...]:
    """Make (prompt, completion) of every row, sorted; of rows that repeat, keep the first."""
    found: dict[str, str] = {}
    sentences: set[str] = set()
    for module, path in modules():
        for scope, function in definitions(ast.parse(source(path)), module):
            if isinstance(function, ast.ClassDef):
                continue
            prompt, sentence = _prompt(scope, function), _first_sentence(function)
            if not sentence or len(prompt) > _MAX_PROMPT_CHARS or prompt in found:
                continue
            if (words := normalised(sentence)) not in sentences:
                sentences.add(words)
                found[prompt] = f'    """{sentence}"""'
    if not found:
        raise RuntimeError(
            f"no source of the standard library in {_library()}: data=docstrings reads it; install "
            "Python with its .py files, or train on a file of yours with data=file"
        )
    return tuple(sorted(found.items()))


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def modules() -> list[tuple[str, Path]]:
    """Find (dotted name, file) of each module, sorted; no packages that were installed."""
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


def definitions(parent: ast.AST, scope: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Find (dotted name of the scope, function or class) inside `parent`, in the source's order."""
    for node in _statements(parent):
        if isinstance(node, Function | ast.ClassDef):
            yield scope, node
            yield from definitions(node, f"{scope}.{node.name}")
        else:
            yield from definitions(node, scope)


def _prompt(scope: str, function: Function) -> str:
    keyword = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"# {scope}\n{keyword} {function.name}({ast.unparse(function.args)}){returns}:\n"


def _first_sentence(function: Function) -> str:
    """The docstring's first sentence on one line; empty if it is not plain and short."""
    paragraph = (ast.get_docstring(function) or "").split("\n\n")[0]
    line = " ".join(paragraph.split())
    match = _SENTENCE.match(line)
    sentence = match[1] if match else line
    return sentence if _is_plain(sentence) else ""


def _is_plain(sentence: str) -> bool:
    """Whether a sentence has a fair length, begins as prose does, and can be quoted."""
    return (
        len(sentence) <= _MAX_SENTENCE_CHARS
        and len(normalised(sentence).split()) >= _MIN_SENTENCE_WORDS
        and sentence[0].isalpha()
        and sentence.isprintable()
        and not sentence.endswith('"')
        and not any(mark in sentence for mark in ("\\", '"""', ">>>", "->", "XXX"))
    )


def normalised(sentence: str) -> str:
    return " ".join(re.findall(r"[a-z]+", sentence.lower()))


def source(path: Path) -> str:
    with tokenize.open(path) as file:  # obeys the file's own encoding line
        return file.read()
