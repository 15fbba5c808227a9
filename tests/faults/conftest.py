"""`make faults`: whole sweeps, killed, starved and lied to; at the end a table of what became."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from witnessed import GRID, TPE, WORDS, Witnessed

ENGINES = ("solo",)
_TABLE = pytest.StashKey[list[tuple[str, str, str]]]()

Make = Callable[..., Witnessed]
Note = Callable[[str, object], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="random kills (a report takes 20)")
    parser.addoption("--engines", default=",".join(ENGINES), help="to try, as in solo,packed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        engines = metafunc.config.getoption("--engines", ",".join(ENGINES)).split(",")
        metafunc.parametrize("engine", engines, scope="session")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash[_TABLE]
    if not rows:
        return
    terminalreporter.section("what was survived")
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for engine, case, outcome in rows:
        terminalreporter.write_line(f"{engine:<{widths[0]}}  {case:<{widths[1]}}  {outcome}")


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Add a line to the table: the case, and what became of it."""
    engine = (
        request.node.callspec.params.get("engine", "-")
        if hasattr(request.node, "callspec")
        else "-"
    )

    def add(case: str, outcome: object) -> None:
        request.config.stash[_TABLE].append((engine, case, str(outcome)))

    return add


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes commands; whatever is left of their processes is ended in the end."""
    made: list[Witnessed] = []

    def command(engine: str, *words: str, examples: int = 64) -> Witnessed:
        root = tmp_path_factory.mktemp("sweep")
        made.append(Witnessed((*WORDS, *words), root, examples=examples, engine=engine))
        return made[-1]

    yield command
    for one in made:
        if one.process is not None:
            one.clear_up()


@pytest.fixture(scope="session")
def whole(make: Make) -> Callable[..., Witnessed]:
    """A sweep that ran undisturbed, by its words and its length; each runs once."""
    ran: dict[tuple[object, ...], Witnessed] = {}

    def run(engine: str, *words: str, examples: int = 64) -> Witnessed:
        key = (engine, *words, examples)
        if key not in ran:
            command = make(engine, *words, examples=examples)
            assert command.run() == 0, command.output
            assert command.repeated() == 0
            ran[key] = command
        return ran[key]

    return run


__all__ = ["GRID", "TPE"]
