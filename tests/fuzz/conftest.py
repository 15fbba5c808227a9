"""Says at the end what became of the generated cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

COUNTED = "what became of them"


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[Callable[[str, bool, str], None]]:
    """Count a case: its kind, whether it is valid by construction, and what became of it."""
    found: Counter[str] = Counter()

    def count(kind: str, is_valid: bool, outcome: str) -> None:
        found[f"{'valid' if is_valid else 'broken'} and {outcome}"] += 1

    yield count
    total = sum(found.values()) or 1
    shares = ", ".join(f"{words} {count / total:.1%}" for words, count in found.most_common())
    request.node.user_properties.append((COUNTED, f"{total:,} cases: {shares}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, words in getattr(report, "user_properties", ()):
                if name == COUNTED and getattr(report, "when", "") == "teardown":
                    terminalreporter.write_line(f"{report.nodeid}: {words}")
