"""Prints what `make test-bounds` installs: each direct dependency at the lowest version allowed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def lowest(project: Mapping[str, Any], lock: str) -> list[Requirement]:
    """The dependencies of pyproject.toml's [project], extras included, with == in place of >=.

    torch is at the lock's version: of the lower ones PyPI has no CPU build.

    Raises:
        ValueError: a dependency has no lower bound.
    """
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    found = [Requirement(line) for line in lines]
    for one in found:
        bounds = [bound.version for bound in one.specifier if bound.operator == ">="]
        if one.name == "torch":
            bounds = re.findall(r"(?m)^torch==(\S+)", lock)
        if not bounds:
            raise ValueError(f"pyproject.toml: {one} has no lower bound; write {one.name}>=VERSION")
        one.specifier = SpecifierSet(f"=={bounds[0]}")
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for one in lowest(project, lock):
        print(one)


if __name__ == "__main__":
    main()
