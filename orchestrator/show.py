"""Runs the verb `show`: prints rows of the data as the model will see them; loads no weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from orchestrator.config.command import Command
from orchestrator.terminal.format import make_console
from orchestrator.terminal.row_view import legend, row_view
from sweeps.core.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """The options of `show`; what it does not know are overrides."""
    made = argparse.ArgumentParser(
        prog="python -m orchestrator show",
        usage="%(prog)s [--rows N] [--longest] [--cut N] [KEY=VALUE ...]",
        description="Show rows of the data as the model will see them, and what of them is learnt. "
        "Takes the same overrides as a sweep; only the tokenizer is loaded.",
        allow_abbrev=False,
    )
    made.add_argument("--rows", type=_count, default=5, metavar="N", help="how many; default 5")
    made.add_argument("--longest", action="store_true", help="the longest rows, not the first ones")
    made.add_argument(
        "--cut", type=_count, metavar="N", help="letters shown of a row; default: all of it"
    )
    return made


def show(argv: Sequence[str], options: argparse.Namespace) -> int:
    """Print the data report and rows of the training split.

    Raises:
        SweepError, ConfigError: the command, or the data, as in a sweep.
    """
    command = Command.read(argv)
    if command.spec is None or command.problems:
        raise ConfigError(command.problems)
    from trainers.data.rows import read
    from trainers.preview import training_rows

    spec, notes = command.within_context(command.spec)
    train = spec.train
    rows, report = training_rows(
        train, read(train.data), count=options.rows, longest=options.longest
    )
    console = make_console()
    which = "longest" if options.longest else "first"
    for line in (*report.lines(), *notes):
        console.print(line, soft_wrap=True)
    console.print(f"\nthe {which} {len(rows):,} rows to train on, {legend(console)}")
    for row in rows:
        console.print()
        console.print(row_view(row, console, options.cut), soft_wrap=True)
    return 0


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count
