"""The table of samplers."""

from __future__ import annotations

from typing import get_args

from sweeps.config.spec import SearchName
from sweeps.search.samplers import SAMPLERS


def test_every_search_has_its_row() -> None:
    assert set(SAMPLERS) == set(get_args(SearchName))
