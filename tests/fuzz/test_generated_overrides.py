"""Words of a command line give the trials that were meant, or are refused by their key.

Drawn by hypothesis: 200 here, 10,000 by `make fuzz`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from support.checked_lines import check_line
from support.command_lines import LineCase, line_cases
from support.fuzzing import MANY


@pytest.mark.slow
@MANY
@given(case=line_cases())
def test_words_give_the_trials_that_were_meant_or_are_refused_by_their_key(
    case: LineCase, counted: Any
) -> None:
    if counted.is_new(case):  # no `assume`: whether it is depends on what was drawn before
        counted.add(case, check_line(case))
