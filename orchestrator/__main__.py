"""The program: `python -m orchestrator`, and `sft-sweeps` of an installed wheel."""

import sys

from orchestrator.cli import main


def run() -> None:
    """Run this process's command line, and end the process with its exit code."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
