"""Stores copies of a run folder on a shared path, S3 or Google Cloud Storage (by pyarrow).

An object appears whole or not at all, and nothing is renamed. A folder counts only with the list of
its files, which is written last and removed first.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from sweeps.core.errors import SweepError
from sweeps.core.secrets import scrub
from sweeps.storage.durable_writes import publish

FILES = "FILES.json"
_CHUNK_BYTES = 8 * 2**20
_KNOWN = ("s3://", "gs://", "gcs://", "file://", "/")


def is_uri(place: str) -> bool:
    """Whether `place` is not simply a path."""
    return "://" in place


def place_problem(place: str) -> str:
    """What is wrong with a place as written; empty if nothing is."""
    if place.startswith(_KNOWN) and len(place.split("://")[-1].strip("/")) > 0:
        return ""
    return "must be s3://bucket/path, gs://bucket/path, or a path that begins with /."


class Store:
    """Files under one place. Names are paths with / between their parts.

    Every method raises OSError if the place does not answer, or refuses.
    """

    def __init__(self, place: str) -> None:
        self._place = place.rstrip("/")

    def __str__(self) -> str:
        return scrub(self._place)

    def under(self, name: str) -> Store:
        return Store(f"{self._place}/{name}")

    @property
    def place(self) -> str:
        """The place as it was given; it may hold a login."""
        return self._place

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        """The filesystem, and this place's path there."""
        from pyarrow import fs

        place = self._place.replace("gcs://", "gs://", 1)
        try:
            system, root = fs.FileSystem.from_uri(place)
        except (ValueError, TypeError) as error:
            raise SweepError(f"storage {self}: {scrub(str(error))}") from None
        return system, str(root)

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    # ------------------------------------------------------------------ single files

    def write(self, name: str, data: bytes) -> None:
        with self._writing(name) as stream:
            stream.write(data)

    def read(self, name: str) -> bytes | None:
        """The file's contents; None if there is no such file."""
        try:
            with self._opened[0].open_input_stream(self._path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def put(self, path: Path, name: str) -> None:
        """Copy a local file to the store."""
        with open(path, "rb") as file, self._writing(name) as stream:
            shutil.copyfileobj(file, stream, _CHUNK_BYTES)

    def get(self, name: str, path: Path) -> None:
        """Copy a file from the store to `path`; raises FileNotFoundError if there is none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.fetched")
        with (
            self._opened[0].open_input_stream(self._path(name)) as there,
            open(draft, "wb") as here,
        ):
            shutil.copyfileobj(there, here, _CHUNK_BYTES)
            here.flush()
            os.fsync(here.fileno())
        os.replace(draft, path)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        """Write one object, which appears when all is written; on a local path, by a rename."""
        system, path = self._opened[0], self._path(name)
        is_local = system.type_name == "local"
        draft = f"{path}.{os.getpid()}.part" if is_local else path
        if is_local:
            system.create_dir(os.path.dirname(path), recursive=True)
        stream = system.open_output_stream(draft)
        try:
            yield stream
        except BaseException:
            stream.close()
            if is_local:
                system.delete_file(draft)
            raise
        stream.close()
        if is_local:
            os.replace(draft, path)

    # ------------------------------------------------------------------ folders

    def put_folder(self, folder: Path, name: str) -> None:
        """Replace a folder of the store: first all files, last their list `FILES`."""
        files = {
            str(PurePosixPath(path.relative_to(folder))): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        before = self.files_of(name)
        if before is not None:
            self._delete(f"{name}/{FILES}")
        for file in files:
            self.put(folder / file, f"{name}/{file}")
        self.write(f"{name}/{FILES}", json.dumps(files, indent=1).encode())
        for file in set(before or ()) - set(files):
            self._delete(f"{name}/{file}")

    def files_of(self, name: str) -> dict[str, int] | None:
        """The files of a whole folder and their sizes in bytes; None if there is none."""
        data = self.read(f"{name}/{FILES}")
        try:
            return None if data is None else {str(k): int(v) for k, v in json.loads(data).items()}
        except (ValueError, AttributeError, TypeError):
            return None

    def get_folder(self, name: str, folder: Path) -> bool:
        """Replace a local folder by the store's; False if the store has no complete one."""
        files = self.files_of(name)
        if files is None or not all(map(_is_plain, files)):
            return False
        draft = folder.with_name(f".{folder.name}.{os.getpid()}.fetched")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            for file, size in files.items():
                self.get(f"{name}/{file}", draft / file)
                if (draft / file).stat().st_size != size:
                    return False  # another process is writing the folder anew
            publish(draft, folder)
        except FileNotFoundError:
            return False
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def names(self, name: str) -> list[str]:
        """The names directly under a folder, sorted; empty if there is no such folder."""
        return sorted({path.partition("/")[0] for path in self.tree(name)})

    def tree(self, name: str) -> list[str]:
        """The files under a folder, at any depth, by their paths from the folder.

        An object's name may be anything: one that would lead out of a folder is passed over.
        """
        from pyarrow import fs

        root = self._path(name) if name else self._opened[1]
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = self._opened[0].get_file_info(selector)
        files = (i.path[len(root) + 1 :] for i in found if i.type == fs.FileType.File)
        return sorted(filter(_is_plain, files))

    def remove(self, name: str) -> None:
        """Remove a folder, its list first, so that a part of the folder never counts."""
        self._delete(f"{name}/{FILES}")
        try:
            self._opened[0].delete_dir(self._path(name))
        except FileNotFoundError:
            pass

    def _delete(self, name: str) -> None:
        try:
            self._opened[0].delete_file(self._path(name))
        except FileNotFoundError:
            pass


def _is_plain(name: str) -> bool:
    """Whether a relative path stays inside its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
