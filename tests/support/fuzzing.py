"""How many cases the fuzz makes: 200 of each kind, always the same, or as `make fuzz` asks."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

TIMES = int(os.environ.get("SWEEPS_FUZZ", "1"))


def cases(count: int) -> settings:
    """Settings for so many cases, however slow one is; nothing is kept of them."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


MANY = cases(200 * TIMES)
FEW = cases(50)
