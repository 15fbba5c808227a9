"""Data files as people have them are read as meant, up to the labels, or refused by their place.

Drawn by hypothesis: 200 here, 10,000 by `make fuzz`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from support.checked_data import check_case
from support.data_files import DataCase, data_cases
from support.fuzzing import MANY


@pytest.mark.slow
@MANY
@given(case=data_cases())
def test_a_file_is_learnt_as_meant_or_refused_by_its_place(case: DataCase, counted: Any) -> None:
    if counted.is_new(case):  # no `assume`: whether it is depends on what was drawn before
        counted.add(case, check_case(case))
