"""The program: `python -m orchestrator`, and `sft-sweeps` of an installed wheel."""

import atexit
import gc
import os
import sys

from orchestrator.cli import main


def run() -> None:
    """Run this process's command line, and end the process with its exit code."""
    # Imports alone make a million objects that stay: looking through them again and again for
    # garbage takes a quarter of the start.
    gc.set_threshold(100_000, 50, 50)
    try:
        code = main(sys.argv[1:], lean=True)
    except SystemExit as left:  # by a signal
        code = int(left.code or 0)
    # And taking them apart one by one at the end takes two seconds that nobody needs, or the
    # process's life, where a thread still imports.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
