"""`make faults`: whole sweeps, killed, starved and lied to; at the end a table of what became."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.real_sweeps import clearing_up
from support.witnessed import WORDS, Witnessed

ENGINES = ("solo", "packed")
_SURVIVED = "survived"  # the name of a line of the table among a report's properties

Make = Callable[..., Witnessed]
Note = Callable[[str, object], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="random kills (a report takes 20)")
    parser.addoption("--engines", default=",".join(ENGINES), help="to try, as in solo,packed")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        engines = metafunc.config.getoption("--engines", ",".join(ENGINES)).split(",")
        metafunc.parametrize("engine", engines, scope="session")


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With --dist loadgroup, a process for each engine: so that undisturbed runs are shared."""
    for item in items:
        engine = engine_of(item)
        if engine != "-":
            item.add_marker(pytest.mark.xdist_group(engine))


def engine_of(item: pytest.Item) -> str:
    spec = getattr(item, "callspec", None)
    return str(spec.params.get("engine", "-")) if spec is not None else "-"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if getattr(report, "when", "") == "call"
    ]
    rows = [row for report in reports for name, row in report.user_properties if name == _SURVIVED]
    if not rows:
        return
    terminalreporter.section("what was survived")
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for engine, case, outcome in sorted(rows, key=lambda row: row[0]):
        terminalreporter.write_line(f"{engine:<{widths[0]}}  {case:<{widths[1]}}  {outcome}")


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Add a line to the table: the case, and what became of it."""
    engine = engine_of(request.node)

    def add(case: str, outcome: object) -> None:
        # What a report carries comes to the table also from xdist's processes.
        request.node.user_properties.append((_SURVIVED, (engine, case, str(outcome))))

    return add


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes commands; whatever is left of their processes is ended in the end."""
    made: list[Witnessed] = []

    def command(engine: str, *words: str, examples: int = 64) -> Witnessed:
        root = tmp_path_factory.mktemp("sweep")
        made.append(Witnessed((*WORDS, *words), root, examples=examples, engine=engine))
        return made[-1]

    with clearing_up(made):
        yield command


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
