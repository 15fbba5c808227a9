"""The project of docs/own-project.md: its files, as the page shows them, in a folder of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "own-project.md"
_FILE = re.compile(r"`([\w./-]+\.(?:jsonl|yaml))`[^`]*:\n\n```\w+\n(.*?)^```", re.M | re.S)
_ROWS = 60


def python_block() -> str:
    """The Python of the page."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return str(block)


def write_project(folder: Path) -> Path:
    """Write the files that the page shows, with more rows of data, numbered."""
    for name, text in _FILE.findall(PAGE.read_text()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            more = [
                {**row, "prompt": f"{n}. {row['prompt']}"} for n in range(_ROWS) for row in rows
            ]
            text = "".join(f"{json.dumps(row)}\n" for row in more)
        path.write_text(text)
    return folder
