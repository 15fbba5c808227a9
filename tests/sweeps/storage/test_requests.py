"""Requests in a run folder or a store: read once each, oldest first, whatever else lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.storage.object_store import Store
from sweeps.storage.requests import (
    Answer,
    Request,
    Unreadable,
    fetch_requests,
    make_request,
    read_answer,
    unanswered_requests,
    write_answer,
    write_request,
)
from sweeps.storage.run_folder import RunFolder


def test_requests_are_read_in_their_order_until_they_are_answered(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert unanswered_requests(folder) == []
    made = [make_request("stop", trials=["a"]), make_request("finish", start=3)]
    assert [write_request(folder, request) for request in made] == made
    assert unanswered_requests(folder) == made
    assert read_answer(folder, made[0].name) is None
    answer = Answer(is_done=True, said="it ends")
    write_answer(folder, made[0].name, answer)
    assert read_answer(folder, made[0].name) == answer
    assert unanswered_requests(folder) == made[1:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"name": "x", "verb": "stop"}',
        '{"name":"y","verb":"stop","by":"z"}',
        '{"name": "x", "verb": "format the disk", "by": "z"}',
        "\x00",
    ],
)
def test_a_file_that_is_no_request_is_told_apart(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.requests.mkdir()
    (folder.requests / "x.json").write_text(text)
    (folder.requests / "notes.txt").write_text("of a user's")
    (found,) = unanswered_requests(folder)
    assert isinstance(found, Unreadable)
    assert found.name == "x"


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_was_written_first_is_read_first_whatever_the_clocks_say(
    tmp_path: Path, is_stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one tick of a clock, by a machine whose clock is behind, and beside strange files."""
    folder, store = RunFolder(tmp_path / "run"), Store(str(tmp_path / "store"))
    place = store if is_stored else folder
    written = []
    for verb, now in (("pause", 5), ("resume", 5), ("stop", 9), ("finish", 2), ("cancel", 7)):
        monkeypatch.setattr("time.time_ns", lambda now=now: now * 10**18)
        written.append(write_request(place, make_request(verb)))  # type: ignore[arg-type]
        write_answer(folder, "of-another", Answer(is_done=True, said=""))
    fetch_requests(store, folder)
    found = unanswered_requests(folder)
    assert found == written
    assert [each.verb for each in found if isinstance(each, Request)] == [
        "pause",
        "resume",
        "stop",
        "finish",
        "cancel",
    ]


def test_a_store_that_fails_in_the_middle_gives_no_later_request_before_an_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, store = RunFolder(tmp_path / "run"), Store(str(tmp_path / "store"))
    written = [write_request(store, make_request("pause")) for _ in range(3)]
    get, left = Store.get, [1]

    def failing(self: Store, name: str, path: Path) -> None:
        if not left:
            raise OSError("unreachable")
        left.pop()
        get(self, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "get", failing)
        with pytest.raises(OSError, match="unreachable"):
            fetch_requests(store, folder)
    assert unanswered_requests(folder) == written[:1]
    fetch_requests(store, folder)
    assert unanswered_requests(folder) == written


def test_a_request_reaches_the_folder_by_the_store_and_the_answer_the_store(tmp_path: Path) -> None:
    store, folder = Store(str(tmp_path / "store")), RunFolder(tmp_path / "run")
    fetch_requests(store, folder)
    request = make_request("stop", trials=["a"])
    write_request(store, request)
    fetch_requests(store, folder)
    fetch_requests(store, folder)
    (found,) = unanswered_requests(folder)
    assert isinstance(found, Request)
    assert found == request
    write_answer(folder, request.name, Answer(is_done=False, said="no"))
    answered = folder.requests / f"{request.name}.answer.json"
    store.put(answered, folder.name(answered))
    assert read_answer(store, request.name) == Answer(is_done=False, said="no")
