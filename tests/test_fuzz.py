# ruff: noqa: PT017 (a case is an error in words, or a result: both are looked at)
"""Whatever comes in by the four doors, the answer is a result or a clear error, never a traceback.

The doors: the composed config, data files, the ledger, and the checkpoint folder. Nothing is
written where it should not be. CASES of each; `SWEEPS_FUZZ=20` makes twenty times as many.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.driving import SMALL, drive, make, open_sweep

from orchestrator.config import compose
from orchestrator.config.command import Command
from sweeps.config.spec import DataSpec
from sweeps.coordinator.coordinator import Coordinator
from sweeps.core.errors import ConfigError, SweepError
from sweeps.core.secrets import scrub
from sweeps.ledger.history import read_history
from sweeps.storage.run_folder import RunFolder
from trainers.data import rows
from trainers.trial import checkpoint

TIMES = int(os.environ.get("SWEEPS_FUZZ", "1"))


def cases(count: int) -> Callable[[Any], Any]:
    """`count` of them, TIMES over, however slow one is."""
    unhurried = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count * TIMES, deadline=None, suppress_health_check=unhurried)


# Values that are at home nowhere, at the edges of types, paths, YAML and JSON.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.sampled_from([10**400, -(10**400), 2**63, 2**64]),  # beyond all floats, beyond 64 bits
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [
            *("", " ", "null", "nan", "-1", "1e999", "../../etc/passwd", "/dev/null", "a/../../b"),
            *("${oc.env:HOME}", "${trainer}", "???", "choice(", "tag(log, interval(0, 1))"),
            *("interval(2, 1)", "choice(1, 1)", "range(1, 9e99)", "x" * 300, "\x00", "\ud800"),
        ]
    ),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, which must stay empty."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)
        yield
        assert os.listdir(folder) == []


# ---------------------------------------------------------------------- the composed config


@cache
def composed() -> tuple[dict[str, Any], dict[str, Any]]:
    config, base, _, _ = compose.compose_config(["sweep=joint"])
    return config, base


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested mappings and lists."""
    found = [prefix] if prefix else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        found += paths(item, (*prefix, key))
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


PLACES = paths(composed()[0])


@pytest.mark.slow
@cases(60)
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=4))
def test_any_config_is_read_or_refused_in_words(changes: list[tuple[Any, Any]]) -> None:
    config = copy.deepcopy(composed()[0])
    for path, value in changes:
        try:
            put(config, path, value)
        except (KeyError, TypeError, IndexError, AttributeError):
            continue  # a change before took its place away
    try:
        spec, _ = Command.of(config, composed()[1], "fuzz", "outputs/fuzz").check()
    except ConfigError as error:
        assert len(str(error)) > 20
    else:
        assert not is_outside(spec.name)


def is_outside(name: str) -> bool:
    """Whether a folder of this name would lie elsewhere."""
    return "/" in name or name in (".", "..") or "\0" in name


WORDS = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.builds(
            "{}={}".format,
            st.sampled_from([".".join(map(str, path)) for path in PLACES]),
            st.one_of(st.text(max_size=12), ODD.map(str)),
        ),
    ),
    max_size=3,
)


@pytest.mark.slow
@cases(60)
@given(WORDS)
def test_any_words_are_composed_or_refused(words: list[str]) -> None:
    try:
        compose.compose_config(words)
    except SweepError as error:
        assert str(error)


# ---------------------------------------------------------------------- data files

ROW = st.one_of(
    st.fixed_dictionaries(
        {"prompt": st.one_of(st.text(max_size=9), ODD), "completion": st.one_of(st.text(), ODD)}
    ),
    st.fixed_dictionaries({"text": st.one_of(st.text(), ODD)}),
    st.fixed_dictionaries(
        {
            "messages": st.lists(
                st.dictionaries(st.sampled_from(["role", "content"]), ODD), max_size=3
            )
        }
    ),
    ODD,
)


@pytest.mark.slow
@cases(500)
@given(
    st.lists(ROW, max_size=5),
    st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]),
    st.sampled_from(["error", "skip"]),
    st.binary(max_size=30),
    st.integers(0, 200),
    st.booleans(),
)
def test_any_file_is_read_or_refused_in_words(
    content: list[Any], ending: str, on_bad_row: Any, junk: bytes, at: int, spoilt: bool
) -> None:
    data = "\n".join(json.dumps(row) for row in content).encode("utf-8", "replace")
    if ending == ".json" and not spoilt:
        data = json.dumps(content).encode()
    if spoilt:
        data = data[:at] + junk + data[at:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        path.write_bytes(data)
        try:
            read = rows.read(DataSpec(source="file", path=str(path), on_bad_row=on_bad_row))
        except SweepError as error:
            assert str(path.name) in str(error) or "data." in str(error)
        else:
            assert read.train
        assert os.listdir(folder) == [path.name]


# ---------------------------------------------------------------------- the ledger

SWEEP = make(SMALL, search="tpe", trials=4, pruner="asha", repeats=1)


@cache
def story() -> list[dict[str, Any]]:
    """The events of a sweep with a trial that is still running."""
    with tempfile.TemporaryDirectory() as folder:
        coordinator = open_sweep(SWEEP, Path(folder))
        drive(coordinator, most=3)
        trial = coordinator.ask()
        assert trial is not None
        coordinator.start(trial.key, worker="box:2", device="cpu", step=0)
        coordinator.close()
        lines = (Path(folder) / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


EVENT_PLACES = [(number, *path) for number, event in enumerate(story()) for path in paths(event)]
CHANGE = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(EVENT_PLACES), ODD),
    st.tuples(st.just("drop"), st.sampled_from(EVENT_PLACES), st.none()),
    st.tuples(
        st.sampled_from(["cut", "double", "first"]), st.integers(0, len(story()) - 1), st.none()
    ),
)


