"""`make test-gpu`: each test finds the card as the first one did."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _clean_card() -> Iterator[None]:
    yield
    from trainers.model import cache
    from trainers.trial.meters import free_memory

    cache.release()
    free_memory()
