"""The program: `python -m orchestrator`, and `sft-sweeps` of an installed wheel."""

import gc
import sys

from orchestrator.cli import main


def run() -> None:
    """Run this process's command line, and end the process with its exit code."""
    code = main(sys.argv[1:])
    gc.freeze()  # else Python looks through all objects of the libraries as it ends: 1.5 s
    sys.exit(code)


if __name__ == "__main__":
    run()
