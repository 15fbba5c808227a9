"""python -m orchestrator"""

import gc
import sys

from orchestrator.cli import main

if __name__ == "__main__":
    # Imports alone make a million objects that stay: looking through them again and again for
    # garbage takes a quarter of the start.
    gc.set_threshold(100_000, 50, 50)
    sys.exit(main(sys.argv[1:]))
