"""Copies of a run folder in a store: here a path, where a store does what it does on S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import fs
from support.sweep_events import new_ledger, read

from orchestrator.storage.sync import Copies
from sweeps.core.errors import FolderHeldError, SweepError
from sweeps.ledger.events import Interrupt
from sweeps.ledger.ledger import Ledger
from sweeps.storage import driver_lease, ledger_copy
from sweeps.storage.driver_lease import Lease
from sweeps.storage.ledger_copy import LedgerCopy
from sweeps.storage.object_store import FILES, Store, place_problem
from sweeps.storage.run_folder import REPORT, RunFolder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def make_folder(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def contents(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_text() for path in files}


# ---------------------------------------------------------------------- folders


def test_a_folder_goes_there_and_comes_back(store: Store, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", model="weights", sub__state="moments")
    store.put_folder(folder, "trials/k/step")
    assert store.get_folder("trials/k/step", tmp_path / "back")
    assert contents(tmp_path / "back") == {"model": "weights", "sub/state": "moments"}
    assert store.names("trials/k") == ["step"]
    store.remove("trials/k/step")
    assert store.names("trials/k") == []
    assert not store.get_folder("trials/k/step", tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_a_folder_without_its_list_is_none(store: Store, tmp_path: Path) -> None:
    store.put_folder(make_folder(tmp_path / "a", one="1", two="2"), "half")
    (tmp_path / "store" / "half" / FILES).unlink()  # killed before it was written
    assert not store.get_folder("half", tmp_path / "back")
    store.put_folder(make_folder(tmp_path / "a", one="1"), "half")
    assert store.get_folder("half", tmp_path / "back")
    assert contents(tmp_path / "back") == {"one": "1", "two": "2"}


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_folder_with_a_file_cut_or_gone_is_none(
    store: Store, tmp_path: Path, damage: str
) -> None:
    store.put_folder(make_folder(tmp_path / "a", model="weights"), "step")
    path = tmp_path / "store" / "step" / "model"
    path.write_text("wei") if damage == "cut" else path.unlink()
    here = make_folder(tmp_path / "back", old="kept")
    assert not store.get_folder("step", here)
    assert contents(here) == {"old": "kept"}


def test_a_folder_that_is_written_again_loses_its_old_files(store: Store, tmp_path: Path) -> None:
    store.put_folder(make_folder(tmp_path / "a", old="1", both="1"), "best")
    store.put_folder(make_folder(tmp_path / "b", new="2", both="2"), "best")
    assert contents(tmp_path / "store" / "best").keys() == {"new", "both", FILES}


@pytest.mark.parametrize("name", ["../../../home", "/tmp/{}/home", "a/../../home", ""])
def test_a_list_that_leads_out_of_the_folder_is_refused(
    name: str, store: Store, tmp_path: Path
) -> None:
    name = name.format(tmp_path.name)
    store.write(f"evil/{FILES}", json.dumps({name: 0}).encode())
    store.write("home", b"")
    before = set(tmp_path.rglob("*"))
    assert not store.get_folder("evil", tmp_path / "back")
    assert set(tmp_path.rglob("*")) == before


class Hostile:
    """An object storage, where a name may be anything."""

    type_name = "s3"

    def __init__(self, *names: str) -> None:
        self._names = names

    def get_file_info(self, _: object) -> list[fs.FileInfo]:
        return [fs.FileInfo(f"bucket/run/{name}", fs.FileType.File) for name in self._names]


def test_an_object_whose_name_leads_elsewhere_is_passed_over() -> None:
    store = Store("s3://bucket/run")
    names = ("trials/ab/config.yaml", "trials/../../evil/config.yaml", "trials//etc/config.yaml")
    store.__dict__["_opened"] = (Hostile(*names), "bucket/run")
    assert store.tree("") == ["trials//etc/config.yaml", "trials/ab/config.yaml"]
    assert store.tree("trials") == ["ab/config.yaml"]


def test_other_data_of_the_same_size_is_copied(store: Store, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for text in ("one", "two"):
        make_folder(folder.data, rows=text)
        (folder.data / REPORT).write_text(text)
        folder.ledger.touch()
        lease = Lease(store)
        lease.take(say=print)
        copies = Copies(store, folder, 1, lease)
        copies.begin()
        copies.finish(10.0)
        assert contents(tmp_path / "store" / "data")["rows"] == text


@pytest.mark.parametrize("place", ["s3://", "s4://bucket", "bucket/path", "s3:///"])
def test_places_that_are_none(place: str) -> None:
    assert "must be s3://bucket/path" in place_problem(place)


@pytest.mark.parametrize("place", ["s3://b", "gs://b/p", "/mnt/shared", "file:///mnt"])
def test_places_that_are_some(place: str) -> None:
    assert place_problem(place) == ""


def test_a_login_in_a_place_is_not_shown() -> None:
    assert str(Store("s3://key:canary@bucket/p")) == "s3://***@bucket/p"


# ---------------------------------------------------------------------- the ledger


def write(path: Path, count: int) -> Ledger:
    return new_ledger(path, *map(reason, range(count)))


def reason(number: int) -> str:
    return f"{number:03d} " + "x" * 40


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_copy, "PART_BYTES", 100)  # less than two lines


@pytest.mark.usefixtures("small_parts")
def test_a_ledger_is_copied_in_parts_and_read_back(store: Store, tmp_path: Path) -> None:
    ledger = write(tmp_path / "ledger.jsonl", 0)
    copy = LedgerCopy(store, ledger.path)
    copy.settle()
    for number in range(12):
        ledger.append(Interrupt(reason=reason(number)))
        copy.push()
        elsewhere = tmp_path / f"{number}" / "ledger.jsonl"
        LedgerCopy(store, elsewhere).settle()
        assert elsewhere.read_bytes() == ledger.path.read_bytes()
    assert len(store.names("ledger")) > 8


@pytest.mark.usefixtures("small_parts")
def test_only_what_is_new_is_sent(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = write(tmp_path / "ledger.jsonl", 20)
    copy = LedgerCopy(store, ledger.path)
    copy.push()
    sent: list[str] = []
    real = store.write
    monkeypatch.setattr(store, "write", lambda n, d: (sent.append(n), real(n, d)))
    copy.push()
    assert sent == []
    ledger.append(Interrupt(reason="one more"))
    copy.push()
    assert len(sent) <= 2
    again = LedgerCopy(store, ledger.path)
    again.settle()
    sent.clear()
    again.push()
    assert sent == []


@pytest.mark.usefixtures("small_parts")
def test_a_kill_between_two_parts_loses_the_end_only(store: Store, tmp_path: Path) -> None:
    ledger = write(tmp_path / "ledger.jsonl", 12)
    LedgerCopy(store, ledger.path).push()
    names = store.names("ledger")
    for name in names[-2:]:
        (tmp_path / "store" / "ledger" / name).unlink()
    elsewhere = tmp_path / "b" / "ledger.jsonl"
    LedgerCopy(store, elsewhere).settle()
    lines = elsewhere.read_bytes()
    assert lines.endswith(b"\n")
    assert ledger.path.read_bytes().startswith(lines)
    assert len(read(elsewhere)) >= 8

    ahead = LedgerCopy(store, ledger.path)  # the machine that wrote it goes on
    ahead.settle()
    ahead.push()
    LedgerCopy(store, elsewhere).settle()
    assert elsewhere.read_bytes() == ledger.path.read_bytes()


def test_a_torn_last_line_here_gives_way(store: Store, tmp_path: Path) -> None:
    ledger = write(tmp_path / "ledger.jsonl", 3)
    whole = ledger.path.read_bytes()
    LedgerCopy(store, ledger.path).push()
    ledger.path.write_bytes(whole + b'{"event": "inter')
    copy = LedgerCopy(store, ledger.path)
    copy.settle()
    copy.push()
    assert store.read("ledger/000000.jsonl") == whole


def test_two_drivers_wrote_one_sweep(store: Store, tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", 3)
    LedgerCopy(store, first.path).push()
    first.append(Interrupt(reason="here"))
    other = new_ledger(tmp_path / "b.jsonl", "there")
    with pytest.raises(SweepError, match="tell of different events: two drivers"):
        LedgerCopy(store, other.path).settle()
    assert len(read(other.path)) == 1


# ---------------------------------------------------------------------- the lease


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_lease, "BEAT_S", 0.0)
    monkeypatch.setattr(driver_lease, "_DEAD_S", 1.5)
    monkeypatch.setattr(driver_lease.time, "sleep", lambda _: None)


def from_host(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(driver_lease.socket, "gethostname", lambda: host)


@pytest.mark.usefixtures("quick")
def test_a_holder_that_lives_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from_host(monkeypatch, "far")
    first = Lease(store)
    first.take()
    from_host(monkeypatch, "near")
    monkeypatch.setattr(driver_lease.time, "sleep", lambda _: first.beat())
    with pytest.raises(FolderHeldError, match="is in use by far, pid"):
        Lease(store).take()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_holder_that_does_not_stir_is_followed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_host(monkeypatch, "far")
    first = Lease(store)
    first.take()
    from_host(monkeypatch, "near")
    said: list[str] = []
    second = Lease(store)
    second.take(said.append)
    assert "was driven by far" in said[0]
    second.beat()
    with pytest.raises(FolderHeldError, match=r"near, pid \d+ has taken over"):
        first.beat()


def test_nobody_waits_after_a_clean_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from_host(monkeypatch, "far")
    first = Lease(store)
    first.take()
    first.release()
    from_host(monkeypatch, "near")
    monkeypatch.setattr(driver_lease.time, "sleep", lambda _: pytest.fail("it waited"))
    Lease(store).take()


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"host": driver_lease.socket.gethostname(), "pid": 2**22 + 1, "word": "w", "beat": 1}
    store.write("driver.json", json.dumps(gone).encode())
    monkeypatch.setattr(driver_lease.time, "sleep", lambda _: pytest.fail("it waited"))
    Lease(store).take()
