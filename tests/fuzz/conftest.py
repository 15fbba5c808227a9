"""Says at the end what became of the generated cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

COUNTED = "what became of them"


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[Callable[[object, str], None]]:
    """Count a case by what became of it; hypothesis may draw the same one again."""
    found: Counter[str] = Counter()
    seen: set[int] = set()

    def count(case: object, outcome: str) -> None:
        seen.add(hash(repr(case)))
        found[outcome] += 1

    yield count
    total = sum(found.values()) or 1
    shares = ", ".join(f"{words} {number / total:.1%}" for words, number in found.most_common())
    text = f"{total:,} cases, {len(seen):,} of them different: {shares}"
    request.node.user_properties.append((COUNTED, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, words in getattr(report, "user_properties", ()):
                if name == COUNTED and getattr(report, "when", "") == "teardown":
                    terminalreporter.write_line(f"{report.nodeid}: {words}")
