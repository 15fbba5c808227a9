"""What can be said about a `DataSpec` before any data is read."""

from __future__ import annotations

import platform

from sweeps.errors import Problem
from sweeps.spec import DataSpec


def spec_problems(spec: DataSpec) -> list[Problem]:
    """What can be said against `spec` without reading any data."""
    problems = []
    if spec.source != "docstrings" and not spec.path:
        example = "data.path=train.jsonl" if spec.source == "file" else "data.path=OWNER/NAME"
        problems.append(Problem(key="data.path", message=f"data={spec.source} needs it: {example}"))
    if spec.eval_split and spec.source != "hub":
        message = "only data sets of the Hub have splits; name a file with data.eval_path"
        problems.append(Problem(key="data.eval_split", value=spec.eval_split, message=message))
    if spec.eval_split and spec.eval_path:
        message = "data.eval_split is set too; one of the two gives the evaluation rows"
        problems.append(Problem(key="data.eval_path", value=spec.eval_path, message=message))
    if spec.limit is not None and spec.limit < 1:
        message = "is a number of rows, 1 or more; leave it out to read all"
        problems.append(Problem(key="data.limit", value=spec.limit, message=message))
    if spec.max_length < 2:
        message = "is a number of tokens, 2 or more: each token is predicted from those before it"
        problems.append(Problem(key="data.max_length", value=spec.max_length, message=message))
    return problems + _share_problems(spec)


def _share_problems(spec: DataSpec) -> list[Problem]:
    problems = []
    for name in ("eval_fraction", "test_fraction", "max_truncated"):
        share = getattr(spec, name)
        if not 0 <= share <= 1:
            message = "is a share of the rows, from 0 to 1"
            problems.append(Problem(key=f"data.{name}", value=share, message=message))
    own = spec.eval_path or spec.eval_split
    if not problems and (0 if own else spec.eval_fraction) + spec.test_fraction >= 1:
        message = "with data.test_fraction leaves no rows to train on"
        problems.append(
            Problem(key="data.eval_fraction", value=spec.eval_fraction, message=message)
        )
    if spec.eval_limit is not None and spec.eval_limit < 1:
        message = "is a number of rows, 1 or more; leave it out to measure on all"
        problems.append(Problem(key="data.eval_limit", value=spec.eval_limit, message=message))
    return problems


def describe(spec: DataSpec) -> str:
    """The source in words, for reports and messages."""
    if spec.source == "docstrings":
        return f"docstrings of the standard library of Python {platform.python_version()}"
    if spec.source == "file":
        return str(spec.path)
    name = f"/{spec.name}" if spec.name else ""
    revision = f"@{spec.revision}" if spec.revision else ""
    return f"{spec.path}{name}{revision}, split {spec.split}"
