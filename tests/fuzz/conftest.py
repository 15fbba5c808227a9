"""Says at the end what became of the generated cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

COUNTED = "what became of them"


class Counted:
    """The cases that went well, by what became of them; hypothesis may draw one again."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._outcomes: Counter[str] = Counter()

    def is_new(self, case: object) -> bool:
        return hash(repr(case)) not in self._seen

    def add(self, case: object, outcome: str) -> None:
        self._seen.add(hash(repr(case)))
        self._outcomes[outcome] += 1

    def __str__(self) -> str:
        total = self._outcomes.total()
        shares = [f"{words} {each / total:.1%}" for words, each in self._outcomes.most_common()]
        return f"{total:,} different cases: {', '.join(shares)}"


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[Counted]:
    found = Counted()
    yield found
    request.node.user_properties.append((COUNTED, str(found)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, words in getattr(report, "user_properties", ()):
                if name == COUNTED and getattr(report, "when", "") == "teardown":
                    terminalreporter.write_line(f"{report.nodeid}: {words}")
