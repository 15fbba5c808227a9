"""Counts the product's lines of code, without blank lines, docstrings and comments, by folder."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("sweeps", "trainers", "orchestrator")
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """The number of lines of `source` that hold code; a docstring is none."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and isinstance(first, ast.Expr) and ast.get_docstring(node):
                lines.difference_update(range(first.lineno, (first.end_lineno or 0) + 1))
    return len(lines)


def main() -> None:
    """Print the modules and the lines of code of each folder, and the sum."""
    lines: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            folder = str(path.parent.relative_to(ROOT))
            lines[folder] += code_lines(path.read_text(encoding="utf-8"))
            modules[folder] += path.name != "__init__.py"
    print(f"{'folder':<28} {'modules':>8} {'lines of code':>14}")
    for folder, count in lines.items():
        print(f"{folder + '/':<28} {modules[folder]:>8} {count:>14,}")
    print(f"{'all':<28} {modules.total():>8} {lines.total():>14,}")


if __name__ == "__main__":
    main()
