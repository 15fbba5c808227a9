"""What holds for all tests: none sees a GPU but those that need one, when they are asked for.

Elsewhere a test would train on whatever card the machine has, in another number type.
"""

from __future__ import annotations

import os

import pytest
from support.gpu_runs import VISIBLE, asks_for_gpus, obstacle


def pytest_configure(config: pytest.Config) -> None:
    # Before any test imports torch. Child processes inherit it, Ray's too.
    if not asks_for_gpus(config.option.markexpr):
        os.environ[VISIBLE] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    why = obstacle(config.option.markexpr) if needing else ""
    if why:
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=why))