def change(events: list[Any], how: str, where: Any, value: Any) -> None:
    try:
        if how == "put":
            put(events, where, value)
        elif how == "drop":
            parent: Any = events
            for key in where[:-1]:
                parent = parent[key]
            del parent[where[-1]]
        elif how == "cut":
            del events[where]
        elif how == "double":
            events.insert(where, copy.deepcopy(events[where]))
        else:
            events.insert(0, events.pop(where))
    except (KeyError, TypeError, IndexError, AttributeError):
        pass  # a change before took its place away


@pytest.mark.slow
@cases(300)
@given(st.lists(CHANGE, min_size=1, max_size=3))
@example([("put", (11, "choices", "trainer.learning_rate"), 10**400)])
def test_any_ledger_is_read_or_refused_in_words(changes: list[tuple[str, Any, Any]]) -> None:
    events = copy.deepcopy(story())
    for how, where, value in changes:
        change(events, how, where, value)
    text = "".join(json.dumps(event) + "\n" for event in events)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "ledger.jsonl").write_text(text)
        try:
            coordinator = Coordinator(*SWEEP, RunFolder(root))
        except SweepError as error:
            assert "ledger.jsonl" in str(error)
        else:
            coordinator.begin()
            coordinator.ask()
            coordinator.close()
        assert {path.name for path in root.iterdir()} <= {"ledger.jsonl", "trials"}
        inside = root.resolve()
        assert all(inside in path.resolve().parents for path in root.rglob("*"))
        (root / "ledger.jsonl").write_text(text)
        try:
            read_history(root / "ledger.jsonl")
        except SweepError as error:
            assert "ledger.jsonl" in str(error)


# ---------------------------------------------------------------------- the checkpoint folder


@cache
def committed() -> Path:
    """A checkpoints folder with two whole ones, small and made by hand."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-")) / "checkpoints"
    for step in (2, 4):
        draft = root / f".draft-{step}"
        draft.mkdir(parents=True)
        for name in ("adapter_model.safetensors", *checkpoint._STATE_FILES):
            (draft / name).write_bytes(f"{name} {step}".encode() * 9)
        manifest = checkpoint.Manifest(
            key="ab", step=step, attempt=1, base="b", seconds=1.0, reports=[]
        )
        checkpoint.commit(draft, root / f"step-{step:06d}", manifest)
    return root


@pytest.fixture(scope="module", autouse=True)
def _clear_up() -> Iterator[None]:
    yield
    shutil.rmtree(committed().parent, ignore_errors=True)


FILES = ["MANIFEST.json", "adapter_model.safetensors", *checkpoint._STATE_FILES]


def is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def spoil(folder: Path, how: str, name: str, junk: bytes, value: Any) -> None:
    path = folder / name
    if path.is_symlink():
        return  # what it leads to is not the checkpoint's, and is not to be written
    if how == "cut" and path.is_file():
        path.write_bytes(path.read_bytes()[: len(junk)])
    elif how == "add":
        (folder / "data.pkl").write_bytes(b"\x80\x04" + junk)
    elif how == "remove" and path.is_file():
        path.unlink()
    elif how == "link" and path.is_file():
        path.unlink()
        elsewhere = committed().parent / "elsewhere"
        elsewhere.write_bytes(b"of somebody else")
        path.symlink_to(elsewhere)
    elif how == "folder" and path.is_file():
        path.unlink()
        path.mkdir()
    elif how == "write" and path.is_file():
        path.write_bytes(junk)
    elif how == "manifest" and is_own_file(folder / "MANIFEST.json"):
        data = json.loads(committed().joinpath(folder.name, "MANIFEST.json").read_text())
        put(data, (sorted(data)[len(junk) % len(data)],), value)
        (folder / "MANIFEST.json").write_text(json.dumps(data))


@pytest.mark.slow
@cases(500)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cut", "add", "remove", "link", "folder", "write", "manifest"]),
            st.sampled_from(FILES),
            st.binary(max_size=40),
            ODD,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_of_a_spoilt_checkpoint_the_one_before_is_used(spoilings: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        shutil.copytree(committed(), root)
        before = fingerprints(root / "step-000004")
        for spoiling in spoilings:
            spoil(root / "step-000004", *spoiling)
        changed = fingerprints(root / "step-000004") != before
        try:
            found = checkpoint.newest(root, key="ab", base="b")
        except SweepError as error:
            assert changed
            assert "move it away" in str(error) or "base" in str(error)
            return
        assert found is not None
        if not changed:
            assert found[1].step == 4
        elif found[0].name == "step-000004":  # what was changed says nothing that matters
            assert set(fingerprints(found[0])) == set(before)
            assert all(
                digest == before[name]
                for name, digest in fingerprints(found[0]).items()
                if name != "MANIFEST.json"
            )


def fingerprints(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"a folder"
        for path in folder.rglob("*")
    }


def test_words_for_the_screen_are_never_refused_by_it() -> None:
    """An error that holds what cannot be encoded is shown all the same."""
    import io

    with io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace") as screen:
        Console(file=screen).print(scrub("größer \ud800"))
